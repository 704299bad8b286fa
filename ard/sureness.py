"""Do chances say what happens, in galleries of any size? (DESIGN 8; `ard.chances`)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ard.abstention import auroc, gallery_scores
from ard.chances import Chances, calibration_error
from ard.records import Attribution, Dataset


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
