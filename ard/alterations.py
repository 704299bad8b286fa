"""What a study does to a training picture before it is learned: noise, bars over a region, a region upside down, and the repair.

For `ard.studies`; the paper's section 5.4 and supplement A.
"""

from __future__ import annotations

import numpy as np

from ard.counterfactuals import covered
from ard.records import Box

BAR = (112, 84, 60)  # RGB of a fence's bars: wood


def gaussian_noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """An image (H, W, 3) uint8 with normal noise on each pixel and colour. deviation: as a share of the full range."""
    return (image + 255 * deviation * rng.standard_normal(image.shape)).round().clip(0, 255).astype(np.uint8)


def salt_and_pepper(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """An image (H, W, 3) uint8 of whose pixels a share is black or white, half of it each."""
    drawn, out = rng.random(image.shape[:2]), image.copy()
    out[drawn < share / 2], out[drawn >= 1 - share / 2] = 0, 255
    return out


def fenced(image: np.ndarray, box: Box, bars: int = 3, share: float = 0.5) -> np.ndarray:
    """An image (H, W, 3) uint8 with `bars` upright bars before a box (xyxy, px), which take `share` of its width."""
    region = covered(box, *image.shape[:2])
    columns = np.nonzero(region.any(0))[0]
    phase = (np.arange(len(columns)) + 0.5) / len(columns) * bars % 1  # a bar in the middle of each of equal parts
    hidden = region.copy()
    hidden[:, columns[abs(phase - 0.5) >= share / 2]] = False
    out = image.copy()
    out[hidden] = BAR
    return out


def upside_down(pixels: np.ndarray, box: Box) -> np.ndarray:
    """Pixels (H, W, ...), of an image or a mask, with those that a box (xyxy, px) touches turned by 180 degrees."""
    rows, columns = _touched(box, pixels)
    out = pixels.copy()
    out[rows, columns] = pixels[rows, columns][::-1, ::-1]
    return out


def mended(faulty: np.ndarray, sound: np.ndarray, box: Box) -> np.ndarray:
    """Pixels (H, W, ...), of an image or a mask, with a fault that is mended where a box (xyxy, px) touches them, only there."""
    rows, columns = _touched(box, faulty)
    out = faulty.copy()
    out[rows, columns] = sound[rows, columns]
    return out


def _touched(box: Box, pixels: np.ndarray) -> tuple[slice, slice]:
    inside = covered(box, *pixels.shape[:2])
    if not inside.any():
        raise ValueError(f"box {box} touches no pixel of a picture of {pixels.shape[1]} x {pixels.shape[0]}")
    return tuple(slice(int(n.min()), int(n.max()) + 1) for n in np.nonzero(inside))
