"""Did customisation keep the individual, and does the generator still obey its prompt? Measured by independent judges.

The judges (`ard.probes`, `ard.identity`) appear in no table row. Used to choose the number of customisation steps on
validation exemplars, and to judge the queries of test individuals.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ard.customize import Concept, CustomizeConfig, Lesson, customize_together, item_seed
from ard.deltas import apply_delta, remove_delta
from ard.exemplars import Exemplar, read_mask
from ard.generate import Drawn, GenerateConfig, generate_concept
from ard.identity import IdentityEncoder, nearest_individual
from ard.probes import Probes
from ard.records import read_image
from ard.templates import context_medium
from ard.world import GREY_MEDIA, Individual, World

VERDICTS = ("individual", "class", "context", "medium")


@dataclass(frozen=True, eq=False)
class Judges:
    """The mini world, whose renderings are the reference, and the two judges."""

    world: World
    probes: Probes
    encoder: IdentityEncoder

    @classmethod
    def load(cls, folder: str | Path, world: World) -> Judges:
        """From the folder of the judges' notebook: `probes.safetensors` and `identity/`."""
        return cls(world, Probes.load(Path(folder) / "probes.safetensors"), IdentityEncoder.load(Path(folder) / "identity"))

    def likeness(self, query: np.ndarray, query_box, exemplar: np.ndarray, exemplar_box) -> float:
        """Cosine of the individuals in R_Q and R_X: a column of each query."""
        a, b = self.encoder.embed(np.stack([query, exemplar]), np.array([query_box, exemplar_box]))
        return float(a @ b)


def pool_of(exemplar: Exemplar, exemplars: Sequence[Exemplar], size: int) -> list[Individual]:
    """The individual of `exemplar` and up to size - 1 others of its class, those of its own split first."""
    own, split = exemplar.facts["individual_id"], exemplar.facts["split"]
    others = [e for e in exemplars if e.class_name == exemplar.class_name and e.facts["individual_id"] != own]
    others = sorted(others, key=lambda e: (e.facts["split"] != split, e.exemplar_id))[:size - 1]
    named = [(e, e.facts["individual_id"].split("+")) for e in (exemplar, *others)]
    return [Individual(e.class_name, drawing, e.facts["designer"], *traits) for e, (drawing, *traits) in named]


def judge(judges: Judges, drawn: Sequence[Drawn], images: Sequence[np.ndarray], exemplars: Sequence[Exemplar],
          size: int = 10, seed: int = 0) -> pd.DataFrame:
    """One row a generated image, in order: is the individual, class, context, medium right (VERDICTS, bool)?

    'individual': of `size` individuals of the class, each rendered in the query's setting, its own is the nearest; never
    where the class was not found (box None).
    """
    by_id, settings = {e.exemplar_id: e for e in exemplars}, [context_medium(d.template) for d in drawn]
    table = pd.DataFrame({"sample_id": [d.sample_id for d in drawn], "grey": [m in GREY_MEDIA for _, m in settings],
                          "likeness": [d.likeness for d in drawn], "individual": False})
    wanted = {"class": [d.class_name for d in drawn], "context": [c for c, _ in settings],
              "medium": [m for _, m in settings]}
    named = judges.probes.predict(np.stack(images)) if drawn else {aspect: np.array([]) for aspect in wanted}
    for aspect, names in wanted.items():
        table[aspect] = named[aspect] == np.array(names)
    found = [n for n, d in enumerate(drawn) if d.box is not None]
    if found:
        pools = [pool_of(by_id[drawn[n].exemplar_id], exemplars, size) for n in found]
        table.loc[found, "individual"] = nearest_individual(
            judges.encoder, judges.world, np.stack([images[n] for n in found]), np.array([drawn[n].box for n in found]),
            [pool[0] for pool in pools], pools, [settings[n] for n in found], seed)
    return table


def spread(items: Sequence, count: int) -> list:
    """`count` items at even distances: of a list sorted by class, different classes.

    >>> spread(list("aabbccdd"), 3)
    ['a', 'b', 'd']
    """
    places = np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)
    return [items[i] for i in places]


def try_recipes(pipe, exemplars: Sequence[Exemplar], everyone: Sequence[Exemplar], root: str | Path,
                recipes: Mapping[str, CustomizeConfig], drawing: GenerateConfig, templates: Sequence[str],
                detect: Callable, judges: Judges, seed: int = 0) -> pd.DataFrame:
    """Customise, generate and judge with each of the named recipes; one row an image that was drawn.

    Equal seeds for every recipe; the exemplars of a recipe are learned side by side.
    """
    tables = []
    for name, recipe in recipes.items():
        lessons = [Lesson(read_image(Path(root) / e.file), [Concept("<v1>", e.class_name, read_mask(Path(root) / e.mask_file))],
                          item_seed(seed, e.exemplar_id)) for e in exemplars]
        for exemplar, lesson, delta in zip(exemplars, lessons, customize_together(pipe, lessons, recipe)):
            apply_delta(pipe, delta)
            try:
                drawn, pictures = generate_concept(pipe, exemplar, "<v1>", lesson.image, templates, detect, drawing, seed)
            finally:
                remove_delta(pipe)
            images = [read_image(io.BytesIO(picture)) for picture in pictures]
            table = judge(judges, drawn, images, everyone, seed=seed)
            table["copy"], table["found"] = zip(*((d.copy_similarity, not d.reason) for d in drawn))
            tables.append(table.assign(recipe=name, concept=exemplar.exemplar_id))
    return pd.concat(tables, ignore_index=True)
