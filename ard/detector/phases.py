"""The two phases of the AR detector (paper, section 4; FACTS 1.3, 12): AD+ without F and F~, then F and F~ alone
against AD-.

Both read frozen features of both mirror images of every picture, so X and R_X (Q and R_Q) always move together.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ard.detector.criterion import SETTINGS, make_targets, set_loss
from ard.detector.features import IMAGE_SIZE, FeatureCache, region_vectors
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.prompts import Phrase, build_prompt, phrase_map
from ard.detector.train import Batch, TrainSettings, supervised_loss, train
from ard.geometry import Transform, to_cxcywh
from ard.records import Dataset, Sample

FLIPS = (Transform(IMAGE_SIZE, IMAGE_SIZE), Transform(IMAGE_SIZE, IMAGE_SIZE).hflip())


@dataclass(frozen=True, eq=False)
class PhaseData:
    """AD+ of a split as tensors; the first axis of the first three is the mirroring (0 as it is, 1 mirrored)."""

    gallery: Tensor  # (2, G, PACKED) float16
    queries: Tensor  # (2, S, REGION) float16: region vectors of R_Q
    boxes: np.ndarray  # (2, S, 4) R_X cxcywh in [0, 1]
    source: np.ndarray  # (S,) index of X in the gallery
    names: tuple[str, ...]  # (S,) class names
    shown: tuple[frozenset[str], ...]  # (G,) classes known to be in each gallery image


def load_phase_data(
    dataset: Dataset, split: str, cache: FeatureCache, samples: Sequence[Sample] | None = None
) -> PhaseData:
    """Encode the gallery and the queries of a split (or of the chosen samples) in both mirrorings."""
    samples = dataset.samples[split] if samples is None else samples
    images = dataset.gallery[split]
    where = {image.file: i for i, image in enumerate(images)}
    pictures = [dataset.pixels(image.file) for image in images]
    gallery = torch.stack([cache(np.stack([t.image(p) for p in pictures])) for t in FLIPS])
    queries = torch.stack([_query_vectors(dataset, samples, t, cache) for t in FLIPS])
    boxes = np.stack(
        [
            to_cxcywh(np.concatenate([t.boxes([s.exemplar_box], 0)[0] for s in samples]), IMAGE_SIZE, IMAGE_SIZE)
            for t in FLIPS
        ]
    )
    return PhaseData(
        gallery,
        queries,
        boxes,
        np.array([where[s.exemplar_file] for s in samples]),
        tuple(s.class_name for s in samples),
        tuple(frozenset(o.class_name for o in im.objects) for im in images),
    )


def _query_vectors(dataset: Dataset, samples: Sequence[Sample], transform: Transform, cache: FeatureCache) -> Tensor:
    """Region vectors (S, REGION) float16 of R_Q, image and box moved by one transform."""
    pictures = [transform.image(dataset.pixels(s.query_file)) for s in samples]
    return picture_regions(cache, pictures, np.concatenate([transform.boxes([s.query_box], 0)[0] for s in samples]))


def picture_regions(
    encode: Callable[[np.ndarray], Tensor], pictures: Sequence[np.ndarray], boxes: np.ndarray, batch: int = 64
) -> Tensor:
    """Region vectors (B, REGION) float16 of one box xyxy pixels (B, 4) in each of B pictures, encoded batch by batch.

    encode: `image_features` or a `FeatureCache`.
    """
    parts = []
    for start in range(0, len(pictures), batch):
        features = encode(np.stack(pictures[start : start + batch]))
        parts.append(region_vectors(features, torch.from_numpy(boxes[start : start + batch])).half())
    return torch.cat(parts)


def unwatched(loss_of: Callable) -> Callable:
    """The loss as it is."""
    return loss_of


# ---- phase 1 ---------------------------------------------------------------------------------------------------------
def phase1_batches(
    data: PhaseData,
    names: Sequence[str],
    batch_size: int,
    other_names: int = 4,
    rivals: int = 0,
    absent: float = 0.0,
) -> Callable[[np.random.Generator], Batch]:
    """Positives only: X asked for its class phrase with the exemplar of Q, among up to `other_names` other class names.

    `rivals` adds phrases with the exemplar of another image's query, half of them of the same class, which X does not
    answer, and a share `absent` of the captions leaves out what X does answer: not in the paper (0 and 0), but the
    cheapest way to teach identity before phase 2.
    """
    if absent and not rivals:
        raise ValueError("absent: a caption without its own phrase needs rivals, found rivals 0")

    everything, named = np.arange(len(data.source)), np.array(data.names)
    by_name = {name: np.flatnonzero(named == name) for name in set(data.names)}

    def make(rng: np.random.Generator) -> Batch:
        rows, flip_x, flip_q = rng.integers(len(data.source), size=batch_size), *rng.integers(2, size=(2, batch_size))
        captions, labels, wanted = [], [], []
        for n, (row, flip) in enumerate(zip(rows, flip_q)):
            there = absent == 0 or rng.random() >= absent
            phrases = [Phrase(data.names[row], data.queries[flip, row].float())] if there else []
            alike = by_name[data.names[row]]
            phrases += [_rival(rng, data, row, alike if rng.random() < 0.5 else everything) for _ in range(rivals)]
            free = [n for n in names if n != data.names[row] and n not in data.shown[data.source[row]]]
            count = min(int(rng.integers(other_names + 1)), len(free))
            phrases += [Phrase(str(n)) for n in rng.choice(free, count, replace=False)] if count else []
            order = rng.permutation(len(phrases))
            captions.append([phrases[i] for i in order])
            labels.append([int(np.flatnonzero(order == 0)[0])] if there else [])
            wanted.append(data.boxes[flip_x[n], row][None] if there else np.empty((0, 4)))
        prompt = build_prompt(captions)
        return Batch(
            data.gallery[torch.from_numpy(flip_x), torch.from_numpy(data.source[rows])],
            prompt,
            make_targets(wanted, labels, phrase_map(prompt)),
        )

    return make


def _rival(rng: np.random.Generator, data: PhaseData, row: int, candidates: np.ndarray) -> Phrase:
    """The query of a concept learned from another image, among `candidates` when they hold one."""
    others = candidates[data.source[candidates] != data.source[row]]
    chosen = int(rng.choice(others if len(others) else np.flatnonzero(data.source != data.source[row])))
    return Phrase(data.names[chosen], data.queries[rng.integers(2), chosen].float())


def train_phase1(
    model: AttributionGroundingDinoForObjectDetection,
    data: PhaseData,
    names: Sequence[str],
    settings: TrainSettings,
    folder: str | Path,
    other_names: int = 4,
    rivals: int = 0,
    absent: float = 0.0,
    watched: Callable[[Callable], Callable] = unwatched,
) -> list[dict]:
    """ARD-: everything trainable but F and F~, in place, starting from the exemplar-prompted detector.

    watched: puts something that is done at every step around the loss, such as a look at validation.
    """
    model.set_adapters(False)
    set_trainable(model, adapters=False)
    batches = phase1_batches(data, names, settings.batch_size, other_names, rivals, absent)
    return train(model, batches, settings, folder, watched(supervised_loss(settings)), name="phase 1")


# ---- phase 2 ---------------------------------------------------------------------------------------------------------
def draw_negatives(rng: np.random.Generator, data: PhaseData, row: int, k: int) -> np.ndarray:
    """(k,) gallery indices other than X, drawn anew at every call: half show the class (where any other does), half
    any."""
    others = np.delete(np.arange(len(data.shown)), data.source[row])
    alike = [g for g in others if data.names[row] in data.shown[g]]
    hard = rng.choice(alike, min(k // 2, len(alike)), replace=False) if alike else np.empty(0, int)
    rest = np.setdiff1d(others, hard)
    return np.concatenate([hard, rng.choice(rest, min(k - len(hard), len(rest)), replace=False)]).astype(int)


def phase2_batches(data: PhaseData, positives: int, k: int = 4) -> Callable[[np.random.Generator], Batch]:
    """`positives` pairs (X, Q), each followed by the same query on k negatives, which have no target."""

    def make(rng: np.random.Generator) -> Batch:
        features, captions, boxes, labels = [], [], [], []
        for row in rng.integers(len(data.source), size=positives):
            flip_x, flip_q = rng.integers(2, size=2)
            images = [int(data.source[row]), *draw_negatives(rng, data, row, k)]
            features += [data.gallery[flip_x if i == 0 else rng.integers(2), g] for i, g in enumerate(images)]
            captions += [[Phrase(data.names[row], data.queries[flip_q, row].float())]] * len(images)
            boxes += [data.boxes[flip_x, row][None], *[np.empty((0, 4))] * (len(images) - 1)]
            labels += [[0], *[[]] * (len(images) - 1)]
        prompt = build_prompt(captions)
        return Batch(torch.stack(features), prompt, make_targets(boxes, labels, phrase_map(prompt)))

    return make


def orthogonality(matrix: Tensor) -> Tensor:
    """||W W^T - I||, the paper's un-squared Frobenius norm; its gradient at W = I is 0/0, hence the floor under the
    root."""
    gap = matrix @ matrix.T - torch.eye(len(matrix))
    return (gap.square().sum() + 1e-12).sqrt()


def phase2_loss(settings: TrainSettings, lambda_cls: float = 1.0, lambda_reg: float = 0.5) -> Callable:
    """Paper, eq. 2 and 3: focal loss (targets all zero on negatives) + lambda_reg / 2 (||F F^T - I|| + ||F~ F~^T -
    I||)."""
    weights = SETTINGS[settings.losses]

    def loss(model: AttributionGroundingDinoForObjectDetection, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():
            match = model.match(batch.features, batch.prompt, adapted=False)
        head = model.score_head
        logits = head(match.regions, match.tokens, match.present, adapted=True).float() + match.likeness
        found = float(batch.targets.real.sum().clamp(min=1))
        focal = set_loss(logits, match.layer_boxes[:, -1], batch.targets, weights, found)["class"]
        matrices = [m for m in (head.region.matrix(), head.token.matrix()) if m is not None]
        penalty = 0.5 * sum(map(orthogonality, matrices), torch.zeros(()))
        total = lambda_cls * focal + lambda_reg * penalty
        return total, {
            "loss": float(total.detach()),
            "class": float(focal.detach()),
            "orthogonality": float(penalty.detach()),
        }

    return loss


def set_trainable(model: nn.Module, adapters: bool) -> None:
    """Phase 2 (`adapters`) trains F and F~ alone, phase 1 everything else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("score_head.region.", "score_head.token.")) == adapters)


def train_phase2(
    model: AttributionGroundingDinoForObjectDetection,
    data: PhaseData,
    settings: TrainSettings,
    folder: str | Path,
    k: int = 4,
    lambda_cls: float = 1.0,
    lambda_reg: float = 0.5,
    adapter: str = "linear",
    watched: Callable[[Callable], Callable] = unwatched,
) -> list[dict]:
    """ARD: F and F~ from the identity, everything else as phase 1 left it; `batch_size` counts positives.

    adapter: what F and F~ are, a key of `score_head.ADAPTERS`; the paper's are linear.
    """
    model.renew_adapters(adapter)
    model.set_adapters(True)
    set_trainable(model, adapters=True)
    batches = phase2_batches(data, settings.batch_size, k)
    return train(model, batches, settings, folder, watched(phase2_loss(settings, lambda_cls, lambda_reg)), name="phase 2")
