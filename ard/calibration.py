"""From a score to a chance: how often is the source in the gallery when its best score is this high? (DESIGN 8)

Fitted to validation queries (`ard.validation.calibrate`), kept in a detector's configuration, measured by `ard.abstention`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression


@dataclass(frozen=True)
class Calibration:
    """Score in (0, 1) -> chance that the gallery holds the source: a logistic curve over the score's log odds (Platt 1999)."""

    slope: float
    offset: float

    def __call__(self, scores) -> np.ndarray:
        return expit(self.slope * _log_odds(scores) + self.offset)


def fit_calibration(scores, truth) -> Calibration:
    """The curve of greatest likelihood, with a weak prior on its slope; `scores` in [0, 1], `truth` 0/1, both kinds there."""
    fitted = LogisticRegression(C=100.0).fit(_log_odds(scores)[:, None], np.asarray(truth))
    return Calibration(round(float(fitted.coef_[0, 0]), 6), round(float(fitted.intercept_[0]), 6))


def _log_odds(scores) -> np.ndarray:
    return logit(np.clip(np.asarray(scores, np.float64), 1e-6, 1 - 1e-6))


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
