"""Rendered queries: an individual drawn straight into its template's scene, in place of what a generator made of it.

Asked these, a detector is measured without any generator's mistakes: the ceiling row of Table 2.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ard.files import sha256_bytes
from ard.records import SPLITS, Query, RecordError, Sample
from ard.world import World
from ard.world.individuals import Individual


def individual_of(sample: Sample) -> Individual:
    """The individual that a sample's `individual_id`, "drawing+palette+marking+warp", names.

    RecordError when the id has another form: then the sample is not of the mini world and cannot be rendered.
    """
    parts = sample.individual_id.rsplit("+", 3)
    if len(parts) != 4:
        raise RecordError(f"{sample.sample_id}: expected individual 'drawing+palette+marking+warp', "
                          f"found {sample.individual_id!r}; only samples of the mini world can be rendered")
    return Individual(sample.class_name, parts[0], sample.designer, *parts[1:])


def base_individuals(world: World, count: int, rng: np.random.Generator) -> list[Individual]:
    """`count` different base individuals, of all classes in turn. ValueError: the drawings do not give so many."""
    chosen: dict[str, Individual] = {}
    for _ in range(200 * count):
        if len(chosen) == count:
            return list(chosen.values())
        person = world.individual(world.classes[len(chosen) % len(world.classes)], "base", rng)
        chosen.setdefault(person.individual_id, person)
    raise ValueError(f"the base drawings do not give {count} different individuals, only {len(chosen)}")


def rendered_query(world: World, sample: Sample, seed: int = 0) -> Query:
    """The sample's individual alone in the context and medium of its template, with its exact box as R_Q."""
    key = int(sha256_bytes(sample.sample_id.encode())[:8], 16)
    rng = np.random.default_rng([seed, SPLITS.index(sample.split), key])
    scene = world.scene(rng, [individual_of(sample)], sample.split, sample.context, sample.medium, fillers=0)
    return Query(replace(sample, query_box=scene.objects[0].box), scene.image)
