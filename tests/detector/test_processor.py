"""One transform for picture and box: what is in the box stays in it, and the way back is the way there."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ard.detector.processor import AttributionProcessor
from ard.files import FileError
from ard.geometry import GeometryError, Transform, box_iou

FULL, MINI = AttributionProcessor(short_side=120, long_side=200), AttributionProcessor.mini()


@st.composite
def cases(draw):
    """A picture's size, a box in it, and a chain of flips, crops, pads and resizes as functions of a point's coordinates."""
    width, height = draw(st.integers(40, 300)), draw(st.integers(40, 300))
    x0, y0 = draw(st.floats(0, width - 12)), draw(st.floats(0, height - 12))
    box = [x0, y0, draw(st.floats(x0 + 10, width)), draw(st.floats(y0 + 10, height))]
    steps, points, w, h = [], [], width, height
    for kind in draw(st.lists(st.sampled_from(("flip", "resize", "crop", "pad")), max_size=4)):
        if kind == "flip":
            steps.append(("hflip",))
            points.append((lambda x, y, w=w: (w - x, y), w, h))
        elif kind == "resize":
            new = draw(st.integers(30, 300)), draw(st.integers(30, 300))
            steps.append(("resize", *new))
            points.append((lambda x, y, s=(new[0] / w, new[1] / h): (x * s[0], y * s[1]), *new))
            w, h = new
        elif kind == "crop":
            left, top = draw(st.integers(0, w // 2)), draw(st.integers(0, h // 2))
            new = draw(st.integers(w // 3 + 1, w - left)) if w // 3 + 1 <= w - left else w - left, h - top
            steps.append(("crop", left, top, *new))
            points.append((lambda x, y, o=(left, top): (x - o[0], y - o[1]), *new))
            w, h = new
        else:
            margins = [draw(st.integers(0, 30)) for _ in range(4)]
            steps.append(("pad", *margins))
            points.append((lambda x, y, o=margins: (x + o[0], y + o[1]), w + margins[0] + margins[2], h + margins[1] + margins[3]))
            w, h = points[-1][1:]
    return (width, height), box, steps, points


def analytic(box, points):
    """The box by following its corners through every step, clipped where a step cuts, and the share of its area left."""
    share = 1.0
    for point, w, h in points:
        (a, b), (c, d) = point(*box[:2]), point(*box[2:])
        moved = [min(a, c), min(b, d), max(a, c), max(b, d)]
        box = [min(max(moved[0], 0), w), min(max(moved[1], 0), h), min(max(moved[2], 0), w), min(max(moved[3], 0), h)]
        share *= (box[2] - box[0]) * (box[3] - box[1]) / ((moved[2] - moved[0]) * (moved[3] - moved[1]))
        if share == 0:
            break
    return box, share


@settings(deadline=None, max_examples=150)
@given(cases(), st.sampled_from([FULL, MINI]))
def test_the_box_goes_where_geometry_says_or_is_refused(case, processor):
    (width, height), box, steps, points = case
    image = np.zeros((height, width, 3), np.uint8)

    def augment(transform: Transform) -> Transform:
        for kind, *values in steps:
            transform = getattr(transform, kind)(*values)
        return transform

    wanted, share = analytic(box, points)
    if abs(share - 0.25) < 1e-6:
        return
    if share < 0.25:
        with pytest.raises(GeometryError, match="is left"):
            processor(image, [box], augment)
        return
    ready = processor(image, [box], augment)
    w, h = (points[-1][1:] if points else (width, height))
    final = ready.transform.size
    if processor.square:  # the larger side fills the square, the other stands in the middle
        scale = 64 / max(w, h)
        new = max(round(w * scale), 1), max(round(h * scale), 1)
        wanted = np.array(wanted) * np.tile([new[0] / w, new[1] / h], 2) + np.tile([(64 - new[0]) // 2, (64 - new[1]) // 2], 2)
    else:
        wanted = np.array(wanted) * np.tile([final[0] / w, final[1] / h], 2)
    assert ready.image.shape[:2] == final[::-1]
    assert box_iou(ready.boxes, wanted[None])[0, 0] > 0.999
    if share > 1 - 1e-9:
        assert box_iou(ready.back(ready.boxes), np.array([box]))[0, 0] > 0.999, "the way back"


@pytest.mark.parametrize("processor", [FULL, MINI])
def test_what_is_in_the_box_stays_in_it(processor):
    image = np.full((90, 150, 3), 60, np.uint8)
    image[30:70, 20:60] = (220, 30, 30)
    ready = processor(image, [[20, 30, 60, 70]], lambda t: t.hflip().crop(10, 5, 130, 80))
    red = ready.image[..., 0] > 140
    rows, columns = np.nonzero(red)
    found = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]])
    assert box_iou(found, ready.boxes)[0, 0] > 0.9


@pytest.mark.parametrize(("box", "reason"), [
    ([0, 0, 0, 9], "x0 < x1"), ([5, 5, 2, 9], "x0 < x1"), ([0, 0, np.nan, 9], "x0 < x1"), ([0.1, 0.2, 0.6, 0.9], "looks like shares"),
    ([200, 5, 220, 30], "outside"), ([-30, 5, -2, 30], "outside"), ([1, 2, 3], "shape")])
def test_bad_boxes_are_refused_with_a_reason(box, reason):
    for processor in (FULL, MINI):
        with pytest.raises(GeometryError, match=reason):
            processor(np.zeros((100, 150, 3), np.uint8), [box])


def test_a_batch_is_padded_and_knows_it():
    ready = [FULL(np.full((h, w, 3), 200, np.uint8)) for h, w in ((60, 90), (120, 40))]
    batch = FULL.collate(ready)
    assert batch.sizes.tolist() == [[180, 120], [67, 200]] and batch.pixels.shape == (2, 3, 200, 180)
    assert batch.mask[0, :120, :180].all() and not batch.mask[0, 120:].any() and batch.mask[1].sum() == 67 * 200
    assert (batch.pixels[~batch.mask[:, None].expand(-1, 3, -1, -1)] == 0).all()
    inside = (200 / 255 - torch.tensor(FULL.mean)) / torch.tensor(FULL.std)
    assert torch.allclose(batch.pixels[0, :, 5, 5], inside)


def test_settings_are_kept_beside_a_model(tmp_path):
    FULL.save_pretrained(tmp_path)
    assert AttributionProcessor.from_pretrained(tmp_path) == FULL
    with pytest.raises(FileError, match="no such file"):
        AttributionProcessor.from_pretrained(tmp_path / "none")
    (tmp_path / "attribution_processor.json").write_text('{"short": 3}')
    with pytest.raises(FileError, match="not the settings"):
        AttributionProcessor.from_pretrained(tmp_path)


def test_a_picture_that_is_a_thin_strip_keeps_a_pixel_of_its_width():
    mini = AttributionProcessor.mini()
    assert mini.transform(2000, 10).size == mini.transform(10, 2000).size == (64, 64)
    assert AttributionProcessor(100, 150).transform(1000, 2).size == (150, 1)
    assert mini(np.full((10, 2000, 3), 200, np.uint8), [[0, 0, 1000, 10]]).image.shape == (64, 64, 3)
