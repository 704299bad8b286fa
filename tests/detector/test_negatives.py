"""Negatives of phase 2: never X, as many as asked, and as varied as their name says."""

import numpy as np
import pytest

from ard.detector.negatives import MINED_FROM, NEGATIVES


def draws(data, kind, k, times=30):
    rng = np.random.default_rng(0)
    return [NEGATIVES[kind](rng, data, 0, k) for _ in range(times)]


@pytest.mark.parametrize("kind", NEGATIVES)
def test_never_the_source_and_none_twice(phase_data, kind):
    k = 2
    for drawn in draws(phase_data, kind, k):
        assert 0 not in drawn and len(set(drawn)) == len(drawn) == (MINED_FROM * k if kind == "mined" else k)


def test_same_shows_the_class_then_fills_up(phase_data):
    alike = {g for g in range(1, 12) if "cat" in phase_data.shown[g]}
    assert all(set(drawn) <= alike for drawn in draws(phase_data, "same", 2))
    assert all(alike < set(drawn) and len(drawn) == 5 for drawn in draws(phase_data, "same", 5))


def test_any_is_fresh_and_constant_is_not(phase_data):
    assert len({tuple(d) for d in draws(phase_data, "any", 3)}) > 20
    assert len({tuple(d) for d in draws(phase_data, "constant", 3)}) == 1
