"""Several pictures asked about together: what is averaged, which box stands, and what chances become."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ard.chances import Chances
from ard.records import Attribution
from ard.together import Pool, log_ratios, middle, together

BOX, SHIFTED, AWAY = (0.0, 0.0, 10.0, 10.0), (1.0, 0.0, 11.0, 10.0), (40.0, 40.0, 50.0, 50.0)
SCORES = st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3)


def answers(*scores, box=BOX):
    return [Attribution(str(i), box, score) for i, score in enumerate(scores)]


def test_one_picture_answers_as_it_does_alone():
    alone = answers(0.0, 0.3, 1.0)
    assert together([alone]) == together([alone], odds=False) == alone


@given(SCORES, SCORES)
def test_the_score_is_the_mean_of_log_odds_or_of_scores_whatever_the_order(one, two):
    both, turned = (together([answers(*a), answers(*b)]) for a, b in ((one, two), (two, one)))
    odds = np.sqrt([a / (1 - a) * b / (1 - b) for a, b in zip(one, two)])  # geometric mean
    assert np.allclose([a.score for a in both], odds / (1 + odds)) and np.allclose([a.score for a in both], [a.score for a in turned])
    plain = together([answers(*one), answers(*two)], odds=False)
    assert np.allclose([a.score for a in plain], np.mean([one, two], 0))


def test_several_middling_answers_outvote_one_that_is_sure_of_another():
    said = [answers(0.7, 0.5), answers(0.7, 0.5), answers(0.5, 0.8)]
    assert max(together(said), key=lambda a: a.score).image_id == "0"


@given(SCORES, SCORES, st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3))
def test_words_count_once_however_many_pictures(one, two, words):
    """Scores whose odds are those of the words times a likeness."""
    def logs(scores):
        return np.log(np.array(scores) / (1 - np.array(scores)))

    said = [answers(*scores) for scores in (one, two)]
    found = logs([a.score for a in together(said, words=[answers(*words)] * 2)])
    assert np.allclose(found, (logs(one) - logs(words) + logs(two) - logs(words)) / 2 + logs(words) / 2)
    nothing_said = together(said, words=[answers(0.5, 0.5, 0.5)] * 2)
    assert np.allclose([a.score for a in nothing_said], [a.score for a in together(said)])
    assert together(said[:1], words=[answers(*words)]) == said[0], "one picture answers as it does alone"


def test_what_an_image_has_by_its_words_alone_is_outvoted_by_likenesses():
    """The words prefer image 1 each time, the likenesses image 0, by less."""
    odds, words = [[2.0, 3.0], [2.0, 3.0]], [[1.0, 3.0], [1.0, 3.0]]
    said, told = ([answers(*(o / (1 + o) for o in row)) for row in rows] for rows in (odds, words))
    assert max(together(said), key=lambda a: a.score).image_id == "1"
    assert max(together(said, words=told), key=lambda a: a.score).image_id == "0"


def test_scores_of_nought_and_one_are_numbers_together():
    assert [a.score for a in together([answers(0.0, 1.0), answers(1.0, 1.0)])] == pytest.approx([0.5, 1.0], abs=1e-6)


def test_an_image_in_which_nothing_was_found_for_a_picture_stays_behind_but_keeps_a_box():
    nothing = [Attribution("0", None, float("-inf")), Attribution("1", None, 0.2)]
    found = together([answers(0.9, 0.1), nothing], odds=False)
    assert found[0].score == float("-inf") and found[0].box == BOX and found[1].score == pytest.approx(0.15)


@pytest.mark.parametrize(("boxes", "wanted"), [
    ([BOX], BOX), ([None, BOX], BOX), ([None, None], None), ([AWAY, BOX, SHIFTED], BOX), ([AWAY, SHIFTED, BOX], SHIFTED)])
def test_the_box_is_the_one_that_overlaps_the_others_best(boxes, wanted):
    assert middle(boxes) == wanted


def test_answers_of_other_images_are_refused():
    with pytest.raises(ValueError, match="same images"):
        together([answers(0.1, 0.2), answers(0.1)])
    with pytest.raises(ValueError, match="same images"):
        together([answers(0.1, 0.2)] * 2, words=[answers(0.1, 0.2)])
    with pytest.raises(ValueError, match="not of scores as they are"):
        together([answers(0.1, 0.2)] * 2, odds=False, words=[answers(0.1, 0.2)] * 2)
    with pytest.raises(ValueError, match="at least one"):
        together([])


CHANCES = Chances(0.9, 1.5, 0.7, 0.5)
LIKELY = [0.9, 0.3, 0.2, 0.1]


@pytest.mark.parametrize("prior", [0.1, 0.5, 0.9])
def test_one_picture_alone_has_the_chances_it_had(prior):
    each, sure = Pool()(CHANCES(LIKELY), prior)
    assert np.allclose(each, CHANCES(LIKELY, prior=prior)) and sure == pytest.approx(float(CHANCES.of_any(LIKELY, prior=prior)))


def test_independent_pictures_multiply_their_likelihood_ratios():
    one, two = CHANCES(LIKELY), CHANCES([0.7, 0.6, 0.2, 0.1])
    ratio = 4 * one / (1 - one.sum()) * 4 * two / (1 - two.sum())
    each, sure = Pool(1.0, 0.0)([one, two])
    assert np.allclose(each, ratio / 4 / (1 + ratio.sum() / 4)) and sure == pytest.approx(each.sum())


def test_pictures_that_bring_no_news_say_what_one_says():
    one = CHANCES(LIKELY)
    assert np.allclose(Pool(0.0, 3.0)([one] * 5)[0], one)


def test_further_pictures_make_surer_above_the_bias_and_doubt_below():
    pool = Pool(0.5, 1.0)
    for chance, surer in ((0.9, True), (0.5, False)):  # log odds 2.2 and 0, in a gallery of one
        assert (pool([[chance]] * 4)[1] > chance) == surer
    still = 1 / (1 + np.exp(-1.0))
    assert pool([[still]] * 4)[1] == pytest.approx(still)


@given(st.lists(SCORES, min_size=1, max_size=4), st.floats(0.01, 0.99))
def test_chances_add_up_to_that_of_any_and_the_rest_is_none(scores, prior):
    each, sure = Pool()([CHANCES(s) for s in scores], prior)
    assert (each >= 0).all() and each.sum() == pytest.approx(sure) and 0 <= sure <= 1


def test_certainty_is_no_overflow():
    assert np.isfinite(log_ratios(np.array([[1.0, 0.0], [0.0, 0.0]]))).all()
    each, sure = Pool(1.0, 0.0)([[1.0, 0.0]] * 50)
    assert np.isfinite(each).all() and sure == pytest.approx(1)


@pytest.mark.parametrize("prior", [0, 1, -1])
def test_a_prior_that_is_no_chance_is_refused(prior):
    with pytest.raises(ValueError, match="prior: .* found"):
        Pool()([LIKELY], prior)
