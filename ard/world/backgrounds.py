"""A clean, distinct background for each context of the COCO-type templates (paper, Table 4)."""

import numpy as np

CONTEXTS = ("forest", "lake", "beach", "city street", "mountain peak")


def paint_background(context: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """Float32 (size, size, 3) in [0, 1]. Colours, horizon and furniture vary with `rng`; the kind of place does not.

    Raises KeyError for an unknown context.
    """
    if context not in _PAINTERS:
        raise KeyError(f"unknown context {context!r}; there are {', '.join(CONTEXTS)}")
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    canvas = np.zeros((size, size, 3), dtype=np.float32)
    return np.clip(_PAINTERS[context](canvas, x, y, rng) + rng.normal(0, 0.025, 3).astype(np.float32), 0, 1)


def _mix(a: tuple, b: tuple, share: np.ndarray) -> np.ndarray:
    share = np.clip(share, 0, 1)[..., None]
    return (1 - share) * np.float32(a) + share * np.float32(b)


def _forest(canvas, x, y, rng):
    canvas[:] = _mix((0.35, 0.55, 0.30), (0.20, 0.42, 0.20), y * 1.6)
    for _ in range(rng.integers(4, 7)):
        at, width = rng.uniform(0, 1), rng.uniform(0.03, 0.055)
        canvas[(np.abs(x - at) < width) & (y < 0.72)] = (0.30, 0.20, 0.12)
    crown = 0.2 + 0.05 * np.sin(x * rng.uniform(14, 22) + rng.uniform(0, 6))
    canvas[y < crown] = (0.10, 0.30, 0.12)
    floor = y > 0.7
    canvas[floor] = _mix((0.22, 0.38, 0.14), (0.30, 0.30, 0.12), (y - 0.7) / 0.3)[floor]
    return canvas


def _lake(canvas, x, y, rng):
    shore, bank = rng.uniform(0.34, 0.42), rng.uniform(0.74, 0.82)
    canvas[:] = _mix((0.62, 0.80, 0.95), (0.86, 0.92, 0.96), y / shore)
    hills = shore - 0.1 - 0.06 * np.sin(x * rng.uniform(5, 8) + rng.uniform(0, 6))
    canvas[y > hills] = (0.36, 0.58, 0.40)
    water = y > shore
    canvas[water] = _mix((0.30, 0.58, 0.80), (0.12, 0.34, 0.60), (y - shore) / (bank - shore))[water]
    canvas[y > bank + 0.03 * np.sin(x * 9)] = (0.42, 0.66, 0.28)
    return canvas


def _beach(canvas, x, y, rng):
    horizon, sand = rng.uniform(0.28, 0.36), rng.uniform(0.5, 0.58)
    canvas[:] = _mix((0.45, 0.75, 0.98), (0.80, 0.92, 1.0), y / horizon)
    sea = y > horizon
    canvas[sea] = _mix((0.10, 0.62, 0.72), (0.40, 0.84, 0.84), (y - horizon) / (sand - horizon))[sea]
    edge = sand + 0.03 * np.sin(x * rng.uniform(6, 10) + rng.uniform(0, 6))
    canvas[y > edge - 0.025] = (0.97, 0.98, 0.96)
    shore = y > edge
    canvas[shore] = _mix((0.95, 0.86, 0.62), (0.88, 0.74, 0.46), (y - sand) / 0.4)[shore]
    sun_x, sun_y = rng.uniform(0.15, 0.85), rng.uniform(0.08, 0.16)
    canvas[(x - sun_x) ** 2 + (y - sun_y) ** 2 < 0.06**2] = (1.0, 0.95, 0.55)
    return canvas


def _street(canvas, x, y, rng):
    canvas[:] = (0.80, 0.84, 0.90)
    left, size = 0.0, canvas.shape[0]
    while left < 1:
        width, roof = rng.uniform(0.2, 0.32), rng.uniform(0.06, 0.26)
        colour = np.float32([(0.62, 0.36, 0.30), (0.55, 0.52, 0.56), (0.72, 0.60, 0.46), (0.42, 0.46, 0.55)])
        house = (x >= left) & (x < left + width) & (y > roof)
        canvas[house] = colour[rng.integers(4)]
        panes = house & (((x - left) * size % 9) > 4) & (((y - roof) * size % 11) > 5) & (y < 0.62)
        canvas[panes] = (0.95, 0.90, 0.60) if rng.random() < 0.5 else (0.75, 0.88, 0.96)
        left += width
    canvas[y > 0.68] = (0.66, 0.66, 0.66)
    canvas[y > 0.74] = (0.34, 0.35, 0.38)
    canvas[(np.abs(y - 0.87) < 0.018) & ((x + rng.uniform(0, 1)) % 0.3 < 0.17)] = (0.95, 0.93, 0.80)
    return canvas


def _mountain(canvas, x, y, rng):
    canvas[:] = _mix((0.30, 0.45, 0.78), (0.78, 0.84, 0.95), y / 0.6)
    for at, top, slope in ((rng.uniform(0.1, 0.35), 0.22, 1.1), (rng.uniform(0.6, 0.9), 0.12, 1.25)):
        ridge = top + slope * np.abs(x - at)
        canvas[y > ridge] = (0.45, 0.44, 0.52)
        canvas[(y > ridge) & (y < top + 0.16 + 0.05 * np.sin(x * 40))] = (0.97, 0.98, 1.0)
    ground = 0.68 + 0.04 * np.sin(x * rng.uniform(7, 11) + rng.uniform(0, 6))
    canvas[y > ground] = (0.52, 0.50, 0.50)
    canvas[(y > ground) & (y < ground + 0.06)] = (0.90, 0.92, 0.95)
    return canvas


_PAINTERS = {
    "forest": _forest,
    "lake": _lake,
    "beach": _beach,
    "city street": _street,
    "mountain peak": _mountain,
}
