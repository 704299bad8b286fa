"""Can the answer be trusted? Each query is asked with and without its source in the gallery (DESIGN 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ard.records import Attribution, Dataset, positive


def auroc(positives, negatives) -> float:
    """Chance that a positive scores above a negative, ties counting half.

    >>> auroc([2, 3], [1, 2])
    0.875
    """
    p, n = np.asarray(positives, np.float64)[:, None], np.asarray(negatives, np.float64)[None]
    if p.size == 0 or n.size == 0:
        raise ValueError("AUROC needs at least one positive and one negative")
    return float(((p > n) + 0.5 * (p == n)).mean())


def calibration_error(confidence, truth, bins: int = 10) -> float:
    """Expected calibration error of confidences in [0, 1] against 0/1 truths, equal-width bins.

    >>> round(calibration_error([.9, .9, .1, .1], [1, 1, 0, 0]), 6)
    0.1
    """
    confidence, truth = np.asarray(confidence, np.float64), np.asarray(truth, np.float64)
    if confidence.size == 0 or confidence.min() < 0 or confidence.max() > 1:
        raise ValueError("calibration needs confidences in [0, 1]")
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(index, confidence, bins) - np.bincount(index, truth, bins)
    return float(np.abs(gaps).sum() / len(truth))


def abstention(attributions: Mapping[str, Sequence[Attribution]], dataset: Dataset, split: str = "test") -> dict:
    """AUROC, and ECE where scores are probabilities, of the gallery's maximum score as "the source is in here"."""
    samples = {s.sample_id: s for s in dataset.samples[split]}
    with_source, without = [], []
    for sample_id, answers in attributions.items():
        own = positive(samples[sample_id], dataset.gallery[split]).image_id
        with_source.append(max(a.score for a in answers))
        without.append(max(a.score for a in answers if a.image_id != own))
    scores = np.array(with_source + without)
    truth = np.repeat([1.0, 0.0], len(with_source))
    probable = bool((scores >= 0).all() and (scores <= 1).all())
    return {"auroc": round(auroc(with_source, without), 6), "n_queries": len(with_source),
            "ece": round(calibration_error(scores, truth), 6) if probable else None}
