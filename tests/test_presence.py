"""Who tells that the source is there, against answers of which everything is known."""

import numpy as np
import pytest

from ard.abstention import auroc
from ard.chances import Chances
from ard.presence import drawn, presence, sure, sureness, unit
from tests.test_metrics import answers, world


def said(rng, queries, gap):
    """(2, Q) chances, with the source above those without by `gap` on the scale of log odds, on average."""
    return 1 / (1 + np.exp(-rng.normal([[gap / 2], [-gap / 2]], 1, (2, queries))))


def test_cosines_become_scores_of_the_same_order():
    cosines = np.array([-np.inf, -1.0, -0.2, 0.0, 0.9, 1.0])
    assert unit(cosines) == pytest.approx([0, 0, 0.4, 0.5, 0.95, 1])


def test_a_query_is_asked_with_its_source_and_without():
    scores, source = np.array([[0.9, 0.1, 0.2], [0.3, 0.2, 0.6]]), np.array([0, 2])
    chances = Chances(1.2, 0.3, 0.4, 0.2)
    rest = [[0.1, 0.2], [0.3, 0.2]]
    assert sure(chances, scores, source) == pytest.approx(np.stack([chances.of_any(scores), chances.of_any(rest)]))
    ranked = scores[:, ::-1]
    by_hand = chances.of_any([0.1, 0.2], [0.1, 0.9])
    assert sure(chances, scores, source, ranked)[1, 0] == pytest.approx(by_hand)


def test_who_tells_better_is_ahead_and_who_tells_alike_is_not():
    rng = np.random.default_rng(0)
    good = said(rng, 120, 3.0)
    blind, alike = said(rng, 120, 0.0), good**6
    first, second, third = presence({"good": good, "blind": blind, "alike": alike}, np.arange(120) // 2)
    assert first["auroc"] == pytest.approx(auroc(*good), abs=1e-6) and first["auroc_low"] < first["auroc"] < first["auroc_high"]
    assert first["minus"] == first["minus_low"] == first["minus_high"] == 0
    assert second["minus_high"] < -0.2 and second["auroc_low"] < 0.5 < second["auroc_high"]
    assert third["minus"] == third["minus_low"] == 0 and third["ece"] > first["ece"], "powers keep the order, not the sizes"


def test_intervals_are_those_of_resampling_exemplars_by_hand():
    rng, owners = np.random.default_rng(1), np.repeat(np.arange(15), 4)
    of = said(rng, 60, 1.0)
    row = presence({"one": of}, owners)[0]
    by_hand = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(owners == o) for o in rng.integers(15, size=15)])
        by_hand.append(auroc(of[0][rows], of[1][rows]))
    assert [row["auroc_low"], row["auroc_high"]] == pytest.approx(np.quantile(by_hand, [0.025, 0.975]), abs=0.02)


def test_bad_input():
    rng = np.random.default_rng(2)
    with pytest.raises(ValueError, match="of 10 queries"):
        presence({"a": said(rng, 10, 1), "b": said(rng, 9, 1)}, range(10))
    assert np.isnan(presence({"a": said(rng, 3, 1)}, ["x"] * 3)[0]["auroc_low"]), "one exemplar tells nothing of others"


# ---- in galleries of any size ----------------------------------------------------------------------------------------
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
