"""A second individual of the class beside the source: in photos that phase 1 learns from, and in those on which validation asks
which of the two a query came from.

Positive pairs with one individual each teach to box *the* cat of a picture, whichever it is. Not in the paper. After
`ard.couples`, whose pictures are for test alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ard.couples import couple_scene, gallery_image
from ard.records import Dataset, GalleryImage, Sample
from ard.rendered import individual_of
from ard.world import Scene, World
from ard.world.individuals import Individual

VISIBLE = 0.35  # the least share of a source that its companion may leave to be seen, as in all scenes
ATTEMPTS = 50


def companion(world: World, person: Individual, split: str, rng: np.random.Generator) -> Individual:
    """Another individual of the class from the drawings of a split, every second one of the person's own drawing; the two
    differ in at least two of the four traits, as any two in a gallery."""
    alike = rng.random() < 0.5
    while True:
        other = world.individual(person.class_name, split, rng)
        if alike:
            other = replace(other, drawing=person.drawing, designer=person.designer)
        if person.differs(other) >= 2:
            return other


class CompanionWorld(World):
    """The mini world, but beside who is alone in a photo there stands, with probability `share`, a `companion`.

    For `rendered_pairs`, whose sources X are such photos and whose queries are not. With share 0 all scenes are the mini world's.
    ValueError: `share` is no probability.
    """

    def __init__(self, root: str | Path, share: float):
        if not 0 <= share <= 1:
            raise ValueError(f"companions: expected a share from 0 to 1, found {share}")
        super().__init__(root)
        self.share = share

    def scene(self, rng, individuals=None, split="base", context=None, medium=None, **told) -> Scene:
        """As `World.scene`; the individual asked for is the first of the objects, whoever stands beside it, behind or in front."""
        alone_in_photo = medium == "photo" and individuals is not None and len(individuals) == 1
        if not (alone_in_photo and self.share and rng.random() < self.share):
            return super().scene(rng, individuals, split, context, medium, **told)
        (person,) = individuals
        for _ in range(ATTEMPTS):
            couple = [person, companion(self, person, split, rng)]
            made = super().scene(rng, couple[:: rng.choice([1, -1])], split, context, medium, **told)  # back to front
            own = next((o for o in made.objects if o.individual == person), None)
            if own is not None and own.visible >= VISIBLE:
                return replace(made, objects=(own, *(o for o in made.objects if o is not own)))
        raise ValueError(f"{person.individual_id}: found no photo in which a companion leaves {VISIBLE:.0%} of it to be seen")


def couples_of(dataset: Dataset, world: World, split: str, root: str | Path, seed: int = 0) -> Dataset:
    """The dataset with a gallery of couples in place of a split's: each X drawn anew, its individual beside a companion.

    The split's queries are asked of them as they are: what the generator learned of an individual does not hang on its photo.
    Pictures go to `root`. ValueError for test, whose couples are other individuals (`ard.couples`).
    """
    if split == "test":
        raise ValueError("couples of test individuals have a test set of their own, data/couples")
    images: dict[str, GalleryImage] = {}
    for sample in dataset.samples[split]:
        if sample.exemplar_file not in images:
            images[sample.exemplar_file] = _couple_image(sample, world, Path(root), [seed, 4, len(images)])
    samples = tuple(replace(s, exemplar_file=images[s.exemplar_file].file, exemplar_box=images[s.exemplar_file].objects[0].box)
                    for s in dataset.samples[split])
    return replace(dataset, samples={**dataset.samples, split: samples},
                   gallery={**dataset.gallery, split: tuple(images.values())})


def _couple_image(sample: Sample, world: World, root: Path, seed: list[int]) -> GalleryImage:
    """A picture whose first object is the sample's individual; others are tried where a couple has no room in one."""
    person, rng = individual_of(sample), np.random.default_rng(seed)
    for attempt in range(ATTEMPTS):
        try:
            scene = couple_scene(world, (person, companion(world, person, sample.split, rng)), [*seed, attempt])
        except ValueError:
            continue
        return gallery_image(scene, root / f"{sample.concept_id}.png")
    raise ValueError(f"{person.individual_id} has no room in one picture with another of its class")
