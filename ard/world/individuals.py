"""Individuals: a drawing x palette x marking x shape warp, painted as an RGBA sprite (DESIGN 4, "The mini world")."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

# tint colour, tint share, gamma of the luminance, darkest and brightest luminance: they differ in grey, not only in hue
PALETTES = {
    "natural": ((0.5, 0.5, 0.5), 0.0, 1.0, 0.0, 1.0),
    "night": ((0.25, 0.28, 0.38), 0.5, 1.4, 0.0, 0.45),
    "cream": ((1.0, 0.93, 0.75), 0.55, 0.6, 0.45, 1.0),
    "rust": ((0.85, 0.35, 0.12), 0.6, 1.1, 0.08, 0.75),
    "sky": ((0.35, 0.62, 0.95), 0.6, 0.9, 0.2, 0.9),
    "moss": ((0.35, 0.62, 0.2), 0.6, 1.3, 0.05, 0.6),
    "rose": ((1.0, 0.5, 0.65), 0.6, 0.75, 0.3, 0.95),
}
MARKINGS = ("plain", "spots", "bands", "patch", "half", "hat", "scarf")
WARPS = ("none", "tall", "wide", "lean", "top-heavy", "bottom-heavy")


@dataclass(frozen=True)
class Individual:
    """*This* cat. `individual_id` names all four choices, so equal ids look equal."""

    class_name: str
    drawing: str
    designer: str
    palette: str
    marking: str
    warp: str

    @property
    def individual_id(self) -> str:
        return f"{self.drawing}+{self.palette}+{self.marking}+{self.warp}"

    def differs(self, other: "Individual") -> int:
        """In how many of drawing, palette, marking and warp two individuals differ (0 to 4)."""
        mine = (self.drawing, self.palette, self.marking, self.warp)
        return sum(a != b for a, b in zip(mine, (other.drawing, other.palette, other.marking, other.warp)))


def paint(picture: np.ndarray, palette: str, marking: str, warp: str) -> np.ndarray:
    """Sprite of an individual: RGBA float32 (S, S, 4) in [0, 1], from a drawing's RGBA of the same shape."""
    sprite = np.concatenate([_recolour(picture[..., :3], palette), picture[..., 3:]], axis=-1)
    return np.clip(_warp(_mark(sprite, marking), warp), 0, 1)


def _recolour(rgb: np.ndarray, palette: str) -> np.ndarray:
    tint, share, gamma, low, high = PALETTES[palette]
    luminance = (rgb @ LUMA)[..., None]
    chroma = rgb - luminance
    target = low + (high - low) * luminance**gamma
    tint = np.array(tint, dtype=np.float32)
    # the tint keeps its own luminance ratio, so the grey value is set by gamma and range alone
    tinted = target * tint / (tint @ LUMA)
    return np.clip((1 - share) * (target + chroma) + share * tinted, 0, 1)


def _mark(sprite: np.ndarray, marking: str) -> np.ndarray:
    if marking == "plain":
        return sprite
    size = sprite.shape[0]
    alpha = sprite[..., 3]
    rows, cols = np.nonzero(alpha > 0.5)
    top, bottom, left, right = rows.min(), rows.max() + 1, cols.min(), cols.max() + 1
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    v, u = (y - top) / (bottom - top), (x - left) / (right - left)
    mean = float((sprite[..., :3] @ LUMA)[alpha > 0.5].mean())
    ink = np.array([0.10, 0.08, 0.14] if mean > 0.42 else [0.98, 0.95, 0.88], dtype=np.float32)
    out = sprite.copy()
    if marking == "hat":
        return _hat(out, top, cols[rows < top + 3].mean(), size, ink)
    shapes = {
        "spots": _discs(u, v, ((0.3, 0.35), (0.68, 0.3), (0.5, 0.62), (0.22, 0.72), (0.78, 0.7))),
        "bands": (np.abs(u - 0.3) < 0.09) | (np.abs(u - 0.68) < 0.09),
        "patch": ((u - 0.36) / 0.3) ** 2 + ((v - 0.42) / 0.26) ** 2 < 1,
        "half": v > 0.58,
        "scarf": np.abs(v - 0.46 - 0.12 * (u - 0.5)) < 0.085,
    }
    if marking == "scarf":
        ink = np.array([0.86, 0.10, 0.16] if mean > 0.42 else [1.0, 0.85, 0.2], dtype=np.float32)
    weight = (0.8 * shapes[marking].astype(np.float32))[..., None]
    out[..., :3] = (1 - weight) * out[..., :3] + weight * ink
    return out


def _discs(u: np.ndarray, v: np.ndarray, centres: tuple) -> np.ndarray:
    return np.any([(u - cu) ** 2 + (v - cv) ** 2 < 0.105**2 for cu, cv in centres], axis=0)


def _hat(sprite: np.ndarray, top: int, middle: float, size: int, ink: np.ndarray) -> np.ndarray:
    """A top hat on the highest point; the sprite moves down when there is no room above it."""
    height, half = int(size * 0.24), int(size * 0.13)
    move = max(0, height - top)
    if move:
        sprite = np.concatenate([np.zeros_like(sprite[:move]), sprite], axis=0)[:size]
        top += move
    c = int(np.clip(middle, half + 8, size - half - 8))
    crown, brim = slice(top - height + 4, top + 4), slice(top - 2, top + 5)
    for rows, cols in ((crown, slice(c - half, c + half)), (brim, slice(c - half - 8, c + half + 8))):
        sprite[rows, cols, :3], sprite[rows, cols, 3] = ink, 1.0
    sprite[top - 8 : top - 2, c - half : c + half, :3] = (0.86, 0.10, 0.16)
    return sprite


def _warp(sprite: np.ndarray, warp: str) -> np.ndarray:
    if warp == "none":
        return sprite
    size = sprite.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    v, u = y / (size - 1) - 0.5, x / (size - 1) - 0.5
    if warp == "tall":
        u = u / 0.68
    elif warp == "wide":
        v = v / 0.66
    elif warp == "lean":
        u = (u + 0.32 * v) / 0.86
    elif warp == "top-heavy":
        u = u / (0.78 - 0.5 * v)
    elif warp == "bottom-heavy":
        u = u / (0.78 + 0.5 * v)
    else:
        raise KeyError(f"unknown warp {warp!r}; there are {', '.join(WARPS)}")
    where = np.stack([(v + 0.5) * (size - 1), (u + 0.5) * (size - 1)])
    alpha = sprite[..., 3:]
    premultiplied = np.concatenate([sprite[..., :3] * alpha, alpha], axis=-1)
    moved = np.stack([map_coordinates(premultiplied[..., k], where, order=1) for k in range(4)], axis=-1)
    moved[..., :3] /= np.maximum(moved[..., 3:], 1e-4)
    return moved
