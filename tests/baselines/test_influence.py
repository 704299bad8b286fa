"""Calibrated influence: the approximation against the exact objective, the temperature against a grid."""

import numpy as np
import pytest

from ard.baselines.influence import calibrate, divergence, influence, keep


def questions(queries=6, images=30, exemplars=1, strength=0.3, seed=0):
    """Similarities (Q, N) in which a query's exemplars lie `strength` above the others; which they are (Q, N)."""
    rng = np.random.default_rng(seed)
    similarity, exemplar = rng.normal(0, 0.2, (queries, images)), np.zeros((queries, images), bool)
    for row in exemplar:
        row[rng.choice(images, exemplars, replace=False)] = True
    return np.clip(similarity + strength * exemplar, -1, 1), exemplar


def exact(similarity, exemplar, tau):
    """The objective by its definition: the sum of KL(S || softmax)."""
    share = np.exp(similarity / tau)
    share = share / share.sum(1, keepdims=True)
    truth = exemplar / exemplar.sum(1, keepdims=True)
    return sum(t * np.log(t / s) for t, s in zip(truth[exemplar], share[exemplar]))


@pytest.mark.parametrize("exemplars", [1, 3])
@pytest.mark.parametrize("tau", [0.05, 0.3, 2.0])
def test_with_every_image_kept_the_objective_is_exact(exemplars, tau):
    similarity, exemplar = questions(exemplars=exemplars)
    assert divergence(keep(similarity, exemplar, 30), tau) == pytest.approx(exact(similarity, exemplar, tau))
    assert keep(similarity, exemplar, 99).left == 0


@pytest.mark.parametrize("tau", [0.05, 0.3, 2.0])
def test_the_approximation_bounds_from_below_and_rises_to_the_exact_objective(tau):
    similarity, exemplar = questions()
    bounds = [divergence(keep(similarity, exemplar, top), tau) for top in range(1, 31)]
    assert all(a <= b + 1e-9 for a, b in zip(bounds, bounds[1:])) and bounds[0] < bounds[15] < bounds[-1]
    assert bounds[-1] == pytest.approx(exact(similarity, exemplar, tau)) and bounds[-2] == pytest.approx(bounds[-1])


def test_the_bound_by_hand():
    """Exemplar at 1, others at 0 and -1: the exact denominator has e^0 + e^-1, the bound 2 e^-0.5."""
    kept = keep(np.array([[0.0, 1.0, -1.0]]), np.array([[False, True, False]]), 1)
    assert kept.top.tolist() == [[1.0]] and kept.rest.tolist() == [-0.5] and kept.left == 2
    assert divergence(kept, 1.0) == pytest.approx(np.log(np.e + 2 * np.exp(-0.5)) - 1)


def test_exemplars_are_kept_however_weak_they_are():
    similarity = np.array([[0.9, 0.8, 0.7, -0.9]])
    kept = keep(similarity, np.array([[False, False, False, True]]), 2)
    assert sorted(kept.top[0]) == [-0.9, 0.9] and kept.rest[0] == pytest.approx(0.75) and kept.truth[0] == -0.9


@pytest.mark.parametrize("exemplars, top", [(1, 30), (3, 30), (1, 8), (3, 8)])
def test_the_temperature_found_is_that_of_a_grid(exemplars, top):
    kept = keep(*questions(queries=40, exemplars=exemplars), top)
    grid = np.geomspace(1e-3, 10, 4001)
    best = grid[np.argmin([divergence(kept, tau) for tau in grid])]
    found = calibrate(kept)
    assert 1e-3 < best < 10 and found == pytest.approx(best, rel=0.005)
    assert divergence(kept, found) <= divergence(kept, best)


def test_without_a_minimum_inside_the_range_its_end_is_the_answer():
    assert calibrate(keep(*questions(strength=5.0), 30), low=0.02) == 0.02, "every exemplar leads: the sharper the better"
    assert calibrate(keep(*questions(strength=-0.5), 30), high=7.0) == 7.0, "exemplars below the average: the flatter the better"


def test_shares_sum_to_one_and_keep_the_order():
    similarity, _ = questions()
    for tau in (1e-3, 0.1, 10.0):
        share = influence(similarity, tau)
        assert np.allclose(share.sum(1), 1) and (share >= 0).all()
    assert (np.argsort(influence(similarity, 0.1), 1) == np.argsort(similarity, 1)).all()
    sharp, flat = (influence(similarity, tau).max(1) for tau in (0.05, 1.0))
    assert (sharp > flat).all()


@pytest.mark.parametrize("exemplar, top", [(np.zeros((2, 5), bool), 5), (np.ones((2, 5), bool), 3), (np.ones((2, 4), bool), 5)])
def test_queries_without_a_usable_truth_are_refused(exemplar, top):
    with pytest.raises(ValueError, match="expected similarities and exemplars of one shape"):
        keep(np.zeros((2, 5)), exemplar, top)
