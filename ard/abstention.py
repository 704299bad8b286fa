"""Can the answer be trusted? Each query is asked with and without its source in the gallery (DESIGN 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ard.calibration import Calibration, calibration_error
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


def gallery_maxima(attributions: Mapping[str, Sequence[Attribution]], dataset: Dataset, split: str
                   ) -> tuple[np.ndarray, np.ndarray]:
    """(2 N,) the gallery's highest score for each query, first with its source in the gallery, then without; (2 N,) 1 and 0."""
    samples = {s.sample_id: s for s in dataset.samples[split]}
    with_source, without = [], []
    for sample_id, answers in attributions.items():
        own = positive(samples[sample_id], dataset.gallery[split]).image_id
        with_source.append(max(a.score for a in answers))
        without.append(max(a.score for a in answers if a.image_id != own))
    return np.array(with_source + without), np.repeat([1.0, 0.0], len(with_source))


def abstention(attributions: Mapping[str, Sequence[Attribution]], dataset: Dataset, split: str = "test",
               calibration: Calibration | None = None) -> dict:
    """AUROC, and ECE where scores are probabilities, of the gallery's maximum score as "the source is in here"; with a
    calibration (fitted on another split) the ECE of what it says as well."""
    scores, truth = gallery_maxima(attributions, dataset, split)
    probable = bool((scores >= 0).all() and (scores <= 1).all())
    return {"auroc": round(auroc(scores[truth == 1], scores[truth == 0]), 6), "n_queries": len(scores) // 2,
            "ece": round(calibration_error(scores, truth), 6) if probable else None,
            "ece_calibrated": None if calibration is None else round(calibration_error(calibration(scores), truth), 6)}


def separation(attributions: Mapping[str, Sequence[Attribution]], dataset: Dataset, split: str = "test") -> dict:
    """Does a source score above other images, whatever was asked? AUROC over all queries at once, against negatives of the
    query's class and against all; beside the latter what knowing the class alone gives, which shows why it means little."""
    samples, gallery = {s.sample_id: s for s in dataset.samples[split]}, {im.image_id: im for im in dataset.gallery[split]}
    source, alike, rest = [], [], []
    for sample_id, answers in attributions.items():
        sample = samples[sample_id]
        own = positive(sample, gallery.values()).image_id
        for a in answers:
            shown = sample.class_name in {o.class_name for o in gallery[a.image_id].objects}
            (source if a.image_id == own else alike if shown else rest).append(a.score)
    oracle = auroc(np.ones(len(source)), np.repeat([1.0, 0.0], [len(alike), len(rest)]))
    return {"same_class_auroc": round(auroc(source, alike), 6) if alike else None,
            "all_pairs_auroc": round(auroc(source, alike + rest), 6),
            "class_oracle_all_pairs_auroc": round(oracle, 6)}
