"""The two phases at the published sizes (paper, sections 3.2 and 4.3; FACTS 1.3, 1.4): pictures go through the frozen backbones
batch by batch, where the detector is. `ard.detector.phases` keeps the mini world's features; at 800 pixels they are too many to keep.

    model, processor = AttributionDetector.from_pretrained("my-detector").cuda(), AttributionProcessor.from_pretrained("my-detector")
    pairs = Pairs(Dataset.load("my-data"), "train", processor)
    train_phase1(model, pairs, names, TrainSettings(steps=30000, batch_size=4, learning_rate=1e-4), "phase1")
    train_phase2(model, pairs, TrainSettings(steps=3000, batch_size=1, learning_rate=1e-4), "phase2")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ard.detector.criterion import make_targets
from ard.detector.negatives import NEGATIVES
from ard.detector.phases import LIT, Batches, PhaseData, moved_boxes, phase2_loss, set_trainable, shuffled
from ard.detector.processor import AttributionProcessor, Prepared
from ard.detector.prompts import Phrase, phrase_map
from ard.detector.published import AttributionDetector, Maps
from ard.detector.train import Batch, TrainSettings, supervised_loss, train
from ard.geometry import Transform, to_cxcywh
from ard.records import Dataset


@dataclass(frozen=True, eq=False)
class Pairs:
    """AD+ of a split, its pictures opened when they are asked for. Each picture is mirrored half of the time, its box with it."""

    dataset: Dataset
    split: str
    processor: AttributionProcessor

    @cached_property
    def facts(self) -> PhaseData:
        """Who is where, without features; boxes (1, S, 4) as they are, cxcywh shares. ValueError: one lies outside of its picture."""
        samples, images = self.dataset.samples[self.split], self.dataset.gallery[self.split]
        where = {image.file: i for i, image in enumerate(images)}
        source = np.array([where[s.exemplar_file] for s in samples])
        sizes = [(images[i].width, images[i].height) for i in source]
        boxes = [to_cxcywh(moved_boxes(Transform(*size), [s.exemplar_box]), *size)[0] for s, size in zip(samples, sizes)]
        return PhaseData(torch.empty(0), torch.empty(0), np.array(boxes)[None], source, tuple(s.class_name for s in samples),
                         tuple(frozenset(o.class_name for o in image.objects) for image in images))

    def gallery(self, index: int, rng: np.random.Generator, box: Sequence[float] | None = None) -> Prepared:
        """A gallery picture, with a box of it."""
        return self._opened(self.dataset.gallery[self.split][index].file, rng, [] if box is None else [box])

    def query(self, row: int, rng: np.random.Generator) -> Prepared:
        """Q with R_Q."""
        sample = self.dataset.samples[self.split][row]
        return self._opened(sample.query_file, rng, [sample.query_box])

    def _opened(self, file: str, rng: np.random.Generator, boxes: list) -> Prepared:
        return self.processor(self.dataset.pixels(file), boxes, Transform.hflip if rng.integers(2) else None, file, min_visible=0)


def seen(model: AttributionDetector, pairs: Pairs, pictures: Sequence[Prepared], query: bool = False) -> Maps:
    """What the frozen backbone, that of queries or of the gallery, sees of pictures: without dropout, whatever the mode."""
    for frozen in (model.model.backbone, model.model.text_backbone, model.query_backbone):
        if frozen is not None:
            frozen.eval()
    with torch.no_grad():
        return (model.query_maps if query else model.encode_image)(pairs.processor.collate(pictures).to(model.device))


def exemplars(model: AttributionDetector, pairs: Pairs, queries: Sequence[Prepared]) -> Tensor:
    """(B, d) exemplar tokens of queries, with the gradient of their projection."""
    boxes = torch.tensor(np.concatenate([q.boxes for q in queries]), dtype=torch.float32)
    return model.exemplar_tokens(seen(model, pairs, queries, query=True), boxes.to(model.device))


def phase1_batches(model: AttributionDetector, pairs: Pairs, names: Sequence[str], batch_size: int,
                   other_names: int = 4) -> Batches:
    """Positives only, as `phases.phase1_batches`: X asked for its class phrase with the exemplar of Q, among up to `other_names`
    of the class `names` that it is not known to show."""
    facts = pairs.facts

    def make(rng: np.random.Generator) -> Batch:
        rows = rng.integers(len(facts.source), size=batch_size)
        samples = [pairs.dataset.samples[pairs.split][row] for row in rows]
        shown = [pairs.gallery(facts.source[row], rng, s.exemplar_box) for row, s in zip(rows, samples)]
        tokens, captions, labels = exemplars(model, pairs, [pairs.query(row, rng) for row in rows]), [], []
        for row, token in zip(rows, tokens):
            free = [n for n in names if n != facts.names[row] and n not in facts.shown[facts.source[row]]]
            others = rng.choice(free, min(int(rng.integers(other_names + 1)), len(free)), replace=False) if free else []
            caption, own = shuffled(rng, [Phrase(facts.names[row], token), *(Phrase(str(n)) for n in others)])
            captions.append(caption)
            labels.append([own])
        prompt = model.prompt(captions)
        boxes = [to_cxcywh(one.boxes, *one.transform.size) for one in shown]
        return Batch(seen(model, pairs, shown), prompt, make_targets(boxes, labels, phrase_map(prompt, LIT)))

    return make


def phase2_batches(model: AttributionDetector, pairs: Pairs, positives: int, k: int = 4,
                   negatives: str = "mixed") -> Batches:
    """`positives` pairs (X, Q), each followed by the same query on k negatives without targets, as `phases.phase2_batches`."""
    facts, draw = pairs.facts, NEGATIVES[negatives]

    @torch.no_grad()
    def make(rng: np.random.Generator) -> Batch:
        shown, captions, boxes, labels = [], [], [], []
        for row in rng.integers(len(facts.source), size=positives):
            sample, others = pairs.dataset.samples[pairs.split][row], draw(rng, facts, row, k)
            source = pairs.gallery(facts.source[row], rng, sample.exemplar_box)
            shown += [source, *(pairs.gallery(int(other), rng) for other in others)]
            (token,) = exemplars(model, pairs, [pairs.query(row, rng)])
            captions += [[Phrase(sample.class_name, token)]] * (1 + len(others))
            boxes += [to_cxcywh(source.boxes, *source.transform.size), *[np.empty((0, 4))] * len(others)]
            labels += [[0], *[[]] * len(others)]
        prompt = model.prompt(captions)
        return Batch(seen(model, pairs, shown), prompt, make_targets(boxes, labels, phrase_map(prompt, LIT)))

    return make


def train_phase1(model: AttributionDetector, pairs: Pairs, names: Sequence[str], settings: TrainSettings, folder: str | Path,
                 other_names: int = 4) -> list[dict]:
    """ARD-: everything but F and F~ and the backbones, in place; rows of the loss. Resumes as `train` does."""
    model.set_adapters(False)
    set_trainable(model, adapters=False)
    batches = phase1_batches(model, pairs, names, settings.batch_size, other_names)
    recipe = {"data": pairs.facts.digest, "names": list(names), "other_names": other_names}
    return train(model, batches, settings, folder, supervised_loss(settings), "phase 1", recipe)


def train_phase2(model: AttributionDetector, pairs: Pairs, settings: TrainSettings, folder: str | Path, k: int = 4,
                 lambda_cls: float = 1.0, lambda_reg: float = 0.5, negatives: str = "mixed") -> list[dict]:
    """ARD: F and F~ alone, against negatives; `batch_size` counts positives."""
    model.set_adapters(True)
    set_trainable(model, adapters=True)
    keep = k if negatives == "mined" else 0
    recipe = {"data": pairs.facts.digest, "k": k, "lambda_cls": lambda_cls, "lambda_reg": lambda_reg, "negatives": negatives}
    return train(model, phase2_batches(model, pairs, settings.batch_size, k, negatives), settings, folder,
                 phase2_loss(settings, lambda_cls, lambda_reg, keep=keep), "phase 2", recipe)
