"""Detection quality: average precision at IoU .5, and recall and false positives at one threshold set on base
scenes."""

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.pool import ScenePool
from ard.detector.pretrain import other_individual
from ard.detector.prompts import Phrase, build_prompt
from ard.detector.score import Detections, detect_features
from ard.geometry import box_iou


@dataclass(frozen=True, eq=False)
class Answers:
    """Detections of one class in every scene of a pool, with the truth."""

    label: int
    found: list[Detections]
    truth: list[np.ndarray]  # (n, 4) xyxy per scene


def ask_by_text(
    model: AttributionGroundingDinoForObjectDetection, pool: ScenePool, names: Sequence[str]
) -> list[Answers]:
    """Each class alone, by its name, on every scene: what the stages ask."""
    prompts = [build_prompt([[Phrase(name)]]) for name in names]
    return [
        Answers(c, detect_features(model, pool.features, prompt), _truth(pool, c)) for c, prompt in enumerate(prompts)
    ]


def ask_by_exemplar(
    model: AttributionGroundingDinoForObjectDetection,
    pool: ScenePool,
    names: Sequence[str],
    seed: int,
    with_text: bool = False,
) -> list[Answers]:
    """Each class on every scene by the exemplar of another individual from another scene of the pool."""
    rng = np.random.default_rng(seed)
    answers = []
    for c, name in enumerate(names):
        candidates = np.flatnonzero(pool.label == c)
        chosen = [other_individual(rng, pool, candidates, s) for s in range(len(pool))]
        prompt = build_prompt(
            [
                [Phrase(name if with_text or o is None else None, None if o is None else pool.regions[o].float())]
                for o in chosen
            ]
        )
        answers.append(Answers(c, detect_features(model, pool.features, prompt), _truth(pool, c)))
    return answers


def _truth(pool: ScenePool, label: int) -> list[np.ndarray]:
    return [
        pool.boxes[[o for o in pool.objects_of(s) if pool.label[o] == label]].reshape(-1, 4) for s in range(len(pool))
    ]


def true_positives(boxes: np.ndarray, truth: np.ndarray, iou: float = 0.5) -> np.ndarray:
    """(n,) bool for boxes, strongest first: each takes its best true box still free at `iou` or more (COCO's greedy
    rule)."""
    hit, free = np.zeros(len(boxes), bool), np.ones(len(truth), bool)
    table = box_iou(boxes, truth)
    for i in range(len(boxes)):
        candidates = np.where(free, table[i], 0.0)
        if len(truth) and candidates.max() >= iou:
            hit[i], free[candidates.argmax()] = True, False
    return hit


def average_precision(hits: np.ndarray, scores: np.ndarray, n_truth: int) -> float:
    """Area under the interpolated precision-recall curve; NaN without a true box.

    >>> round(average_precision(np.array([True, False, True]), np.array([.9, .8, .7]), 2), 4)
    0.8333
    """
    if n_truth == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hit = np.cumsum(hits[order])
    precision = np.maximum.accumulate((hit / np.arange(1, len(hit) + 1))[::-1])[::-1]
    return float((precision * hits[order]).sum() / n_truth)


def ap50(answers: Sequence[Answers]) -> float:
    """Mean over classes of the average precision at IoU .5."""
    values = []
    for a in answers:
        hits = np.concatenate([true_positives(d.boxes, t) for d, t in zip(a.found, a.truth)])
        values.append(
            average_precision(hits, np.concatenate([d.scores for d in a.found]), sum(len(t) for t in a.truth))
        )
    return float(np.nanmean(values))


def operating_point(answers: Sequence[Answers], threshold: float) -> tuple[float, float]:
    """(recall of true boxes, share of (scene, class) pairs without the class that get a box) at a threshold."""
    found = total = wrong = empty = 0
    for a in answers:
        for d, truth in zip(a.found, a.truth):
            kept = d.boxes[d.scores >= threshold]
            found, total = found + int(true_positives(kept, truth).sum()), total + len(truth)
            if not len(truth):
                wrong, empty = wrong + bool(len(kept)), empty + 1
    return found / max(total, 1), wrong / max(empty, 1)


def choose_threshold(answers: Sequence[Answers], false_positives: float = 0.05) -> float:
    """Lowest threshold, in steps of .01, with at most this share of false positives on scenes without the class; .95 where none has."""
    for threshold in np.arange(0.05, 0.96, 0.01):
        if operating_point(answers, threshold)[1] <= false_positives:
            return round(float(threshold), 2)
    return 0.95
