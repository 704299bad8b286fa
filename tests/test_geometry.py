"""`ard.geometry`: boxes follow their pixels through every transform, and bad input is refused with a reason."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ard.geometry import GeometryError, Transform, as_boxes, box_area, box_iou, crop, to_cxcywh, to_xyxy

W, H = 24, 16


@st.composite
def boxes(draw, width=W, height=H):
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return [x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))]


@st.composite
def chains(draw):
    """A random chain with at most one resize, by two: interpolating once keeps the edge of a painted box."""
    t = Transform(W, H)
    for _ in range(draw(st.integers(0, 4))):
        w, h = t.size
        kind = draw(st.sampled_from(("hflip", "resize", "crop", "pad")))
        if kind == "hflip":
            t = t.hflip()
        elif kind == "resize" and "resize" not in [step[0] for step in t.steps]:
            t = t.resize(w * 2, h * 2)
        elif kind == "crop":
            x, y, x1, y1 = draw(boxes(w, h))
            t = t.crop(x, y, x1 - x, y1 - y)
        elif kind == "pad":
            t = t.pad(*[draw(st.integers(0, 5)) for _ in range(4)])
    return t


def painted(image):
    """The box of the pixels above half, or None."""
    ys, xs = np.nonzero(image[..., 0] > 127)
    return None if len(ys) == 0 else [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@settings(deadline=None, max_examples=150)
@given(boxes(), chains())
def test_box_is_where_its_pixels_are(box, transform):
    image = np.zeros((H, W, 3), np.uint8)
    image[box[1]:box[3], box[0]:box[2]] = 255
    moved, out, keep = transform(image, [box], min_visible=0)
    assert (moved.shape[1], moved.shape[0]) == transform.size
    want = painted(moved)
    assert keep[0] == (want is not None)
    if keep[0]:
        # bilinear edges put a doubled border pixel at 3/4 or 1/4, never across one half
        assert np.abs(out[0] - want).max() <= 1e-9


@settings(deadline=None)
@given(boxes(), chains())
def test_back_is_the_inverse_inside_the_crop(box, transform):
    out, keep = transform.boxes([box], min_visible=0)
    if keep[0]:
        again, kept = transform.boxes(transform.back(out), min_visible=0)
        assert kept[0] and np.allclose(again, out)


def test_analytic_boxes():
    box = [[4, 2, 10, 8]]
    assert Transform(W, H).hflip().boxes(box)[0].tolist() == [[14, 2, 20, 8]]
    assert Transform(W, H).resize(48, 8).boxes(box)[0].tolist() == [[8, 1, 20, 4]]
    assert Transform(W, H).crop(6, 4, 10, 10).boxes(box)[0].tolist() == [[0, 0, 4, 4]]
    assert Transform(W, H).pad(1, 2, 3, 4).boxes(box)[0].tolist() == [[5, 4, 11, 10]]
    assert Transform(W, H).pad(1, 2, 3, 4).size == (28, 22)


def test_nothing_to_do_is_the_identity():
    image = np.arange(H * W * 3, dtype=np.uint8).reshape(H, W, 3)
    moved, out, keep = Transform(W, H)(image, [[1, 2, 3, 4]])
    assert moved is image and out.tolist() == [[1, 2, 3, 4]] and keep.all()
    assert (Transform(W, H).hflip().hflip().image(image) == image).all()
    assert (Transform(W, H).resize(W, H).image(image) == image).all()


def test_boxes_are_dropped_below_min_visible_also_at_the_image_border():
    t = Transform(W, H).crop(0, 0, 8, 8)
    assert t.boxes([[6, 0, 14, 8]], 0.25)[1].tolist() == [True]
    assert t.boxes([[6.1, 0, 14.1, 8]], 0.25)[1].tolist() == [False]
    assert Transform(W, H).boxes([[-9, 0, 1, 8]], 0.25)[1].tolist() == [False]
    assert t.boxes(np.zeros((0, 4)))[0].shape == (0, 4)


@pytest.mark.parametrize("call, reason", [
    (lambda: as_boxes([[3, 0, 3, 5]]), "x0 < x1"),
    (lambda: as_boxes([[0, 0, np.nan, 5]]), "x0 < x1"),
    (lambda: as_boxes([[0, 0, 1]]), r"\(N, 4\)"),
    (lambda: Transform(W, H).crop(20, 0, 10, 5), "does not fit in an image of 24 x 16"),
    (lambda: Transform(W, H).resize(0, 3), "at least 1 x 1"),
    (lambda: Transform(W, H).pad(-1, 0, 0, 0), "margins"),
    (lambda: Transform(W, H).image(np.zeros((W, H, 3), np.uint8)), "expected an image of 24 x 16, found 16 x 24"),
    (lambda: Transform(W, H).boxes([[0, 0, 1, 1]], 2), "min_visible"),
    (lambda: crop(np.zeros((4, 4, 3), np.uint8), [5, 0, 6, 2]), "outside"),
])
def test_refused_with_a_reason(call, reason):
    with pytest.raises(GeometryError, match=reason):
        call()


def test_crop_covers_the_box_and_never_is_empty():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, 2)
    assert crop(image, [1.2, 1.2, 1.4, 3.0]).shape == (2, 1, 3)
    assert crop(image, [-5, -5, 9, 9]).shape == image.shape


@given(st.lists(boxes(), min_size=1, max_size=4), st.lists(boxes(), min_size=1, max_size=4))
def test_iou_counts_pixels(a, b):
    def mask(box):
        m = np.zeros((H, W), bool)
        m[box[1]:box[3], box[0]:box[2]] = True
        return m
    want = [[(mask(p) & mask(q)).sum() / (mask(p) | mask(q)).sum() for q in b] for p in a]
    assert np.allclose(box_iou(a, b), want)
    assert np.allclose(box_area(np.array(a)), [mask(p).sum() for p in a])


@given(boxes())
def test_cxcywh_round_trip(box):
    there = to_cxcywh(np.array([box]), W, H)
    assert (there >= 0).all() and (there <= 1).all()
    assert np.allclose(to_xyxy(there, W, H), [box])


def test_crop_of_a_box_that_leaves_the_picture_shows_what_is_inside():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(crop(image, [-1, -1, 2, 2]), image[:2, :2])
    for outside in ([4, 0, 6, 2], [0, 4, 2, 6], [-2, 0, 0, 2], [0, -2, 2, 0]):
        with pytest.raises(GeometryError, match="outside"):
            crop(image, outside)


def test_what_is_visible_is_a_share_of_the_area_whatever_the_resize():
    half = Transform(24, 16).resize(48, 8).crop(0, 0, 10, 8)  # twice as wide, half as high; the crop leaves half of the box
    assert half.boxes([[0, 0, 10, 16]], 0.49)[1].tolist() == [True] and half.boxes([[0, 0, 10, 16]], 0.51)[1].tolist() == [False]


def test_the_way_back_ends_at_the_edge_of_the_picture():
    assert Transform(10, 10).pad(5, 5, 5, 5).back([[0, 0, 20, 20]]).tolist() == [[0, 0, 10, 10]]


def test_endless_boxes_are_refused():
    with pytest.raises(GeometryError, match="x0 < x1"):
        as_boxes([[0, 0, np.inf, 1]])


def test_a_smaller_picture_is_the_mean_of_what_it_covers():
    checks = (255 * (np.indices((16, 16)).sum(0) % 2)).astype(np.uint8)[..., None].repeat(3, 2)
    assert np.abs(Transform(16, 16).resize(4, 4).image(checks).astype(int) - 127).max() < 20
