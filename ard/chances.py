"""From scores to chances: how likely is each image of a gallery the source, and how likely is the source none of them? (DESIGN 8)

A conditional logit with an outside option (McFadden 1974): exactly one image is the source, or none is. Fitted to validation
queries (`ard.calibration.calibrate`), kept in a detector's configuration, measured by `ard.abstention`. Not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import logit, logsumexp

PRIOR_SCALE = 10.0  # standard deviation of the weak prior on a slope


@dataclass(frozen=True)
class Chances:
    """One query's scores in (0, 1) -> the chance of each image to be its source.

    A score s speaks for its image with odds of exp(slope * logit(s) + offset), to be shared with all other images: among more of
    them, the same best score says less.
    """

    slope: float
    offset: float

    def __call__(self, scores, prior: float = 0.5) -> np.ndarray:
        """(..., n) scores of a query's gallery -> (..., n) chance of each image; what their sum lacks of 1 is that of none.

        prior: chance, before looking, that the gallery holds the source, each of its images alike. A score of NaN is no image.
        Raises ValueError for a prior that is not between 0 and 1, or a score that is not in [0, 1].
        """
        return np.exp(self._logs(scores, prior)[..., :-1])

    def of_any(self, scores, prior: float = 0.5) -> np.ndarray:
        """(..., n) scores -> (...,) the sum of these chances, in [0, 1]: that the gallery holds the source."""
        return -np.expm1(self._logs(scores, prior)[..., -1])

    def _logs(self, scores, prior: float) -> np.ndarray:
        if not 0 < prior < 1:
            raise ValueError(f"prior: expected a chance between 0 and 1, found {prior}")
        return _log_chances(_log_odds(scores), self.slope, self.offset + np.log(prior / (1 - prior)))


def fit_chances(scores, source) -> Chances:
    """The chances of greatest likelihood, with a weak prior on the slope, when each query is asked twice: with its source in the
    gallery, and with it taken out.

    scores: (Q, n) in [0, 1], a row for each query. source: (Q,) column of its source. Raises ValueError without queries.
    """
    whole, source = _log_odds(scores), np.asarray(source)
    if not whole.size:
        raise ValueError("chances: expected the scores of at least one query")
    rows, rest = np.arange(len(whole)), whole.copy()
    rest[rows, source] = np.nan

    def loss(parameters: np.ndarray) -> float:
        there, none = (_log_chances(x, *parameters) for x in (whole, rest))
        return -there[rows, source].sum() - none[:, -1].sum() + 0.5 * (parameters[0] / PRIOR_SCALE) ** 2

    slope, offset = minimize(loss, [1.0, 0.0], method="BFGS").x
    return Chances(round(float(slope), 6), round(float(offset), 6))


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


def _log_odds(scores) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if ((scores < 0) | (scores > 1)).any():
        raise ValueError("chances: expected scores in [0, 1]")
    return logit(np.clip(scores, 1e-6, 1 - 1e-6))


def _log_chances(log_odds: np.ndarray, slope: float, offset: float) -> np.ndarray:
    """(..., n) with NaN where no image is -> (..., n + 1) log of the chance of each, and last of none."""
    there = ~np.isnan(log_odds)
    shared = np.where(there, slope * log_odds + offset, -np.inf) - np.log(np.maximum(there.sum(-1, keepdims=True), 1))
    logits = np.concatenate([shared, np.zeros((*shared.shape[:-1], 1))], -1)
    return logits - logsumexp(logits, -1, keepdims=True)
