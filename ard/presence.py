"""Is the source in the gallery at all? How well methods tell, side by side, and ARD in galleries of any size (DESIGN 8; `ard.chances`).

Which image it is, a measure of likeness may tell as well as a detector; this asks what else was learned. Notebook 31 asks it of the
second test set, notebook 08 in galleries drawn at random from the first.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from ard.abstention import asked_twice, auroc, gallery_scores
from ard.chances import Chances, calibration_error
from ard.records import Attribution, Dataset

REPEATS = 2000


def sureness(ranked: Mapping[str, Sequence[Attribution]], judged: Mapping[str, Sequence[Attribution]], chances: Chances,
             dataset: Dataset, split: str = "test", sizes: Sequence[int] = (5, 10, 20, 40), draws: int = 10, seed: int = 0) -> list[dict]:
    """A row for each of `sizes` below that of the gallery, and one for the whole. Each query is asked `draws` times among its
    source and n - 1 images drawn at random, and among n drawn without it (of the whole gallery once, without it n - 1).

    `sure`: mean chance that the source is there, which it is in half; `ece`, `auroc`: how well that tells. `right`: share in which
    the strongest image is the source; `claimed`: mean chance it is given; `ece_right`: how well that tells. Which is strongest is
    read from `ranked`, chances from `judged` and `ranked`, answers to the same queries (ValueError if not).
    """
    if list(ranked) != list(judged):
        raise ValueError("sureness: expected the same queries, ranked and judged")
    (strength, source), (scores, _) = (gallery_scores(found, dataset, split) for found in (ranked, judged))
    rng, rows, (queries, whole) = np.random.default_rng(seed), [], scores.shape
    for n in [*(n for n in sizes if n < whole), whole]:
        galleries = [g for _ in range(draws if n < whole else 1) for g in drawn(rng, source, whole, n)]
        told = [_told(*(np.where(g, x, np.nan) for x in (strength, scores)), source, chances) for g in galleries]
        there, sure, right, claimed = np.concatenate(told, 1)
        row = {"sure": sure.mean(), "ece": calibration_error(sure, there), "auroc": auroc(sure[there == 1], sure[there == 0]),
               "right": right.mean(), "claimed": claimed.mean(), "ece_right": calibration_error(claimed, right)}
        rows.append({"gallery_size": n, "n_queries": queries, **{name: round(float(value), 6) for name, value in row.items()}})
    return rows


def drawn(rng: np.random.Generator, source: np.ndarray, whole: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `whole` images stand in a gallery of n that holds each query's source, and in one that does not: (Q, whole) twice."""
    order = rng.random((len(source), whole))
    order[np.arange(len(source)), source] = -1
    place = order.argsort(1).argsort(1)  # 0 is the source
    return place < n, (place > 0) & (place <= n)


def _told(strength: np.ndarray, scores: np.ndarray, source: np.ndarray, chances: Chances) -> np.ndarray:
    """(4, Q): is the source there, how likely is that said to be; is the strongest image the source, and how likely is that?"""
    rows, first = np.arange(len(source)), np.nanargmax(strength, 1)
    there = ~np.isnan(scores[rows, source])
    return np.stack([there, chances.of_any(scores, strength), there & (first == source), chances(scores, strength)[rows, first]])


def unit(similarity) -> np.ndarray:
    """Cosines, -1 to 1, as scores in [0, 1] of the same order; 0 for an image in which nothing was found (-inf)."""
    return (1 + np.maximum(np.asarray(similarity, np.float64), -1)) / 2


def sure(chances: Chances, scores: np.ndarray, source: np.ndarray, ranked: np.ndarray | None = None) -> np.ndarray:
    """(2, Q) how sure a method is that the source is there, of each query asked with it in the gallery, and without.

    scores, source: (Q, n), (Q,) as of `ard.abstention.gallery_scores`. ranked: (Q, n) scores by which images are ranked, if others.
    """
    twice = [None if of is None else asked_twice(of, source)[0] for of in (scores, ranked)]
    return chances.of_any(*twice).reshape(2, -1)


def presence(said: Mapping[str, np.ndarray], owners: Sequence[Hashable]) -> list[dict]:
    """A row for each method of `said` (`sure`, of the same queries), the first of them the one that others are compared with.

    `auroc`: how often what is said with a source there is above what is said without, over all pairs of queries; `minus`: the
    method's less the first's; `ece`, and `sure`, the mean of all, where one half is right.

    Intervals, `_low` and `_high`, resample exemplars, the owners of the queries, and are NaN where there is but one. Raises
    ValueError where methods were not asked as many queries as have `owners`.
    """
    first, times = next(iter(said)), counts([str(o) for o in owners], REPEATS)
    if {of.shape for of in said.values()} != {(2, len(owners))}:
        raise ValueError(f"presence: expected two numbers a query, of {len(owners)} queries, from each method")
    times = np.tile(times if len(set(map(str, owners))) > 1 else np.full(times.shape, np.nan), 2)
    there = np.repeat([True, False], len(owners))
    resampled = {name: aurocs(of.ravel(), there, times) for name, of in said.items()}
    rows = []
    for name, of in said.items():
        one, other = auroc(*of), auroc(*said[first])
        row = {"method": name, "n_queries": len(owners), **resampled_bounds("auroc", one, resampled[name])}
        row |= resampled_bounds("minus", one - other, resampled[name] - resampled[first])
        ece = calibration_error(of.ravel(), there)
        rows.append(row | {"ece": round(ece, 6), "sure": round(float(of.mean()), 6)})
    return rows


def counts(owners: Sequence, repeats: int) -> np.ndarray:
    """(repeats, Q) how often each query counts when its owners (Q,) are resampled."""
    _, index = np.unique(np.asarray(owners), return_inverse=True)
    n = int(index.max()) + 1
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), repeats)[:, index]


def aurocs(scores: np.ndarray, truth: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(B,) AUROC of scores (Q,) for truth (Q,) bool where query q counts as often as `times` (B, Q) says; NaN with one kind alone."""
    above = (scores[truth][:, None] > scores[~truth][None]) + 0.5 * (scores[truth][:, None] == scores[~truth][None])
    there, absent = times[:, truth].astype(float), times[:, ~truth].astype(float)
    with np.errstate(invalid="ignore"):
        return ((there @ above) * absent).sum(1) / (there.sum(1) * absent.sum(1))


def resampled_bounds(name: str, value: float, resampled: np.ndarray) -> dict[str, float]:
    """A value and, in `name`_low and `name`_high, the bounds of its 95% interval, of what it is under each draw."""
    known = resampled[np.isfinite(resampled)]  # a draw may hold queries of one kind alone
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return {key: round(float(x), 6) for key, x in ((name, value), (f"{name}_low", low), (f"{name}_high", high))}
