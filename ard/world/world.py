"""Scenes of the mini world: a background, one to three individuals, fillers, a medium; with exact boxes and masks."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image

from ard.world.artwork import CLASSES, FILLER, SPLITS, Drawing, load_catalogue, load_picture
from ard.world.backgrounds import CONTEXTS, paint_background
from ard.world.individuals import MARKINGS, PALETTES, WARPS, Individual, paint
from ard.world.media import MEDIA, apply_medium

SIZE = 64


@dataclass(frozen=True, eq=False)
class Placed:
    """An object in a scene. Box xyxy in pixels around the visible mask; `visible` is the share not occluded or cut."""

    class_name: str
    individual: Individual | None
    box: tuple[float, float, float, float]
    mask: np.ndarray
    visible: float


@dataclass(frozen=True, eq=False)
class Scene:
    """A rendered picture, uint8 (size, size, 3), with its objects (individuals) and fillers, back to front."""

    image: np.ndarray
    objects: tuple[Placed, ...]
    fillers: tuple[Placed, ...]
    context: str
    medium: str


@dataclass(frozen=True)
class Placement:
    """Where a sprite goes: area of its opaque part as a share of the picture, centre, mirror, tilt in degrees."""

    area: float
    x: float
    y: float
    mirror: bool
    tilt: float


class World:
    """Access to drawings by class and split, and the scene renderer. Pure given the random generator passed in."""

    classes = CLASSES

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.drawings = load_catalogue(self.root)
        self._by_split: dict[tuple[str, str], tuple[Drawing, ...]] = {
            (name, split): tuple(d for d in self.drawings if d.class_name == name and split in d.splits)
            for name in (*CLASSES, FILLER)
            for split in SPLITS
        }

    @classmethod
    def load(cls, root: str | Path = "data/world") -> "World":
        return cls(root)

    def drawings_of(self, class_name: str, split: str) -> tuple[Drawing, ...]:
        """Drawings of a class that a split may use. Raises KeyError for an unknown class or split."""
        if (class_name, split) not in self._by_split:
            raise KeyError(f"no drawings for class {class_name!r} in split {split!r}; splits are {', '.join(SPLITS)}")
        return self._by_split[class_name, split]

    def individual(self, class_name: str, split: str, rng: np.random.Generator, plain: float | None = None) -> Individual:
        """A random individual of a class, from the drawings of a split.

        plain: how often palette, marking and warp are left as drawn; .6 for base, .3 for exemplars when not given.
        """
        drawings = self.drawings_of(class_name, split)
        if split == "base":  # a group first: one that joins many drawings would crowd out the others
            groups = sorted({d.group for d in drawings})
            group = groups[rng.integers(len(groups))]
            drawings = tuple(d for d in drawings if d.group == group)
        drawing = drawings[rng.integers(len(drawings))]
        # in the base population most are as drawn, as in any; exemplars are chosen to be told apart
        plain = (0.6 if split == "base" else 0.3) if plain is None else plain
        palette, marking, warp = (
            usual if rng.random() < plain else str(rng.choice(list(kinds)))
            for usual, kinds in (("natural", PALETTES), ("plain", MARKINGS), ("none", WARPS))
        )
        return Individual(class_name, drawing.drawing, drawing.designer, palette, marking, warp)

    def sprite(self, individual: Individual) -> np.ndarray:
        """RGBA float32 (96, 96, 4) of an individual."""
        file = str(self.root / f"artwork/{individual.drawing}.png")
        return _sprite(file, individual.palette, individual.marking, individual.warp)

    def portrait(self, individual: Individual) -> np.ndarray:
        """An individual alone on light grey, uint8 (96, 96, 3), for pages of samples."""
        sprite = self.sprite(individual).astype(np.float32)
        alpha = sprite[..., 3:]
        return ((sprite[..., :3] * alpha + 0.88 * (1 - alpha)).clip(0, 1) * 255 + 0.5).astype(np.uint8)

    def scene(
        self,
        rng: np.random.Generator,
        individuals: Sequence[Individual] | None = None,
        split: str = "base",
        context: str | None = None,
        medium: str | None = None,
        n_objects: int | None = None,
        fillers: int | None = None,
        placements: Sequence[Placement] | None = None,
        size: int = SIZE,
    ) -> Scene:
        """Compose and render one scene, `size` pixels wide and high; whatever is None is drawn from `rng`.

        Individuals are drawn from `split` when not given. An object that ends up less than 35% visible is drawn again.
        """
        context = context or str(rng.choice(CONTEXTS))
        medium = medium or str(rng.choice(MEDIA))
        if individuals is None:
            n = n_objects or int(rng.choice([1, 2, 3], p=[0.72, 0.22, 0.06]))
            individuals = [self.individual(str(rng.choice(CLASSES)), split, rng) for _ in range(n)]
        n_fillers = int(rng.choice([0, 1, 2], p=[0.6, 0.3, 0.1])) if fillers is None else fillers
        pool = self.drawings_of(FILLER, "base")
        filler_sprites = [_sprite(str(self.root / pool[rng.integers(len(pool))].file), "natural", "plain", "none")
                          for _ in range(n_fillers)]
        background = paint_background(context, rng, size)
        for _ in range(20):
            where = placements or [random_placement(rng, len(individuals)) for _ in individuals]
            small = [Placement(rng.uniform(0.02, 0.06), rng.uniform(0.08, 0.92), rng.uniform(0.55, 0.9), False, 0.0)
                     for _ in filler_sprites]
            image, masks, shares = _compose(background, filler_sprites + [self.sprite(i) for i in individuals],
                                            small + list(where))
            if all(share >= 0.35 for share in shares[n_fillers:]) or placements:
                break
        image = (apply_medium(image, medium) * 255 + 0.5).astype(np.uint8)
        placed = [Placed(FILLER, None, mask_box(m), m, s) for m, s in zip(masks[:n_fillers], shares) if m.any()]
        objects = [Placed(i.class_name, i, mask_box(m), m, s)
                   for i, m, s in zip(individuals, masks[n_fillers:], shares[n_fillers:]) if m.any()]
        return Scene(image, tuple(objects), tuple(placed), context, medium)


def random_placement(rng: np.random.Generator, n_objects: int = 1) -> Placement:
    """Areas spread like COCO's (median about .2 for one object); several objects are smaller."""
    area = float(np.clip(np.exp(rng.normal(np.log(0.22), 0.45)), 0.08, 0.6)) / (1 + 0.45 * (n_objects - 1))
    margin = 0.5 * np.sqrt(area) * 0.9
    x = rng.uniform(margin, 1 - margin) if margin < 0.5 else 0.5
    y = np.clip(rng.normal(0.60, 0.08), margin, max(1 - margin, margin))
    return Placement(area, float(x), float(y), bool(rng.random() < 0.5), float(rng.normal(0, 5)))


def mask_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Tight xyxy box in pixels of a boolean mask (H, W).

    >>> m = np.zeros((4, 4), bool); m[1:3, 2] = True
    >>> mask_box(m)
    (2.0, 1.0, 3.0, 3.0)
    """
    rows, cols = np.nonzero(mask)
    return float(cols.min()), float(rows.min()), float(cols.max() + 1), float(rows.max() + 1)


@lru_cache(maxsize=20000)
def _sprite(file: str, palette: str, marking: str, warp: str) -> np.ndarray:
    return paint(load_picture(file), palette, marking, warp).astype(np.float16)


def _compose(background, sprites, placements):
    """Paste sprites back to front. Returns the picture, visible boolean masks and visible shares in sprite order."""
    image, alphas, full = background.copy(), [], []
    for sprite, place in zip(sprites, placements):
        colour, alpha, whole = _place(np.float32(sprite), place, background.shape[0])
        image = image * (1 - alpha[..., None]) + colour
        alphas = [a * (1 - alpha) for a in alphas] + [alpha]
        full.append(whole)
    masks = [a > 0.5 for a in alphas]
    return image, masks, [float(m.sum() / max(f, 1)) for m, f in zip(masks, full)]


def _place(sprite: np.ndarray, place: Placement, size: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Premultiplied colour (S, S, 3) and alpha (S, S) of a sprite on an empty canvas, and its uncut area in pixels."""
    if place.mirror:
        sprite = sprite[:, ::-1]
    alpha = sprite[..., 3]
    x0, y0, x1, y1 = (int(v) for v in mask_box(alpha > 0.5))
    scale = np.sqrt(place.area * size * size / max((alpha > 0.5).sum(), 1))
    # a long thin drawing must still fit into the picture
    scale = min(scale, 0.96 * size / max(x1 - x0, y1 - y0))
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    half_w, half_h = (x1 - x0) * scale / 2 / size, (y1 - y0) * scale / 2 / size
    x = np.clip(place.x, min(half_w, 0.5), max(1 - half_w, 0.5)) * size
    y = np.clip(place.y, min(half_h, 0.5), max(1 - half_h, 0.5)) * size
    turn = np.deg2rad(place.tilt)
    c, s = np.cos(turn) / scale, np.sin(turn) / scale
    matrix = (c, s, cx - c * x - s * y, -s, c, cy + s * x - c * y)
    premultiplied = np.concatenate([sprite[..., :3] * alpha[..., None], alpha[..., None]], -1)
    # draw at the nearest power-of-two reduction first, so that small copies are not aliased
    shrink = 2 if scale < 0.6 else 1
    layers = [_affine(premultiplied[..., k], matrix, size, shrink) for k in range(4)]
    return np.stack(layers[:3], -1), np.clip(layers[3], 0, 1), float((alpha > 0.5).sum() * scale**2)


def _affine(layer: np.ndarray, matrix: tuple, size: int, shrink: int) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(layer, dtype=np.float32))
    if shrink > 1:
        image = image.reduce(shrink)
        a, b, c, d, e, f = matrix
        matrix = (a / shrink, b / shrink, c / shrink, d / shrink, e / shrink, f / shrink)
    return np.asarray(image.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))
