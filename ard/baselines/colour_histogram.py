"""`colour histogram`: R_Q's crop against the crops of the class's proposals by colour alone; what shape must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def colour_histogram(images: Sequence[np.ndarray], bins: int = 6) -> np.ndarray:
    """(n, bins^3) square roots of joint RGB shares: the dot product of two rows is their Bhattacharyya coefficient.

    >>> red, blue = np.full((4, 4, 3), [255, 0, 0], np.uint8), np.full((2, 9, 3), [0, 0, 255], np.uint8)
    >>> h = colour_histogram([red, red[:2], blue])
    >>> (h @ h.T).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    rows = []
    for image in images:
        level = image.reshape(-1, 3).astype(np.int64) * bins // 256
        counts = np.bincount(level @ [bins * bins, bins, 1], minlength=bins**3)
        rows.append(np.sqrt(counts / counts.sum()))
    return np.stack(rows)
