"""Chances against sums by hand, and on scores whose truth is known."""

from dataclasses import astuple, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from ard.abstention import auroc
from ard.chances import NO_OTHERS, Chances, calibration_error, fit_chances, without_source

MEAN, SPREAD, TRUE = -4.0, 1.5, Chances(1.2, 1.2 * 4.0 - 0.5 * (1.2 * 1.5) ** 2)


def asked(rng, queries, n):
    """(Q, n) scores of n images, the first of them the source: log odds of others are normal, those of sources the same weighed by
    exp(slope x + offset), which is a normal too."""
    log_odds = rng.normal(MEAN, SPREAD, (queries, n))
    log_odds[:, 0] += TRUE.slope * SPREAD**2
    return expit(log_odds)


def asked_by_ear(rng, queries, n):
    """As `asked`, but each query hears all images louder or softer than another does: log odds of one lie higher by the same."""
    loudness = rng.normal(-2, 2, (queries, 1))
    log_odds = rng.normal(loudness, 1, (queries, n))
    log_odds[:, 0] += 3.5
    return expit(log_odds)


SCORE = st.floats(0.01, 0.99)


@settings(deadline=None)
@given(st.lists(st.tuples(SCORE, SCORE), min_size=1, max_size=6), st.tuples(st.floats(-2, 3), st.floats(-3, 3)), st.floats(-1, 2),
       st.floats(-1, 2), SCORE)
def test_chances_are_bayes_by_hand(pairs, line, others, strength, prior):
    slope, offset = line
    scores, ranked = zip(*pairs)
    weights = []
    for i, (s, r) in enumerate(pairs):
        rest = [q / (1 - q) for j, q in enumerate(ranked) if j != i]
        level = NO_OTHERS + sum(rest) / max(len(rest), 1)
        odds = np.exp(offset) * (s / (1 - s)) ** slope * (r / (1 - r)) ** strength / level**others
        weights.append(prior / len(pairs) * odds)
    by_hand = [w / (sum(weights) + 1 - prior) for w in weights]
    chances = Chances(slope, offset, others, strength)
    assert chances(scores, ranked, prior) == pytest.approx(by_hand, abs=1e-9)
    assert chances.of_any(scores, ranked, prior) == pytest.approx(sum(by_hand), abs=1e-9)
    assert chances(scores) == pytest.approx(chances(scores, scores)), "one reading is both"


def test_scores_that_leave_no_doubt_are_chances_still():
    scores = np.random.default_rng(0).uniform(0.9, 1, (200, 50))
    sure = Chances(80.0, 5.0).of_any(scores)
    assert sure.max() <= 1 and sure.min() >= 0 and calibration_error(sure, np.ones(200)) == pytest.approx(0, abs=1e-9)
    assert np.isfinite(Chances(1.0, 0.0, 1.0, 1.0)([1.0, 0.0, 1.0])).all()


def test_images_that_are_not_there_have_no_chance_and_take_none():
    chances, scores = Chances(1.0, 0.5, 0.7, 0.3), np.array([[0.2, np.nan, 0.7], [np.nan, np.nan, np.nan]])
    first, nothing = chances(scores)
    assert first[[0, 2]] == pytest.approx(chances([0.2, 0.7])) and first[1] == 0 and (nothing == 0).all()
    assert chances.of_any(scores) == pytest.approx([chances.of_any([0.2, 0.7]), 0])


def test_among_more_images_the_same_best_score_says_less():
    few, many = (Chances(1.5, 4.0).of_any([0.8, *[0.01] * n]) for n in (4, 400))
    assert 1 > few > many + 0.3 and many > 0.3


def test_the_truth_is_found_and_holds_in_galleries_of_other_sizes():
    rng = np.random.default_rng(0)
    found = fit_chances(asked(rng, 2000, 40), np.zeros(2000, int))
    assert found.slope == pytest.approx(TRUE.slope, abs=0.1) and found.offset == pytest.approx(TRUE.offset, abs=0.3)
    assert abs(found.others) < 0.2, "no query's scores lie off"
    for n, share in ((3, 0.42), (40, 0.18), (300, 0.09)):
        with_it, without = asked(rng, 1500, n), asked(rng, 1500, n + 1)[:, 1:]
        sure = np.concatenate([found.of_any(scores) for scores in (with_it, without)])
        assert calibration_error(sure, np.repeat([1, 0], 1500)) < 0.04
        chance = found(np.concatenate([with_it, without]))
        first = chance.argmax(1)
        right = (first == 0) & (np.arange(3000) < 1500)
        assert calibration_error(chance.max(1), right) < 0.04 and right.mean() == pytest.approx(share, abs=0.03)


def test_where_a_query_finds_likenesses_everywhere_its_best_score_says_less():
    rng = np.random.default_rng(2)
    found = fit_chances(asked_by_ear(rng, 1000, 40), np.zeros(1000, int))
    lonely, crowded = (found.of_any([0.6, *[level] * 39]) for level in (0.01, 0.4))
    assert found.others > 0.5 and lonely > crowded + 0.3
    for n in (20, 40, 100):
        with_it, without = asked_by_ear(rng, 1000, n), asked_by_ear(rng, 1000, n + 1)[:, 1:]
        there, absent = found.of_any(with_it), found.of_any(without)
        assert calibration_error(np.concatenate([there, absent]), np.repeat([1, 0], 1000)) < 0.1
        assert auroc(there, absent) > 0.1 + auroc(with_it.max(1), without.max(1))


def test_two_readings_tell_more_than_one():
    rng, n = np.random.default_rng(3), 20
    first, second = asked(rng, 800, n), asked(rng, 800, n)
    both, one = fit_chances(first, np.zeros(800, int), second), fit_chances(first, np.zeros(800, int))
    assert both.strength > 0.5 and one.strength == 0
    first, second = asked(rng, 800, n), asked(rng, 800, n)
    assert np.log(both(first, second)[:, 0]).mean() > 0.2 + np.log(one(first)[:, 0]).mean()


def test_which_column_holds_the_source_does_not_matter():
    rng = np.random.default_rng(1)
    scores, source = asked(rng, 60, 8), rng.integers(8, size=60)
    moved = np.stack([np.roll(row, place) for row, place in zip(scores, source)])
    found, same = fit_chances(scores, np.zeros(60, int)), fit_chances(moved, source)
    assert astuple(found) == pytest.approx(astuple(same), abs=1e-3)


def test_few_queries_that_are_all_told_apart_give_numbers():
    found = fit_chances([[0.9, 0.1], [0.8, 0.1]], [0, 0])
    assert 0 < found.slope < 100 and np.isfinite(found.offset)


def test_bad_input():
    with pytest.raises(ValueError, match="prior: .* found 0"):
        Chances(1.0, 0.0)([0.5], prior=0)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Chances(1.0, 0.0)([1.5])
    for other in ([0.5], [0.5, np.nan]):
        with pytest.raises(ValueError, match="same images"):
            Chances(1.0, 0.0)([0.5, 0.4], other)
    with pytest.raises(ValueError, match="at least one query"):
        fit_chances(np.empty((0, 4)), [])


def test_the_offset_has_no_prior():
    """Its derivative of the plain likelihood is 0 where the fit ends: with the prior of the others it would not be."""
    scores, source = asked(np.random.default_rng(0), 40, 8), np.zeros(40, int)
    found, rest = fit_chances(scores, source), without_source(scores, source)

    def likelihood(offset):
        at = replace(found, offset=offset)
        return np.log(at(scores)[:, 0]).sum() + np.log(1 - at.of_any(rest)).sum()

    step = 1e-3
    slope = (likelihood(found.offset + step) - likelihood(found.offset - step)) / (2 * step)
    assert abs(found.offset) > 2 and abs(slope) < 2e-3
