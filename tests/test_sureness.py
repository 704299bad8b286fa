"""Sureness against answers of which everything is known."""

import numpy as np
import pytest

from ard.chances import Chances
from ard.sureness import drawn, sureness
from tests.test_metrics import answers, world

SHARP = Chances(4.0, 12.0)


def test_galleries_that_are_drawn_hold_the_source_or_do_not():
    source = np.arange(7) % 5
    with_it, without = drawn(np.random.default_rng(0), source, 5, 3)
    assert (with_it.sum(1) == 3).all() and (without.sum(1) == 3).all()
    assert with_it[np.arange(7), source].all() and not without[np.arange(7), source].any()
    assert all(g.sum(1).tolist() == [n] * 7 for g, n in zip(drawn(np.random.default_rng(0), source, 5, 5), (5, 4)))
    many = sum(drawn(np.random.default_rng(i), source, 5, 3)[1].astype(int) for i in range(300))
    assert (abs(many - 225)[many > 0] < 50).all(), "each of the others as often"


def test_who_knows_the_source_is_sure_and_right():
    data = world(12, seed=3)
    found = answers(data, lambda s, im: 0.9 if im.file == s.exemplar_file else 0.001)
    rows = sureness(found, found, SHARP, data, sizes=(3, 6, 50))
    assert [row["gallery_size"] for row in rows] == [3, 6, 12] and {row["n_queries"] for row in rows} == {24}
    for row in rows:
        assert row["auroc"] == 1 and row["ece"] < 0.01 and row["ece_right"] < 0.01 and row["right"] == 0.5


def test_ranks_and_chances_are_of_two_readings():
    data = world(12, seed=3)
    knows = answers(data, lambda s, im: 0.9 if im.file == s.exemplar_file else 0.001)
    blind = answers(data, lambda s, im: 0.5)
    wrong = answers(data, lambda s, im: 0.1 if im.file == s.exemplar_file else 0.5)
    ranked = sureness(wrong, knows, SHARP, data, sizes=())[0]
    assert ranked["right"] == 0 and ranked["auroc"] == 1 and ranked["claimed"] < 0.01
    judged = sureness(knows, blind, Chances(1.0, 0.0), data, sizes=())[0]
    assert judged["right"] == 0.5 and judged["sure"] == 0.5 and judged["claimed"] < 0.05
    with pytest.raises(ValueError, match="same queries"):
        sureness(knows, dict(list(blind.items())[1:]), SHARP, data)
