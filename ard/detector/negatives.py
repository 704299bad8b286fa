"""Which gallery images phase 2 shows beside X (paper, section 4.3; FACTS 1.4, 1.7 d)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ard.detector.phases import PhaseData

Draw = Callable[[np.random.Generator, "PhaseData", int, int], np.ndarray]
MINED_FROM = 4  # times k negatives are drawn and scored where the k strongest of them are wanted


def draw_negatives(rng: np.random.Generator, data: PhaseData, row: int, k: int) -> np.ndarray:
    """(k,) gallery indices other than X, drawn anew at every call: half show the class (where any other does), half
    any."""
    others, alike = _others(data, row)
    hard = rng.choice(alike, min(k // 2, len(alike)), replace=False) if len(alike) else np.empty(0, int)
    rest = np.setdiff1d(others, hard)
    return np.concatenate([hard, rng.choice(rest, min(k - len(hard), len(rest)), replace=False)]).astype(int)


def draw_any(rng: np.random.Generator, data: PhaseData, row: int, k: int) -> np.ndarray:
    """(k,) of all images but X: the released code's `all_negatives`, drawn anew."""
    others, _ = _others(data, row)
    return rng.choice(others, min(k, len(others)), replace=False)


def draw_same(rng: np.random.Generator, data: PhaseData, row: int, k: int) -> np.ndarray:
    """(k,) images that show the class, filled up with others: the released code's `hard_negatives`, drawn anew."""
    others, alike = _others(data, row)
    hard = rng.permutation(alike)[:k]
    rest = rng.permutation(np.setdiff1d(others, alike))[: k - len(hard)]
    return np.concatenate([hard, rest]).astype(int)


def draw_constant(rng: np.random.Generator, data: PhaseData, row: int, k: int) -> np.ndarray:
    """(k,) images at the same places of "all but X" in every step: the released code seeds its generator with 42 before
    every draw."""
    return draw_any(np.random.default_rng(42), data, row, k)


# "mined" draws `MINED_FROM` times as many as `draw_negatives`; the loss keeps the strongest (`phases.phase2_loss`)
NEGATIVES: dict[str, Draw] = {"mixed": draw_negatives, "any": draw_any, "same": draw_same, "constant": draw_constant,
                              "mined": lambda rng, data, row, k: draw_negatives(rng, data, row, MINED_FROM * k)}


def _others(data: PhaseData, row: int) -> tuple[np.ndarray, list[int]]:
    """Every image but X, and those of them that show the class of the query."""
    others = np.delete(np.arange(len(data.shown)), data.source[row])
    return others, [g for g in others if data.names[row] in data.shown[g]]
