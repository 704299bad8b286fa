"""Queries whose source an intervention tells, and whether methods find it.

After `ard.counterfactuals`: the source is the region whose removal changes R_Q most. All tables of the other test sets can be made
of such queries (`ard.report`, DESIGN 8); `told` asks which of the few pictures of a collection a method picks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ard.counterfactuals import Collection, Drawing, change
from ard.exemplars import Detect, best_box
from ard.files import atomic_write_bytes
from ard.generate import gate
from ard.intervals import bootstrap_mean, paired_difference
from ard.records import Attribution, Sample
from ard.report import columns
from ard.world.collection import png_bytes


@dataclass(frozen=True, eq=False)
class Traced:
    """A query whose source an intervention tells. `sample`: Q, R_Q and, as X, the member whose region matters most."""

    sample: Sample
    effects: np.ndarray  # (n,) change of R_Q when a member's region is gone
    control: float  # and when as much of all members is gone elsewhere
    members: tuple[Sample, ...]

    @property
    def clear(self) -> float:
        """How many times the strongest effect is the second strongest."""
        second, first = np.sort(self.effects)[-2:]
        return float(first / max(second, 1e-9))


def traced(collection: Collection, pictures: np.ndarray, wanted: Sequence[Drawing], detect: Detect, folder: Path,
           min_side: float) -> list[Traced]:
    """The queries among the pictures (V, Q, H, W, 3) of a collection, as `wanted`, and what the interventions say.

    R_Q is the open-set detector's best box of the class in a picture as it is; where there is none, or a tiny one, nothing is asked
    (the gates of `ard.generate`). Q is written to `folder`.
    """
    found = []
    for number, (mine, asked) in enumerate(zip(pictures.swapaxes(0, 1), wanted, strict=True)):
        box = best_box(*detect(mine[0], collection.class_name))
        if gate(box, min_side):
            continue
        *effects, control = change(mine, box[0])
        source, name = collection.members[int(np.argmax(effects))], f"{collection.name}_{number:02d}"
        file = (folder / f"{name}.png").resolve()  # not below the dataset, hence absolute
        atomic_write_bytes(file, png_bytes(mine[0]))
        sample = replace(source, sample_id=name, query_file=str(file), query_box=box[0], template=number,
                         context=asked.context, medium=asked.medium, concept_id=collection.name, prompt=asked.prompt)
        found.append(Traced(sample, np.array(effects), float(control), collection.members))
    return found


def picked(answers: Sequence[Attribution], files: Mapping[str, str], members: Sequence[Sample]) -> int:
    """Which member's picture answers best; of equal ones the last, which is no better than a guess. files: of image ids."""
    scores = {files[a.image_id]: a.score for a in answers}
    own = [scores[member.exemplar_file] for member in members]
    return max(range(len(own)), key=lambda n: (own[n], n))


def told(queries: Sequence[Traced], choices: Mapping[str, Sequence[int]], ours: str = "ARD") -> list[dict]:
    """A row for each method, of what it picks among the members: is that the strongest cause (`right`), and what share of the
    strongest effect does it have (`effect`)? Beside it `ours`' share less the method's, paired. The first row is a guess.

    choices: by method, one a query in order. Intervals resample collections, whose queries stand or fall together.
    """
    groups, first = [q.sample.concept_id for q in queries], np.array([int(np.argmax(q.effects)) for q in queries])
    shares = [q.effects / q.effects.max() for q in queries]
    guess = np.array([share.mean() for share in shares])
    effect = {name: np.array([share[n] for share, n in zip(shares, mine, strict=True)]) for name, mine in choices.items()}
    right = {name: np.array(mine) == first for name, mine in choices.items()}
    effect, right = {"a guess": guess} | effect, {"a guess": np.array([1 / len(q.effects) for q in queries])} | right
    return [{"method": name, **columns("right", bootstrap_mean(right[name], groups)),
             **columns("effect", bootstrap_mean(effect[name], groups)),
             **columns("ours_minus", paired_difference(effect[ours], effect[name], groups)),
             "n_queries": len(queries), "n_collections": len(set(groups))} for name in effect]
