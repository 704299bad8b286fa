"""AbC's influence scores: similarities become shares of one, by a softmax whose temperature is calibrated on AD+ train.

After any ranking by similarity, which it leaves as it is (Wang et al. 2023, section 4.2 and equation 5; supplement 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax


@dataclass(frozen=True, eq=False)
class Kept:
    """What calibration needs of Q queries against N images: R similarities of each, and the mean of the others."""

    truth: np.ndarray  # (Q,) mean similarity of a query's exemplars
    exemplars: np.ndarray  # (Q,) how many they are
    top: np.ndarray  # (Q, R) similarities of the exemplars and of the strongest other images
    rest: np.ndarray  # (Q,) mean similarity of the other N - R images, 0 where there are none
    left: int  # N - R


def keep(similarity: np.ndarray, exemplar: np.ndarray, top: int) -> Kept:
    """similarity (Q, N), exemplar (Q, N) bool; top: R, published 100,000 of a million. With R >= N nothing is approximated.

    ValueError: a query without an exemplar, or with more than R.
    """
    similarity, exemplar = np.asarray(similarity, np.float64), np.asarray(exemplar, bool)
    count, top = exemplar.sum(1), min(top, similarity.shape[1])
    if similarity.shape != exemplar.shape or not count.all() or count.max() > top:
        raise ValueError(f"expected similarities and exemplars of one shape, with 1 to {top} exemplars a query; found shapes "
                         f"{similarity.shape} and {exemplar.shape}, {count.min()} to {count.max()} exemplars")
    order = np.argsort(np.where(exemplar, -np.inf, -similarity), axis=1, kind="stable")
    ordered, left = np.take_along_axis(similarity, order, 1), similarity.shape[1] - top
    rest = ordered[:, top:].mean(1) if left else np.zeros(len(ordered))
    return Kept((similarity * exemplar).sum(1) / count, count, ordered[:, :top], rest, left)


def divergence(kept: Kept, tau: float) -> float:
    """Sum over the queries of KL(uniform on the exemplars || softmax of similarity / tau), the objective of calibration.

    With images left out it is a LOWER bound: by Jensen's inequality they weigh at least (N - R) exp(mean / tau), so the
    softmax's denominator is too small. (The supplement's "upper bound" holds for its equation 1 as printed, without the
    minus sign.) The bound rises with R and is exact where one image or none is left.
    """
    terms, weights = _terms(kept)
    return float((logsumexp(terms / tau, b=weights, axis=1) - kept.truth / tau - np.log(kept.exemplars)).sum())


def calibrate(kept: Kept, low: float = 1e-3, high: float = 10.0) -> float:
    """The temperature in [low, high] with the least `divergence`.

    In 1 / tau the divergence is convex, so its only stationary point is the minimum. Where every exemplar outranks all
    other images there is none and the answer is `low`; where exemplars lie below the average it is `high`.
    """
    terms, weights = _terms(kept)

    def slope(sharpness: float) -> float:
        share = softmax(terms * sharpness + np.log(weights), axis=1)
        return float(((share * terms).sum(1) - kept.truth).sum())

    if slope(1 / low) <= 0:
        return low
    if slope(1 / high) >= 0:
        return high
    return float(1 / brentq(slope, 1 / high, 1 / low, xtol=1e-9))


def influence(similarity: np.ndarray, tau: float) -> np.ndarray:
    """Shares (..., N) of each image in a query, by its similarities (..., N).

    >>> influence(np.array([1.0, 1.0, 0.0, 0.0]), tau=0.01).round(6).tolist()
    [0.5, 0.5, 0.0, 0.0]
    """
    return softmax(np.asarray(similarity, np.float64) / tau, axis=-1)


def _terms(kept: Kept) -> tuple[np.ndarray, np.ndarray]:
    """Similarities (Q, R or R + 1) and how many images each stands for (R or R + 1,)."""
    if not kept.left:
        return kept.top, np.ones(kept.top.shape[1])
    return np.column_stack([kept.top, kept.rest]), np.append(np.ones(kept.top.shape[1]), kept.left)
