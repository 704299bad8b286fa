"""Pictures from anywhere end as RGB, upright and eight bits, or in one line that says why not."""

import io

import numpy as np
import pytest
from PIL import Image

from ard import images
from ard.images import ImageError, open_image

LEFT_RED = np.zeros((20, 40, 3), np.uint8)
LEFT_RED[:, :20] = (250, 10, 10)


def test_rgb_arrays_and_files_are_taken_as_they_are(tmp_path):
    Image.fromarray(LEFT_RED).save(tmp_path / "a.png")
    for source in (LEFT_RED, Image.fromarray(LEFT_RED), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(open_image(source), LEFT_RED)


def test_grey_of_eight_and_sixteen_bits():
    grey = np.arange(0, 200, 10, dtype=np.uint8).reshape(4, 5)
    wide = (grey.astype(np.uint16) << 8) + 7
    for source in (grey, grey[..., None], wide, Image.fromarray(grey), Image.fromarray(wide)):
        assert np.array_equal(open_image(source), np.repeat(grey[..., None], 3, 2))


def test_transparency_is_white():
    seen = np.dstack([LEFT_RED, np.full((20, 40), 255, np.uint8)])
    seen[:, 20:, 3] = 0
    for source in (seen, Image.fromarray(seen)):
        found = open_image(source)
        assert np.array_equal(found[:, :20], LEFT_RED[:, :20]) and (found[:, 20:] == 255).all()


def test_an_exif_rotation_is_carried_out():
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    Image.fromarray(LEFT_RED).save(buffer, "JPEG", exif=exif, quality=95, subsampling=0)
    buffer.seek(0)
    found = open_image(Image.open(buffer))
    assert found.shape == (40, 20, 3) and found[5, 10, 0] > 200 and found[35, 10, 0] < 50, "what was left is on top"


@pytest.mark.parametrize("array", [np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3)), np.zeros(4, np.uint8)])
def test_arrays_of_another_kind_are_refused(array):
    with pytest.raises(ImageError, match="scan 7: expected"):
        open_image(array, "scan 7")


def test_files_that_cannot_be_read_are_named(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)).save(whole, "PNG")
    (tmp_path / "torn.png").write_bytes(whole.getvalue()[:2000])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    for name in ("torn.png", "text.jpg", "empty.png"):
        with pytest.raises(ImageError, match=f"{name}: not a readable image"):
            open_image(tmp_path / name)
    with pytest.raises(ImageError, match="none.png: image not found"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="not a readable image"):
        open_image(7)


def test_a_hundred_megapixels_are_read_and_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    Image.new("L", (10_000, 10_000), 90).save(tmp_path / "large.png")
    assert open_image(tmp_path / "large.png").shape == (10_000, 10_000, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 1_000_000)
    with pytest.raises(ImageError, match="large.png: 10000 x 10000 pixels; at most 1 million"):
        open_image(tmp_path / "large.png")
