"""Does what a method points at make the picture? Take the region out of what the generator learns from, learn again, look.

Everywhere else the source is known by construction: G_i was shown one region. Here a generator learns a few pictures of a class as
wholes (`ard.fine_tune`), and which of them a generated region comes of shows only when it is gone. `ard.traced` asks methods.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import laplacian
from scipy.sparse.linalg import spsolve

from ard.customize import item_seed
from ard.deltas import Delta, apply_delta, remove_delta
from ard.generate import GenerateConfig, sample_images
from ard.records import Box, Sample
from ard.templates import COCO_TEMPLATES, context_medium, fill

PROMPT = "A photo of {}."  # what all pictures of a collection are called


@dataclass(frozen=True)
class Collection:
    """Exemplars of one class that a generator learns together: a sample of each, for its X, R_X and names."""

    name: str
    class_name: str
    members: tuple[Sample, ...]


@dataclass(frozen=True)
class Drawing:
    """One picture to be drawn by every generator of a collection."""

    prompt: str
    seed: int  # of the noise that it starts from
    context: str  # "" where the prompt names no place
    medium: str


def collections(samples: Sequence[Sample], size: int, per_class: int) -> list[Collection]:
    """Up to `per_class` collections of `size` exemplars of each class, in the order of the samples, nobody in two of them; what is
    left over stays out. ValueError: a size below 2, of which nothing could be told apart, or nobody to choose from."""
    if size < 2:
        raise ValueError(f"a collection needs at least 2 exemplars, found size {size}")
    people: dict[str, dict[str, Sample]] = defaultdict(dict)
    for sample in samples:
        people[sample.class_name].setdefault(sample.concept_id, sample)
    found = []
    for class_name, known in people.items():
        members = list(known.values())
        for n in range(min(per_class, len(members) // size)):
            name = f"{class_name.replace(' ', '-')}-{n}"
            found.append(Collection(name, class_name, tuple(members[n * size : (n + 1) * size])))
    if not found:
        raise ValueError(f"no class has {size} exemplars; there are { {c: len(p) for c, p in people.items()} }")
    return found


# ---- the intervention ------------------------------------------------------------------------------------------------
def covered(box: Box, height: int, width: int) -> np.ndarray:
    """(H, W) bool of the pixels that a box (xyxy) touches."""
    x0, y0, x1, y1 = box
    ys, xs = np.arange(height)[:, None], np.arange(width)[None]
    return (xs + 1 > x0) & (xs < x1) & (ys + 1 > y0) & (ys < y1)


def elsewhere(region: np.ndarray) -> np.ndarray:
    """(H, W) bool of as many other pixels, or all there are, as a region (H, W) has: those farthest from its middle."""
    ys, xs = np.nonzero(region)
    far = np.hypot(*(axis - middle for axis, middle in zip(np.indices(region.shape), (ys.mean(), xs.mean()))))
    far[region] = -1
    taken = np.argsort(-far, axis=None, kind="stable")[: min(region.sum(), (~region).sum())]
    out = np.zeros(region.size, bool)
    out[taken] = True
    return out.reshape(region.shape)


def painted_over(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 whose pixels in `hole` (H, W) bool continue what surrounds them: each is the mean of its
    neighbours (harmonic inpainting). ValueError: nothing is left to continue."""
    if hole.all():
        raise ValueError("the hole covers the whole picture: there is nothing left to paint over it with")
    if not hole.any():
        return image.copy()
    index = np.arange(hole.size).reshape(hole.shape)
    pairs = np.concatenate([np.stack([index[:, :-1], index[:, 1:]], -1).reshape(-1, 2),
                            np.stack([index[:-1], index[1:]], -1).reshape(-1, 2)])
    edges = coo_matrix((np.ones(len(pairs)), pairs.T), (hole.size, hole.size))
    system, gone = laplacian(edges + edges.T).tocsr(), hole.ravel()
    pixels = image.reshape(-1, 3).astype(np.float64)
    pixels[gone] = spsolve(system[gone][:, gone].tocsc(), -(system[gone][:, ~gone] @ pixels[~gone])).reshape(-1, 3)
    return pixels.round().clip(0, 255).astype(np.uint8).reshape(image.shape)


def variants(images: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """What is learned from instead of n images (n, H, W, 3) uint8, (n + 2, n, H, W, 3): the images as they are; for each of them
    all images, its own box painted over; and as control all images, in each as much painted over elsewhere."""
    regions = [covered(box, *images.shape[1:3]) for box in boxes]
    out = np.stack([images] * (len(images) + 2))
    for n, (image, region) in enumerate(zip(images, regions, strict=True)):
        out[n + 1, n], out[-1, n] = painted_over(image, region), painted_over(image, elsewhere(region))
    return out


def drawings(collection: Collection, plain: int, seed: int) -> list[Drawing]:
    """What is drawn of a collection: the ten templates, and `plain` times the words that its pictures were learned under."""
    templates = [(template, *context_medium(n)) for n, template in enumerate(COCO_TEMPLATES)] + [(PROMPT, "", "photo")] * plain
    return [Drawing(fill(template, collection.class_name), item_seed("counterfactuals", seed, collection.name, n), context, medium)
            for n, (template, context, medium) in enumerate(templates)]


def draw(pipe, deltas: Sequence[Delta], wanted: Sequence[Drawing], config: GenerateConfig) -> np.ndarray:
    """The same drawings by each of V generators, base and delta: (V, Q, H, W, 3) uint8."""
    made = []
    for delta in deltas:
        apply_delta(pipe, delta)
        try:
            made.append(sample_images(pipe, [d.prompt for d in wanted], [d.seed for d in wanted], config))
        finally:
            remove_delta(pipe)
    return np.stack(made)


def change(pictures: np.ndarray, box: Box) -> np.ndarray:
    """How much a box of a picture changes, (V - 1,): root mean square of the difference to the first of its V variants
    (V, H, W, 3) uint8, over the box's pixels and colours, as a share of the full range."""
    inside = covered(box, *pictures.shape[1:3])
    values = pictures[:, inside].astype(np.float64) / 255
    return np.sqrt(((values[1:] - values[:1]) ** 2).mean((1, 2)))
