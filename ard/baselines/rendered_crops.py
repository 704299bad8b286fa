"""Rendered pairs for AbC's mappers: what ARD's first phase learns from beside AD+ (README, "Beyond the paper"), as crops.

So that a rival can be given the same data: base individuals, none of whose drawings is an exemplar's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ard.generator import Blemish
from ard.geometry import crop
from ard.rendered import base_individuals
from ard.world import World


class Crops(NamedTuple):
    real: list[np.ndarray]  # E pictures (h, w, 3) uint8: each individual cut out of its one photo
    queries: list[np.ndarray]  # E * views pictures, cut out of scenes of any place and medium
    owner: np.ndarray  # (E * views,) index of each query's individual


def rendered_crops(world: World, individuals: int, views: int, seed: int, blemish: Blemish | None = None) -> Crops:
    """`individuals` different base individuals of all classes in turn, `views` queries each. blemish: gives every second
    query the flaws of a generated picture. Equal arguments, equal crops. ValueError: the drawings do not give so many."""
    rng = np.random.default_rng([seed, 11])
    people = base_individuals(world, individuals, rng)
    photos = [world.scene(rng, [person], medium="photo") for person in people]
    asked = [world.scene(rng, [person], fillers=0) for person in people for _ in range(views)]
    pictures = np.stack([scene.image for scene in asked])
    if blemish is not None:
        pictures[1::2] = blemish(asked[1::2], seed)
    return Crops([crop(scene.image, scene.objects[0].box) for scene in photos],
                 [crop(picture, scene.objects[0].box) for picture, scene in zip(pictures, asked)],
                 np.repeat(np.arange(individuals), views))
