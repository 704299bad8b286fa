"""Bootstrap intervals that resample exemplars, not queries: ten queries of one exemplar stand or fall together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval; the bounds are NaN when there are fewer than two clusters to resample."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values, clusters, repeats: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean over queries of `values` (N,), percentile interval over resampled `clusters` (N, any hashable labels).

    >>> bootstrap_mean([1, 1, 0, 0], ["a", "a", "b", "b"])
    Interval(mean=0.5, low=0.0, high=1.0)
    """
    values = np.asarray(values, np.float64)
    if values.size == 0 or values.shape != (len(clusters),) or not np.isfinite(values).all():
        raise ValueError(f"expected one finite value per query, found {values.shape} values, {len(clusters)} clusters")
    _, index = np.unique(np.asarray([str(c) for c in clusters]), return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index).astype(np.float64)
    if len(sums) < 2:
        return Interval(float(values.mean()), float("nan"), float("nan"))
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=repeats)
    low, high = np.quantile(draws @ sums / (draws @ counts), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(a, b, clusters, repeats: int = 2000, seed: int = 0) -> Interval:
    """Mean of a - b over the same queries (N,) with its clustered interval; above 0 means that `a` is better."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must belong to the same queries, found {a.shape} and {b.shape}")
    return bootstrap_mean(a - b, clusters, repeats, seed)
