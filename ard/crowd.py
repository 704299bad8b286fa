"""More individuals of each class among the images that validation is asked about, as many as test has.

Validation has four exemplars of a class, test ten: what is level among four may not be among ten. Not in the paper; after
`ard.world.collection`, whose rules for exemplar images hold here too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ard.couples import gallery_image
from ard.records import Dataset
from ard.release import individuals
from ard.rendered import individual_of
from ard.world import World
from ard.world.collection import exemplar_scene, grey_distance, grey_thumbnail
from ard.world.individuals import Individual

ATTEMPTS = 4000  # individuals drawn of a class, of whom most are too much like another


def crowded(dataset: Dataset, world: World, split: str, root: str | Path, more: int, min_grey_distance: float, seed: int = 0) -> Dataset:
    """The dataset with `more` images of each class behind those of a split's gallery: a photo each of an individual that is in no other
    picture, of the split's own drawings, which can be told from all of its class as exemplars can (`choose_individuals`).

    Nobody is asked about them. Pictures go to `root`. ValueError for test, which is asked as it is, or where a class has not so many
    individuals.
    """
    if split == "test":
        raise ValueError("crowd: test is asked among its own images")
    known, images = individuals(dataset), []
    for name in sorted({s.class_name for s in dataset.samples[split]}):
        there = list(dict.fromkeys(individual_of(s) for s in dataset.samples[split] if s.class_name == name))
        rng = np.random.default_rng([seed, 6, *name.encode()])
        for person in newcomers(world, name, split, there, known, more, min_grey_distance, rng):
            number = len(images)
            images.append(gallery_image(exemplar_scene(world, person, [seed, 6, number]), Path(root) / f"crowd-{number:03}.png"))
    return replace(dataset, gallery={**dataset.gallery, split: (*dataset.gallery[split], *images)})


def newcomers(world: World, class_name: str, split: str, there: list[Individual], known: set[str], more: int, min_grey_distance: float,
              rng: np.random.Generator) -> list[Individual]:
    """`more` individuals of a class, none of `known`, each apart from all others and from those `there`."""
    people, looks = list(there), [grey_thumbnail(world, person) for person in there]
    for _ in range(ATTEMPTS):
        if len(people) == len(there) + more:
            return people[len(there):]
        person = world.individual(class_name, split, rng)
        if person.individual_id in known or any(person.differs(other) < 2 for other in people):
            continue
        look = grey_thumbnail(world, person)
        if all(grey_distance(look, other) >= min_grey_distance for other in looks):
            people.append(person)
            looks.append(look)
    raise ValueError(f"crowd: found {len(people) - len(there)} of {more} more {class_name} individuals for split {split!r}")
