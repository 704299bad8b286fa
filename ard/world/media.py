"""The six media of the COCO-type templates (paper, Table 4) as image filters on small scenes."""

import numpy as np
from scipy.ndimage import convolve, gaussian_filter, median_filter

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
MEDIA = ("photo", "oil painting", "watercolor illustration", "charcoal sketch", "digital painting", "pencil drawing")
GREY_MEDIA = ("charcoal sketch", "pencil drawing")


def apply_medium(image: np.ndarray, medium: str) -> np.ndarray:
    """Render a clean scene in a medium. `image` float32 (H, W, 3) in [0, 1]; returns the same. Deterministic.

    Raises KeyError for an unknown medium.
    """
    if medium not in _FILTERS:
        raise KeyError(f"unknown medium {medium!r}; there are {', '.join(MEDIA)}")
    return np.clip(_FILTERS[medium](image.astype(np.float32)), 0, 1)


def _saturate(image: np.ndarray, factor: float) -> np.ndarray:
    grey = (image @ LUMA)[..., None]
    return grey + factor * (image - grey)


def _edges(image: np.ndarray) -> np.ndarray:
    """Edge strength in about [0, 1]: the largest channel's gradient."""
    kernel = np.array([[-1, 0, 1]], dtype=np.float32)
    gx = np.stack([convolve(image[..., k], kernel) for k in range(3)], -1)
    gy = np.stack([convolve(image[..., k], kernel.T) for k in range(3)], -1)
    return np.sqrt(gx**2 + gy**2).max(-1)


def _oil(image: np.ndarray) -> np.ndarray:
    dabs = np.stack([median_filter(image[..., k], size=3) for k in range(3)], -1)
    varnish = np.array([1.06, 0.93, 0.66], dtype=np.float32)
    return _saturate(dabs * 0.85, 1.25) * varnish


def _watercolour(image: np.ndarray) -> np.ndarray:
    wash = np.stack([gaussian_filter(image[..., k], 0.6) for k in range(3)], -1)
    paper = np.array([1.0, 0.99, 0.96], dtype=np.float32)
    return 0.48 * _saturate(wash, 1.25) + 0.52 * paper - 0.18 * np.clip(_edges(image), 0, 1)[..., None]


def _charcoal(image: np.ndarray) -> np.ndarray:
    grey = image @ LUMA
    tone = 0.10 + 0.62 * grey - 0.35 * np.clip(_edges(image), 0, 1)
    return np.repeat(tone[..., None], 3, -1)


def _digital(image: np.ndarray) -> np.ndarray:
    flat = np.round(_saturate(image, 1.5) * 4) / 4
    grey = (image @ LUMA)[..., None]
    shadow, light = np.array([0.16, 0.0, 0.34]), np.array([0.0, 0.12, 0.10])
    return (flat + (1 - grey) * shadow * 0.8 + grey * light * 0.8).astype(np.float32)


def _pencil(image: np.ndarray) -> np.ndarray:
    grey = image @ LUMA
    tone = 0.62 + 0.36 * grey - 0.75 * np.clip(_edges(image), 0, 0.9)
    return tone[..., None] * np.array([1.0, 0.99, 0.97], dtype=np.float32)


_FILTERS = {
    "photo": lambda image: image,
    "oil painting": _oil,
    "watercolor illustration": _watercolour,
    "charcoal sketch": _charcoal,
    "digital painting": _digital,
    "pencil drawing": _pencil,
}
