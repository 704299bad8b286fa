"""Can the answer be trusted? Each query is asked with and without its source in the gallery (DESIGN 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ard.chances import Chances, calibration_error, without_source
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


def gallery_scores(attributions: Mapping[str, Sequence[Attribution]], dataset: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(Q, n) the score of each image of the gallery, in its order, for each query; (Q,) the place of its source in it."""
    samples, place = {s.sample_id: s for s in dataset.samples[split]}, {im.image_id: i for i, im in enumerate(dataset.gallery[split])}
    scores = np.full((len(attributions), len(place)), np.nan)
    for row, answers in zip(scores, attributions.values()):
        row[[place[a.image_id] for a in answers]] = [a.score for a in answers]
    return scores, np.array([place[positive(samples[name], dataset.gallery[split]).image_id] for name in attributions])


def asked_twice(scores: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(2 Q, n) the scores with the sources in the gallery, then with each query's own taken out (NaN); (2 Q,) 1 and 0."""
    return np.concatenate([scores, without_source(scores, source)]), np.repeat([1.0, 0.0], len(scores))


def abstention(attributions: Mapping[str, Sequence[Attribution]], dataset: Dataset, split: str = "test",
               chances: Chances | None = None, ranked: Mapping[str, Sequence[Attribution]] | None = None) -> dict:
    """AUROC, and ECE where scores are probabilities, of the gallery's maximum score as "the source is in here"; with chances
    (fitted on another split) the ECE of what they say as well, to the answers by which images are `ranked` too if these are
    others. Raises ValueError for those of other queries."""
    if ranked is not None and list(ranked) != list(attributions):
        raise ValueError("abstention: expected answers to the same queries")
    scores, there = asked_twice(*gallery_scores(attributions, dataset, split))
    other = None if ranked is None else asked_twice(*gallery_scores(ranked, dataset, split))[0]
    best = np.nanmax(scores, 1)
    probable = bool((best >= 0).all() and (best <= 1).all())
    return {"auroc": round(auroc(best[there == 1], best[there == 0]), 6), "n_queries": len(attributions),
            "ece": round(calibration_error(best, there), 6) if probable else None,
            "ece_calibrated": None if chances is None else round(calibration_error(chances.of_any(scores, other), there), 6)}


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
