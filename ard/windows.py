"""Large pictures looked at in parts: as a whole, and in overlapping windows, each of which a detector sees enlarged.

A detector sees a picture in its own few pixels, where a small thing is less than a cell of a feature map. After SAHI (Akyon, Altinuc
and Temizel 2022), whose slices are predicted one by one and joined; here an image's answer is that of its strongest window, after a
second look where there is one. Not in the papers. Notebook 34 asks what it is worth (`ard.windowed`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np

from ard.detector.processor import AttributionProcessor, Prepared

Window = tuple[int, int, int, int]  # left, top, width and height in whole pixels


def windows(width: int, height: int, zoom: float) -> list[Window]:
    """The whole picture, and squares of 1 / `zoom` of its longer side, of which neighbours overlap by half or more; of a narrower
    picture, all of its width. zoom 1: the whole alone. ValueError: a zoom below 1.

    >>> windows(4, 4, 1), len(windows(64, 64, 2)), windows(8, 4, 2)
    ([(0, 0, 4, 4)], 10, [(0, 0, 8, 4), (0, 0, 4, 4), (2, 0, 4, 4), (4, 0, 4, 4)])
    """
    if not zoom >= 1:  # NaN, too
        raise ValueError(f"zoom: expected at least 1, found {zoom}")
    whole = (0, 0, width, height)
    if zoom == 1:
        return [whole]
    side = max(round(max(width, height) / zoom), 1)
    w, h = min(side, width), min(side, height)
    return [whole, *((x, y, w, h) for y in _starts(height, h) for x in _starts(width, w))]


def _starts(extent: int, side: int) -> list[int]:
    steps = ceil((extent - side) / max(side / 2, 1))
    return [round(i * (extent - side) / steps) for i in range(steps + 1)] if steps else [0]


def seen_in_windows(processor: AttributionProcessor, pixels: np.ndarray, zoom: float) -> list[Prepared]:
    """A picture (H, W, 3) uint8 as a detector sees each of its `windows`, with the way back from there."""
    def part(left: int, top: int, width: int, height: int) -> Prepared:
        return processor(pixels, augment=lambda picture: picture.crop(left, top, width, height))

    return [part(*window) for window in windows(pixels.shape[1], pixels.shape[0], zoom)]


def strongest_windows(names: Sequence[str], scores: Sequence[float], home: Callable[[str], str]) -> list[int]:
    """Which windows answer for their images: for each image its strongest, of equals the first, in the order in which images come.
    home: the image that a window is of.

    >>> strongest_windows(["a0", "a1", "b0"], [0.1, 0.4, 0.2], lambda window: window[0])
    [1, 2]
    """
    best: dict[str, int] = {}
    for i, (name, score) in enumerate(zip(names, scores, strict=True)):
        if home(name) not in best or score > scores[best[home(name)]]:
            best[home(name)] = i
    return list(best.values())
