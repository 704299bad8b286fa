"""From scores to chances: how likely is each image of a gallery the source, and how likely is the source none of them? (DESIGN 8)

A conditional logit with an outside option (McFadden 1974): exactly one image is the source, or none is. Two readings of a
detector have their say (`ard.detector.tied`), and how well the other images answer to the same query counts against each: some
queries find likenesses everywhere. Speaker verification norms its scores by a cohort of impostors (Auckenthaler et al. 2000); the
cohort here is the gallery. Fitted to validation queries (`ard.calibration.calibrate`), kept in a detector's configuration, measured
by `ard.abstention` and `ard.presence`. Not in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import logit, logsumexp

PRIOR_SCALE = 10.0  # standard deviation of the weak prior on what is fitted, but for the offset
NO_OTHERS = 0.05  # odds added to the mean of the others', about those of another image of the class: there may be none


@dataclass(frozen=True)
class Chances:
    """One query's scores in (0, 1) -> the chance of each image to be its source.

    An image's score s, and r by which images are ranked, speak for it with odds of exp(slope * logit(s) + strength * logit(r)
    - others * log(NO_OTHERS + mean odds r / (1 - r) of the other images) + offset), to be shared with all other images: among
    more of them, the same best score says less.
    """

    slope: float
    offset: float
    others: float = 0.0
    strength: float = 0.0

    def __call__(self, scores, ranked=None, prior: float = 0.5) -> np.ndarray:
        """(..., n) scores of a query's gallery -> (..., n) chance of each image; what their sum lacks of 1 is that of none.

        ranked: (..., n) scores by which the images are ranked, where these are others. prior: chance, before looking, that the
        gallery holds the source, each of its images alike. A score of NaN is no image. Raises ValueError for a prior that is not
        between 0 and 1, a score that is not in [0, 1], or scores of other images than `ranked`.
        """
        return np.exp(self._logs(scores, ranked, prior)[..., :-1])

    def of_any(self, scores, ranked=None, prior: float = 0.5) -> np.ndarray:
        """(..., n) scores -> (...,) the sum of these chances, in [0, 1]: that the gallery holds the source."""
        return -np.expm1(self._logs(scores, ranked, prior)[..., -1])

    def _logs(self, scores, ranked, prior: float) -> np.ndarray:
        if not 0 < prior < 1:
            raise ValueError(f"prior: expected a chance between 0 and 1, found {prior}")
        weights = [self.slope, self.offset + np.log(prior / (1 - prior)), self.others, self.strength]
        return _log_chances(_evidence(scores, ranked), weights)


def fit_chances(scores, source, ranked=None) -> Chances:
    """The chances of greatest likelihood, with a weak prior, when each query is asked twice: with its source in the gallery, and with
    it taken out.

    scores: (Q, n) in [0, 1], a row for each query. source: (Q,) column of its source. ranked: (Q, n) scores by which images are
    ranked; without them `strength` is 0. Raises ValueError without queries.
    """
    scores, source = np.asarray(scores, np.float64), np.asarray(source)
    if not scores.size:
        raise ValueError("chances: expected the scores of at least one query")
    rows, whole = np.arange(len(scores)), _evidence(scores, ranked)
    rest = _evidence(without_source(scores, source), None if ranked is None else without_source(ranked, source))

    def loss(weights: np.ndarray) -> float:
        there, none = (_log_chances(x, weights) for x in (whole, rest))
        slopes = np.delete(weights, 1)
        return -there[rows, source].sum() - none[:, -1].sum() + 0.5 * ((slopes / PRIOR_SCALE) ** 2).sum()

    found = minimize(loss, [1.0, 0.0, 0.0] if ranked is None else [1.0, 0.0, 0.0, 0.0], method="BFGS").x
    return Chances(*(round(float(weight), 6) for weight in found))


def without_source(scores, source: np.ndarray) -> np.ndarray:
    """A copy of the scores (Q, n) in which each query's own source, column (Q,), is no image: NaN."""
    rest = np.array(scores, np.float64)
    rest[np.arange(len(rest)), source] = np.nan
    return rest


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


def _evidence(scores, ranked) -> np.ndarray:
    """(..., n, 4) what stands beside slope, offset, others and strength; NaN where no image is."""
    own, rank = _log_odds(scores), _log_odds(scores if ranked is None else ranked)
    if own.shape != rank.shape or (np.isnan(own) != np.isnan(rank)).any():
        raise ValueError("chances: expected two readings of the same images")
    odds, there = np.exp(rank), ~np.isnan(rank)
    rest = np.nansum(odds, -1, keepdims=True) - odds
    mean = np.maximum(rest, 0) / np.maximum(there.sum(-1, keepdims=True) - 1, 1)
    return np.stack([own, np.where(there, 1.0, np.nan), -np.log(NO_OTHERS + mean), rank], -1)


def _log_chances(evidence: np.ndarray, weights) -> np.ndarray:
    """(..., n, 4), weights of the first of these four -> (..., n + 1) log of the chance of each image, and last of none."""
    odds = evidence[..., : len(weights)] @ np.asarray(weights)
    there = ~np.isnan(odds)
    shared = np.where(there, odds, -np.inf) - np.log(np.maximum(there.sum(-1, keepdims=True), 1))
    logits = np.concatenate([shared, np.zeros((*shared.shape[:-1], 1))], -1)
    return logits - logsumexp(logits, -1, keepdims=True)
