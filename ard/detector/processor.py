"""From any picture and its boxes to what a detector reads, and boxes back: one transform moves both (FACTS 1.7a)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ard.detector.features import IMAGE_SIZE
from ard.detector.published import Pictures
from ard.files import FileError, atomic_write_text
from ard.geometry import GeometryError, Transform, as_boxes
from ard.images import Source, open_image

FILE = "attribution_processor.json"
Augment = Callable[[Transform], Transform]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture as the detector will see it, its boxes there, and the way back."""

    image: np.ndarray  # (H, W, 3) uint8
    boxes: np.ndarray  # (N, 4) xyxy pixels of `image`
    transform: Transform

    @property
    def frame(self) -> np.ndarray:
        """(4,) float32: where the picture that came in lies in `image`, xyxy pixels; the rest is margin."""
        return self.transform.boxes([[0, 0, self.transform.width, self.transform.height]], 0)[0][0].astype(np.float32)

    def back(self, boxes) -> np.ndarray:
        """Boxes (N, 4) of `image` -> xyxy pixels of the picture that came in."""
        return self.transform.back(boxes)


@dataclass(frozen=True)
class AttributionProcessor:
    """Resizes to `short_side`, at most `long_side` (Grounding DINO), or fits into a square of `square` px (mini world)."""

    short_side: int = 800
    long_side: int = 1333
    square: int = 0  # 0: keep the shape
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @classmethod
    def mini(cls) -> AttributionProcessor:
        """For the detectors in `data/models`."""
        return cls(square=IMAGE_SIZE)

    def transform(self, width: int, height: int, augment: Augment | None = None) -> Transform:
        """How a picture of this size is moved; `augment` (flips, crops, pads) comes before the resize.

        >>> AttributionProcessor(100, 150).transform(400, 200).size, AttributionProcessor.mini().transform(128, 64).size
        ((150, 75), (64, 64))
        """
        moved = augment(Transform(width, height)) if augment else Transform(width, height)
        width, height = moved.size
        if self.square:
            scale = self.square / max(width, height)
        else:
            scale = min(self.short_side / min(width, height), self.long_side / max(width, height))
        new = max(round(width * scale), 1), max(round(height * scale), 1)
        moved = moved.resize(*new)
        if not self.square:
            return moved
        right, below = self.square - new[0], self.square - new[1]
        return moved.pad(right // 2, below // 2, right - right // 2, below - below // 2)

    def __call__(self, image: Source, boxes=(), augment: Augment | None = None, name: str | None = None,
                 min_visible: float = 0.25) -> Prepared:
        """A picture from anywhere and boxes (N, 4) xyxy pixels of it, moved together.

        Raises ImageError for the picture, and GeometryError for a box that is not finite, has no area, lies outside, looks
        normalised, or of which less than `min_visible` is left after `augment`.
        """
        pixels = open_image(image, name)
        height, width = pixels.shape[:2]
        checked = _checked(boxes, width, height)
        transform = self.transform(width, height, augment)
        moved, kept = transform.boxes(checked, min_visible)
        if not kept.all():
            gone = checked[~kept][0].tolist()
            raise GeometryError(f"box {gone}: less than {min_visible:.0%} of it is left after the transform")
        return Prepared(transform.image(pixels), moved, transform)

    def collate(self, prepared: Sequence[Prepared]) -> Pictures | np.ndarray:
        """What `encode_image` takes: pictures padded to the largest, or (B, S, S, 3) uint8 where all are squares of one size."""
        if self.square:
            return np.stack([p.image for p in prepared])
        sizes = torch.tensor([p.transform.size for p in prepared])
        width, height = sizes.max(0).values.tolist()
        pixels = torch.zeros(len(prepared), 3, height, width)
        mask = torch.zeros(len(prepared), height, width, dtype=torch.bool)
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        for i, (one, (w, h)) in enumerate(zip(prepared, sizes.tolist())):
            pixels[i, :, :h, :w] = (torch.from_numpy(one.image.copy()).permute(2, 0, 1) / 255 - mean) / std
            mask[i, :h, :w] = True
        return Pictures(pixels, mask, sizes.float())

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the settings beside a model."""
        return atomic_write_text(Path(folder) / FILE, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> AttributionProcessor:
        """The settings beside a model; FileError when they are missing or are not settings of this kind."""
        path = Path(folder) / FILE
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
        except FileNotFoundError:
            raise FileError(f"{path}: no such file") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise FileError(f"{path}: not the settings of a processor ({error})") from None


def _checked(boxes, width: int, height: int) -> np.ndarray:
    boxes = as_boxes(boxes)
    for box in boxes:
        if box.max() <= 1 and max(width, height) > 1:
            raise GeometryError(f"box {box.tolist()} looks like shares of the picture; expected pixels of {width} x {height}")
        if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
            raise GeometryError(f"box {box.tolist()} lies outside its picture of {width} x {height}")
    return boxes
