"""Phase 1 with words that mean the class: they are lit on all of their class in X, the exemplar token on the source alone.

Not in the paper, whose target map marks words and exemplar on R_X, so that another individual of the class is background for
both. An exemplar is read by its words and its likeness here (`ard.detector.tied`), and those words are to tell the class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ard import validation
from ard.detector.criterion import Targets
from ard.detector.features import IMAGE_SIZE
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.phases import FLIPS, PhaseData, _rival, moved_boxes, one_source, shuffled
from ard.detector.prompts import EXEMPLAR, TEXT, Phrase, Prompt, build_prompt
from ard.detector.rendered_pairs import CHUNK
from ard.detector.train import Batch, TrainSettings
from ard.geometry import to_cxcywh
from ard.records import Dataset
from ard.rendered import base_individuals
from ard.validation import Watch
from ard.world import World

Thing = tuple[str, Sequence[float]]  # class name and box, xyxy pixels


@dataclass(frozen=True, eq=False)
class Shown:
    """All things of one gallery image, its source (if it is one) the first of them."""

    names: tuple[str, ...]
    boxes: np.ndarray  # (2, n, 4) cxcywh in [0, 1]; the first axis is the mirroring, as in `PhaseData`


def shown_in(things: Sequence[Thing]) -> Shown:
    """Their boxes in both mirrorings."""
    boxes = np.array([box for _, box in things], float).reshape(-1, 4)
    both = [to_cxcywh(moved_boxes(flip, boxes), IMAGE_SIZE, IMAGE_SIZE) if len(boxes) else boxes for flip in FLIPS]
    return Shown(tuple(name for name, _ in things), np.stack(both))


def shown_in_split(dataset: Dataset, split: str) -> list[Shown]:
    """Of every gallery image of a split what its records say; of a source R_X, the box that phase 1 teaches."""
    sources = one_source(dataset.samples[split])
    found = []
    for image in dataset.gallery[split]:
        own = sources.get(image.file)
        others = [(o.class_name, o.box) for o in image.objects if own is None or o.individual_id != own.individual_id]
        found.append(shown_in(([] if own is None else [(own.class_name, own.exemplar_box)]) + others))
    return found


def shown_in_pairs(world: World, pairs: PhaseData, seed: int = 0) -> list[Shown]:
    """Of every photo of `rendered_pairs(world, ..., seed=seed)`, which is drawn again: the same world and seed draw the same.

    ValueError where a source does not lie where it does in `pairs`.
    """
    people, found = base_individuals(world, len(pairs.shown), np.random.default_rng([seed, 7])), []
    for start in range(0, len(people), CHUNK):
        rng = np.random.default_rng([seed, 8, start])
        for person in people[start : start + CHUNK]:
            photo = world.scene(rng, [person], medium="photo")
            found.append(shown_in([(o.individual.class_name, o.box) for o in photo.objects]))
    for image, box in zip(pairs.source, pairs.boxes[0]):
        if not np.allclose(found[image].boxes[0, 0], box, atol=1e-5):
            raise ValueError(f"rendered pair {image}: drawn again, its source lies elsewhere; expected the world and seed of the pairs")
    return found


def class_word_batches(data: PhaseData, shown: Sequence[Shown], names: Sequence[str], batch_size: int, other_names: int = 4,
                       rivals: int = 0, absent: float = 0.0) -> Callable[[np.random.Generator], Batch]:
    """As `phases.phase1_batches`, but a phrase's words are lit on all things of their class that X shows, whoever it asks for:
    a rival of the class, or a class name alone, too. `shown`: what is in each of `data`'s gallery images."""
    if absent and not rivals:
        raise ValueError("absent: a caption without its own phrase needs rivals, found rivals 0")
    everything, named = np.arange(len(data.source)), np.array(data.names)
    by_name = {name: np.flatnonzero(named == name) for name in set(data.names)}

    def phrases_of(rng: np.random.Generator, row: int, flip: int) -> tuple[list[Phrase], int]:
        own = [Phrase(data.names[row], data.queries[flip, row].float())] if rng.random() >= absent else []
        alike = by_name[data.names[row]]
        others = [Phrase(*_rival(rng, data, row, alike if rng.random() < 0.5 else everything)) for _ in range(rivals)]
        free = [n for n in names if n not in shown[data.source[row]].names]
        count = min(int(rng.integers(other_names + 1)), len(free))
        phrases = own + others + [Phrase(str(n)) for n in rng.choice(free, count, replace=False)]
        caption, place = shuffled(rng, phrases)
        return caption, place if own else -1

    def make(rng: np.random.Generator) -> Batch:
        rows, flip_x, flip_q = rng.integers(len(data.source), size=batch_size), *rng.integers(2, size=(2, batch_size))
        captions, own = zip(*(phrases_of(rng, row, flip) for row, flip in zip(rows, flip_q)))
        prompt, images = build_prompt(captions), data.source[rows]
        targets = class_word_targets(prompt, [[p.name for p in c] for c in captions], own, [shown[i] for i in images], flip_x)
        return Batch(data.gallery[torch.from_numpy(flip_x), torch.from_numpy(images)], prompt, targets)

    return make


def class_word_targets(prompt: Prompt, names: Sequence[Sequence[str]], own: Sequence[int], shown: Sequence[Shown],
                       flips: Sequence[int]) -> Targets:
    """Per picture: its things whose class is among the `names` of its phrases. Each lights the words of that class; the first,
    the source, lights the exemplar token of phrase `own` as well (-1: it is not asked for)."""
    lit = []
    for i, (captions, phrase, things, flip) in enumerate(zip(names, own, shown, flips)):
        tokens = [_words(prompt, i, captions, name) for name in things.names]
        if phrase >= 0:
            tokens[0] += ((prompt.kind[i] == EXEMPLAR) & (prompt.phrase[i] == phrase)).float()
        lit.append([(box, t) for box, t in zip(things.boxes[flip], tokens) if t.any()])
    most = max(map(len, lit))
    made = Targets(torch.zeros(len(lit), most, 4), torch.zeros(len(lit), most, prompt.kind.shape[1]), torch.zeros(len(lit), most, dtype=torch.bool))
    for i, things in enumerate(lit):
        for j, (box, tokens) in enumerate(things):
            made.boxes[i, j], made.tokens[i, j], made.real[i, j] = torch.from_numpy(box), tokens, True
    return made


def watched_phase1(model: AttributionGroundingDinoForObjectDetection, data: PhaseData, shown: Sequence[Shown], names: Sequence[str],
                   settings: TrainSettings, watch: Watch, other_names: int = 4, rivals: int = 0, absent: float = 0.0,
                   ) -> tuple[list[dict], list[dict]]:
    """`ard.validation.watched_phase1` with words that mean the class: ARD- in place; rows of the loss, rows of the validation."""
    batches = class_word_batches(data, shown, names, settings.batch_size, other_names, rivals, absent)
    return validation.watched_phase1(model, data, names, settings, watch, other_names, rivals, absent, batches=batches)


def _words(prompt: Prompt, row: int, names: Sequence[str], name: str) -> Tensor:
    """(T,) 1 on the words of all phrases of this name."""
    phrases = torch.tensor([i for i, other in enumerate(names) if other == name], dtype=torch.long)
    return ((prompt.kind[row] == TEXT) & torch.isin(prompt.phrase[row], phrases)).float()
