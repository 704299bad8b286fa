"""Rendered pairs for phase 1: one base individual in two scenes, so that identity is learned from thousands and not from
the hundred or two that can be customised. A departure from the paper, which has AD+ only.

No drawing of an exemplar is among them (`World` splits drawings), and each individual stands in one gallery image, as in
the dataset itself.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ard.detector.features import IMAGE_SIZE, VERSION, image_features
from ard.detector.phases import FLIPS, PhaseData, picture_regions
from ard.files import kept_arrays
from ard.generator import Blemish
from ard.geometry import to_cxcywh
from ard.rendered import base_individuals
from ard.world import Scene, World

CHUNK = 200  # individuals rendered, encoded and written at once


def rendered_pairs(
    world: World,
    individuals: int,
    views: int = 2,
    seed: int = 0,
    folder: str | Path | None = None,
    blemish: Blemish | None = None,
) -> PhaseData:
    """PhaseData of `individuals` different base individuals, each in one photo X and in `views` queries of any place and
    medium.

    blemish: gives scenes the blemishes of generated pictures; every second query goes through it.
    Chunks are kept in `folder` (one for each world) when given, so that a killed run goes on; equal arguments give equal pairs.
    """
    people = base_individuals(world, individuals, np.random.default_rng([seed, 7]))
    parts = []
    for start in tqdm(range(0, individuals, CHUNK), desc="rendered pairs", mininterval=5):
        some = people[start : start + CHUNK]
        path = Path(folder) / f"pairs-{seed}-{views}-{start}-{len(some)}{'-blemished' * bool(blemish)}-{VERSION}.npz" if folder else None
        parts.append(kept_arrays(path, partial(_chunk, world, some, views, [seed, 8, start], blemish)))
    gallery = torch.cat([torch.from_numpy(p["gallery"]) for p in parts], 1)
    queries = torch.cat([torch.from_numpy(p["queries"]) for p in parts], 1)
    source = np.repeat(np.arange(individuals), views)
    names = [person.class_name for person in people]
    return PhaseData(
        gallery,
        queries,
        np.concatenate([p["boxes"] for p in parts], 1),
        source,
        tuple(names[i] for i in source),
        tuple(frozenset([name]) for name in names),
    )


def joined(first: PhaseData, second: PhaseData) -> PhaseData:
    """Both galleries and all queries as one."""
    return PhaseData(
        torch.cat([first.gallery, second.gallery], 1),
        torch.cat([first.queries, second.queries], 1),
        np.concatenate([first.boxes, second.boxes], 1),
        np.concatenate([first.source, second.source + len(first.shown)]),
        first.names + second.names,
        first.shown + second.shown,
    )


def _chunk(world: World, people: list, views: int, seed: list[int], blemish: Blemish | None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    photos: list[Scene] = [world.scene(rng, [person], medium="photo") for person in people]
    asked: list[Scene] = [world.scene(rng, [person], fillers=0) for person in people for _ in range(views)]
    pictures = np.stack([s.image for s in asked])
    if blemish is not None:
        pictures[1::2] = blemish(asked[1::2], sum(seed))
    gallery, queries, boxes = [], [], []
    for flip in FLIPS:
        gallery.append(image_features(np.stack([flip.image(s.image) for s in photos])).numpy())
        places = np.concatenate([flip.boxes([s.objects[0].box], 0)[0] for s in asked])
        moved = [flip.image(picture) for picture in pictures]
        queries.append(picture_regions(image_features, moved, places).numpy())
        here = np.concatenate([flip.boxes([s.objects[0].box], 0)[0] for s in photos])
        boxes.append(np.repeat(to_cxcywh(here, IMAGE_SIZE, IMAGE_SIZE), views, 0))
    return {"gallery": np.stack(gallery), "queries": np.stack(queries), "boxes": np.stack(boxes)}
