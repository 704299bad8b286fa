"""Windows cover a picture, what is small lies whole in one of them, and an answer comes back to where it was."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ard.detector.processor import AttributionProcessor
from ard.records import Attribution, Dataset, GalleryImage, GroundTruth
from ard.windowed import Windowed
from ard.windows import seen_in_windows, strongest_windows, windows
from tests.toy_attribution import write

MINI = AttributionProcessor.mini()
SIDES = st.integers(1, 300)
ZOOMS = st.floats(1, 5)


@given(SIDES, SIDES, ZOOMS)
def test_windows_lie_inside_and_cover_the_picture(width, height, zoom):
    found = windows(width, height, zoom)
    assert found[0] == (0, 0, width, height)
    seen = np.zeros((height, width), bool)
    for x, y, w, h in found[1:]:
        assert x >= 0 and y >= 0 and w >= 1 and h >= 1 and x + w <= width and y + h <= height
        seen[y : y + h, x : x + w] = True
    assert zoom == 1 or seen.all()


@given(st.integers(40, 300), st.integers(40, 300), st.floats(1.2, 4), st.data())
def test_what_is_half_as_large_as_a_window_lies_whole_in_one(width, height, zoom, data):
    parts = windows(width, height, zoom)[1:]
    w, h = parts[0][2:]
    side_x, side_y = data.draw(st.integers(1, max(w // 2 - 1, 1))), data.draw(st.integers(1, max(h // 2 - 1, 1)))
    x, y = data.draw(st.integers(0, width - side_x)), data.draw(st.integers(0, height - side_y))
    assert any(px <= x and py <= y and x + side_x <= px + pw and y + side_y <= py + ph for px, py, pw, ph in parts)


def test_a_zoom_of_two_has_ten_views_of_a_square():
    assert len(windows(128, 128, 2)) == 10 and {part[2:] for part in windows(128, 128, 2)[1:]} == {(64, 64)}


@pytest.mark.parametrize("zoom", [0.5, 0, -1, float("nan")])
def test_a_zoom_below_one_is_none(zoom):
    with pytest.raises(ValueError, match="zoom: expected at least 1"):
        windows(64, 64, zoom)


@pytest.mark.parametrize("size", [(128, 128), (200, 90), (70, 160)])
def test_a_box_seen_in_a_window_comes_back_to_its_place(size):
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[40:60, 30:56] = 255
    whole, *parts = seen_in_windows(MINI, pixels, 2)
    assert np.array_equal(whole.image, MINI(pixels).image)
    for seen in parts:
        bright = np.argwhere(seen.image[..., 0] > 128)
        if not len(bright):
            continue
        (y0, x0), (y1, x1) = bright.min(0), bright.max(0) + 1
        back = seen.back([(x0, y0, x1, y1)])[0]
        assert (back >= [28, 38, 28, 38]).all() and (back <= [58, 62, 58, 62]).all()
    found = [seen.back([(*np.argwhere(seen.image[..., 0] > 128).min(0)[::-1], *(np.argwhere(seen.image[..., 0] > 128).max(0)[::-1] + 1))])[0]
             for seen in parts if (seen.image[..., 0] > 128).any()]
    assert any(np.abs(box - [30, 40, 56, 60]).max() <= 2 for box in found)


def test_an_image_answers_with_its_strongest_window():
    names, scores = ["a-0", "b-0", "a-1", "b-1"], [float("-inf"), 0.3, 0.1, 0.3]
    assert strongest_windows(names, scores, lambda name: name[0]) == [2, 1]  # of equals the first
    assert strongest_windows([], [], str) == []


class Brightest:
    """Finds what is brightest, by how much of the window it fills."""

    def rank(self, query, gallery):
        answers = []
        for image in gallery:
            bright = np.argwhere(gallery.pixels(image)[..., 0] > 128)
            box = (*bright.min(0)[::-1].tolist(), *(bright.max(0)[::-1] + 1).tolist()) if len(bright) else None
            answers.append(Attribution(image.image_id, box, float(len(bright)) if box else float("-inf")))
        return answers


def test_any_method_is_asked_about_windows_and_answers_for_images(tmp_path):
    pixels = np.zeros((128, 128, 3), np.uint8)
    write(tmp_path / "dark.png", pixels)
    pixels[70:90, 40:60] = 255
    write(tmp_path / "bright.png", pixels)
    images = tuple(GalleryImage(f"{n}.png", n, (GroundTruth("cat", "i", "d", "e", (40, 70, 60, 90)),), 128, 128) for n in ("dark", "bright"))
    dataset = Dataset(tmp_path, {"val": ()}, {"val": images})
    cut = Windowed.of(dataset, "val", tmp_path / "windows", 2)
    assert len(cut.dataset.gallery["val"]) == 20 and all(cut.dataset.pixels(im.file).shape == (64, 64, 3) for im in cut.dataset.gallery["val"])
    answers = cut.back(cut.strongest(Brightest().rank(None, cut.dataset.open_gallery("val"))))
    assert [a.image_id for a in answers] == ["dark", "bright"]
    assert answers[0].box is None and answers[0].score == float("-inf")
    assert answers[1].box == (40, 70, 60, 90) and answers[1].score == 400  # seen at its own size, not at half of it
