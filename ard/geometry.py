"""Boxes, and the one object that moves an image and its boxes together, so that neither can be forgotten (FACTS 1.7a).

Used by every stage that crops, resizes or flips. Boxes are (N, 4) xyxy float pixels; the network's cxcywh in [0, 1] is
made here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


class GeometryError(ValueError):
    """A box or a transform that cannot be used; the message says what was expected and what was found."""


def as_boxes(boxes) -> np.ndarray:
    """(N, 4) float64; refuses other shapes, numbers that are not finite, and boxes without area."""
    array = np.asarray(boxes, np.float64)
    array = array.reshape(0, 4) if array.size == 0 else np.atleast_2d(array)
    if array.ndim != 2 or array.shape[1] != 4:
        raise GeometryError(f"expected boxes of shape (N, 4), found {array.shape}")
    bad = ~(np.isfinite(array).all(1) & (array[:, 2] > array[:, 0]) & (array[:, 3] > array[:, 1]))
    if bad.any():
        raise GeometryError(f"expected x0 < x1 and y0 < y1, found box {bad.argmax()}: {array[bad.argmax()].tolist()}")
    return array


def box_area(boxes: np.ndarray) -> np.ndarray:
    """(N,) pixels squared.

    >>> box_area(np.array([[0, 0, 2, 3]])).tolist()
    [6]
    """
    boxes = np.asarray(boxes)
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union; 0 where neither box has area.

    >>> box_iou(np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2], [5, 5, 6, 6]])).round(3).tolist()
    [[0.333, 0.0]]
    """
    a, b = np.asarray(a, np.float64).reshape(-1, 1, 4), np.asarray(b, np.float64).reshape(1, -1, 4)
    size = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    inter = size[..., 0] * size[..., 1]
    union = box_area(a) + box_area(b) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def to_cxcywh(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """xyxy pixels -> (centre x, centre y, width, height) in [0, 1].

    >>> to_cxcywh(np.array([[0, 0, 10, 10]]), width=20, height=10).tolist()
    [[0.25, 0.5, 0.5, 1.0]]
    """
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1) / [
        width, height, width, height]


def to_xyxy(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """The inverse of `to_cxcywh`."""
    boxes = np.asarray(boxes, np.float64)
    half = boxes[..., 2:] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1) * [width, height, width, height]


def crop(image: np.ndarray, box) -> np.ndarray:
    """The pixels (h, w, 3) a box touches, clipped to the image, at least 1 x 1; refuses a box outside the image."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = as_boxes(box)[0]
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise GeometryError(f"box {[x0, y0, x1, y1]} lies outside its image of {width} x {height}")
    left, top = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
    return image[top:int(np.ceil(y1)), left:int(np.ceil(x1))]


@dataclass(frozen=True)
class Transform:
    """A chain of flips, resizes, crops and pads for images of `width` x `height`; each call returns a longer chain.

    >>> t = Transform(64, 32).hflip().resize(128, 64)
    >>> image, boxes, kept = t(np.zeros((32, 64, 3), np.uint8), [[0, 0, 10, 16]])
    >>> image.shape, boxes.tolist(), kept.tolist()
    ((64, 128, 3), [[108.0, 0.0, 128.0, 32.0]], [True])
    """

    width: int
    height: int
    steps: tuple[tuple, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) after all steps."""
        width, height = self.width, self.height
        for kind, *v in self.steps:
            if kind in ("resize", "crop"):
                width, height = v[-2:]
            elif kind == "pad":
                width, height = width + v[0] + v[2], height + v[1] + v[3]
        return width, height

    def hflip(self) -> Transform:
        return self._then("hflip")

    def resize(self, width: int, height: int) -> Transform:
        if min(width, height) < 1:
            raise GeometryError(f"resize: expected at least 1 x 1, found {width} x {height}")
        return self._then("resize", int(width), int(height))

    def crop(self, left: int, top: int, width: int, height: int) -> Transform:
        w, h = self.size
        if left < 0 or top < 0 or width < 1 or height < 1 or left + width > w or top + height > h:
            raise GeometryError(f"crop: {width} x {height} at ({left}, {top}) does not fit in an image of {w} x {h}")
        return self._then("crop", int(left), int(top), int(width), int(height))

    def pad(self, left: int, top: int, right: int, bottom: int) -> Transform:
        if min(left, top, right, bottom) < 0:
            raise GeometryError(f"pad: expected margins >= 0, found {(left, top, right, bottom)}")
        return self._then("pad", int(left), int(top), int(right), int(bottom))

    def __call__(self, image: np.ndarray, boxes, min_visible: float = 0.25):
        """image (H, W, 3) uint8, boxes (N, 4) -> moved image, kept boxes (M, 4), keep (N,) bool."""
        moved, keep = self.boxes(boxes, min_visible)
        return self.image(image), moved, keep

    def image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> the same after all steps; padding is black. No step: the same array."""
        if image.shape[:2] != (self.height, self.width):
            found = f"{image.shape[1]} x {image.shape[0]}"
            raise GeometryError(f"expected an image of {self.width} x {self.height}, found {found}")
        for kind, *v in self.steps:
            if kind == "hflip":
                image = image[:, ::-1]
            elif kind == "resize" and (image.shape[1], image.shape[0]) != tuple(v):
                image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(v, Image.Resampling.BILINEAR))
            elif kind == "crop":
                image = image[v[1]:v[1] + v[3], v[0]:v[0] + v[2]]
            elif kind == "pad":
                image = np.pad(image, ((v[1], v[3]), (v[0], v[2])) + ((0, 0),) * (image.ndim - 2))
        return image

    def boxes(self, boxes, min_visible: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
        """(N, 4) -> kept boxes (M, 4) clipped to what is left of the image, keep (N,) bool.

        A box is dropped when nothing, or less than `min_visible` of its area, is left inside the image and the crops.
        """
        if not 0 <= min_visible <= 1:
            raise GeometryError(f"min_visible: expected a share in [0, 1], found {min_visible}")
        boxes = as_boxes(boxes)
        whole = box_area(boxes)
        boxes = _clip(boxes, self.width, self.height)
        size = (self.width, self.height)
        for i, (kind, *v) in enumerate(self.steps, 1):
            after = Transform(self.width, self.height, self.steps[:i]).size
            if kind == "hflip":
                boxes = np.stack([size[0] - boxes[:, 2], boxes[:, 1], size[0] - boxes[:, 0], boxes[:, 3]], 1)
            elif kind == "resize":
                scale = np.array(after) / size
                boxes, whole = boxes * np.tile(scale, 2), whole * scale.prod()
            elif kind == "crop":
                boxes = _clip(boxes - np.tile(v[:2], 2), *after)
            elif kind == "pad":
                boxes = boxes + np.tile(v[:2], 2)
            size = after
        left = box_area(boxes)
        keep = (left > 0) & (left >= min_visible * whole * (1 - 1e-9))
        return boxes[keep], keep

    def back(self, boxes) -> np.ndarray:
        """Boxes (N, 4) in the moved image -> in the original image, clipped to it (what was cropped stays lost)."""
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        for i in range(len(self.steps), 0, -1):
            kind, *v = self.steps[i - 1]
            before = Transform(self.width, self.height, self.steps[:i - 1]).size
            if kind == "hflip":
                boxes = np.stack([before[0] - boxes[:, 2], boxes[:, 1], before[0] - boxes[:, 0], boxes[:, 3]], 1)
            elif kind == "resize":
                boxes = boxes * np.tile(np.array(before) / v, 2)
            elif kind == "crop":
                boxes = boxes + np.tile(v[:2], 2)
            elif kind == "pad":
                boxes = boxes - np.tile(v[:2], 2)
        return _clip(boxes, self.width, self.height)

    def _then(self, *step) -> Transform:
        return Transform(self.width, self.height, self.steps + (step,))


def _clip(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.clip(boxes, 0, [width, height, width, height])
