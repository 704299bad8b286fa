"""What is done for each query: V*, a class of one example, is learned by the heads alone, then looked for in pictures.

Backbone, proposal network, shared head and aggregation stay as base training left them (FACTS 1.10).
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import fastrcnn_loss

from ard.baselines.fsod.model import FewShotDetector, Regions, class_logits
from ard.baselines.fsod.settings import FewShotSettings


class Lesson(NamedTuple):
    """RoIs of P labelled pictures, N in all; classes count from 1, 0 is the background."""

    regions: Regions
    labels: Tensor  # (N,)
    deltas: Tensor  # (N, 4) from each RoI to its object
    shown: list[Tensor]  # of each picture: the classes it shows, counted from 0


class Heads(NamedTuple):
    """What fine-tuning makes. `cls` has classes + 2 rows (background, base classes, V*), or one: V* against the rest."""

    cls: nn.Linear
    box: nn.Linear


@torch.no_grad()
def make_lesson(model: FewShotDetector, features: Tensor, targets: list[dict[str, Tensor]], seed: int = 0) -> Lesson:
    """RoIs sampled from the frozen proposals of pictures (P, PACKED) and from their true boxes."""
    maps = model.neck(features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        boxes, _, labels, deltas = model.sampler.select_training_samples(model.propose(maps)[0], targets)
    shown = [target["labels"].unique() - 1 for target in targets]
    return Lesson(model.regions_of(maps, boxes), torch.cat(labels), torch.cat(deltas), shown)


def joined(first: Lesson, second: Lesson) -> Lesson:
    """The pictures of both, in order."""
    a, b = first.regions, second.regions
    regions = Regions(torch.cat([a.maps, b.maps]), torch.cat([a.boxes, b.boxes]),
                      torch.cat([a.owner, b.owner + len(a.maps)]), torch.cat([a.vectors, b.vectors]))
    return Lesson(regions, torch.cat([first.labels, second.labels]), torch.cat([first.deltas, second.deltas]),
                  first.shown + second.shown)


def new_heads(model: FewShotDetector, binary: bool, seed: int) -> Heads:
    """Copies of the base heads with a row for V* near zero, or a binary head near zero."""
    row = 0.01 * torch.randn(1, model.cls.in_features, generator=torch.Generator().manual_seed(seed))
    weight = row if binary else torch.cat([model.cls.weight, row])
    bias = torch.zeros(1) if binary else torch.cat([model.cls.bias, torch.zeros(1)])
    cls = nn.Linear(model.cls.in_features, len(weight))
    cls.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    return Heads(cls, copy.deepcopy(model.box).requires_grad_(True))


def tuning_loss(model: FewShotDetector, heads: Heads, lesson: Lesson, gates: Tensor, pick: Tensor) -> Tensor:
    """Class and box loss of a lesson under gates (P, C + 1, D), V*'s last; `pick` (P,) is the gate of each picture.

    A binary head asks every RoI whether it is V*.
    """
    owner, vectors, labels = lesson.regions.owner, lesson.regions.vectors, lesson.labels
    aggregated = vectors * gates[owner, pick[owner]]
    moved = heads.box(vectors if model.aggregation.box_on_raw else aggregated)
    logits, classes = heads.cls(aggregated), model.classes + 2
    binary = logits.shape[1] == 1
    stand_in = logits.new_zeros(len(logits), classes) if binary else logits  # the box loss does not look at logits
    class_loss, box_loss = fastrcnn_loss(stand_in, moved.repeat(1, classes), [labels], [lesson.deltas])
    if binary:
        class_loss = F.binary_cross_entropy_with_logits(logits[:, 0], (labels == model.classes + 1).float())
    return class_loss + box_loss


def fine_tune(model: FewShotDetector, lesson: Lesson, gates: Tensor, binary: bool, settings: FewShotSettings) -> Heads:
    """Heads learned from a lesson that shows V* as class `model.classes` + 1; the model itself is not changed."""
    heads, generator = new_heads(model, binary, settings.seed), torch.Generator().manual_seed(settings.seed)
    weights = [*heads.cls.parameters(), *heads.box.parameters()]
    rate = settings.binary_rate if binary else settings.tune_rate
    optimizer = torch.optim.SGD(weights, rate, momentum=0.9, weight_decay=settings.weight_decay)
    novel = torch.full((len(gates),), model.classes)
    for _ in range(settings.tune_steps):
        pick = novel if binary else model.aggregation.picks(lesson.shown, model.classes + 1, generator)
        loss = tuning_loss(model, heads, lesson, gates, pick)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, settings.tune_clip)
        optimizer.step()
    return heads


@torch.no_grad()
def novel_scores(heads: Heads, vectors: Tensor, gates: Tensor) -> Tensor:
    """Probability (N,) float64 that RoIs (N, D) under gates (N, C + 1, D) are V*: softmax over all classes, or sigmoid."""
    if heads.cls.out_features == 1:
        return heads.cls(vectors * gates[:, -1])[:, 0].double().sigmoid()
    return class_logits(heads.cls, vectors, gates).double().softmax(-1)[:, -1]


@torch.no_grad()
def find_novel(model: FewShotDetector, heads: Heads, regions: Regions, gates: Tensor) -> list[tuple[Tensor, float] | None]:
    """V*'s strongest detection (box (4,), score) in each picture under gates (P, C + 1, D); None without a proposal."""
    mine = gates[regions.owner]
    scores = novel_scores(heads, regions.vectors, mine)
    inputs = regions.vectors if model.aggregation.box_on_raw else regions.vectors * mine[:, -1]
    boxes, found = model.refine(heads.box, inputs, regions.boxes), []
    for picture in range(len(regions.maps)):
        rows = torch.nonzero(regions.owner == picture)[:, 0]
        best = rows[scores[rows].argmax()] if len(rows) else None
        found.append(None if best is None else (boxes[best], float(scores[best])))
    return found
