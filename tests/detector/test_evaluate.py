import numpy as np
import pytest

from ard.detector import evaluate as ev
from ard.detector.score import Detections
from tests.detector.conftest import NAMES


def answer(boxes, scores, truth):
    n = len(scores)
    return ev.Answers(
        0,
        [Detections(np.array(boxes, float).reshape(n, 4), np.array(scores), np.zeros(n))],
        [np.array(truth, float).reshape(-1, 4)],
    )


def test_a_true_box_is_taken_once():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9]], float)
    assert ev.true_positives(boxes, boxes[:1]).tolist() == [True, False]


def test_perfect_detections_have_ap_one():
    assert ev.ap50([answer([[0, 0, 10, 10]], [0.9], [[0, 0, 10, 10]])]) == 1.0
    assert ev.ap50([answer([[20, 20, 30, 30]], [0.9], [[0, 0, 10, 10]])]) == 0.0


def test_operating_point_and_threshold():
    asked = [answer([[0, 0, 10, 10]], [0.6], [[0, 0, 10, 10]]), answer([[0, 0, 5, 5]], [0.4], [])]
    assert ev.operating_point(asked, 0.5) == (1.0, 0.0)
    assert ev.operating_point(asked, 0.3) == (1.0, 1.0)
    assert ev.choose_threshold(asked, 0.0) == pytest.approx(0.4, abs=0.011)


def test_both_ways_of_asking_answer_for_every_scene(tiny, pool):
    for answers in (ev.ask_by_text(tiny, pool, NAMES), ev.ask_by_exemplar(tiny, pool, NAMES, seed=0)):
        assert len(answers) == 4 and all(len(a.found) == 12 for a in answers)
        assert sum(len(t) for a in answers for t in a.truth) == 12
        assert 0 <= ev.ap50(answers) <= 1
