"""Queries whose source an intervention tells, and what a method picks, against counting by hand."""

from dataclasses import replace

import numpy as np
import pytest

from ard.counterfactuals import Collection, Drawing, change
from ard.records import Attribution, read_image
from ard.traced import picked, told, traced
from tests.baselines.test_abu import sample

RNG = np.random.default_rng(0)
MEMBERS = tuple(replace(sample(n), concept_id=f"c{n}", individual_id=f"i{n}") for n in range(3))
WANTED = [Drawing(f"prompt {n}", n, "forest", "photo") for n in range(4)]
CATS = Collection("cat-0", "cat", MEMBERS)


def drawn(cause, others=4):
    """Five variants of a picture; without the region of member `cause` its middle is gone."""
    picture = RNG.integers(100, 200, (32, 32, 3)).astype(np.uint8)
    made = np.stack([picture] * 5)
    made[1:] += RNG.integers(0, others, (4, 32, 32, 3)).astype(np.uint8)
    made[cause + 1, 8:24, 8:24] = 0
    return made


def test_the_source_is_the_region_whose_removal_changes_the_query_most(tmp_path):
    pictures = np.stack([drawn(2), drawn(0), drawn(1)], 1)
    boxes = iter([[[8, 8, 24, 24]], [], [[8, 8, 12, 24]]])  # found, not found, too small

    def detect(image, class_name):
        found = np.array(next(boxes), float).reshape(-1, 4)
        return found, np.ones(len(found))

    [one] = traced(CATS, pictures, WANTED[:3], detect, tmp_path, min_side=12)
    assert one.sample.exemplar_file == "2.png" and one.sample.individual_id == "i2"
    assert (one.sample.sample_id, one.sample.concept_id, one.sample.prompt) == ("cat-0_00", "cat-0", "prompt 0")
    assert one.sample.query_box == (8.0, 8.0, 24.0, 24.0) and one.members == MEMBERS
    assert (read_image(one.sample.query_file) == pictures[0, 0]).all()
    assert [*one.effects, one.control] == change(pictures[:, 0], (8, 8, 24, 24)).tolist()
    assert one.clear == pytest.approx(one.effects[2] / max(one.effects[:2])) and one.clear > 5


def test_a_method_picks_the_member_that_answers_best_whatever_others_answer():
    files = {"a": "0.png", "b": "1.png", "c": "2.png", "d": "other.png"}
    answers = [Attribution(i, None, s) for i, s in zip("dcba", (9.0, 1.0, 3.0, 2.0))]
    assert picked(answers, files, MEMBERS) == 1
    assert picked([replace(a, score=float("-inf")) for a in answers], files, MEMBERS) == 2


def test_shares_of_the_strongest_effect_are_those_of_counting(tmp_path):
    pictures = np.stack([drawn(n % 3, others=60) for n in range(4)], 1)
    groups = [replace(CATS, name=f"cat-{n}") for n in range(2)]
    queries = [q for g in groups for q in traced(g, pictures, WANTED, lambda *_: (np.array([[8, 8, 24, 24.0]]), np.ones(1)),
                                                 tmp_path, 12)]
    best, worst = [int(np.argmax(q.effects)) for q in queries], [int(np.argmin(q.effects)) for q in queries]
    rows = {row["method"]: row for row in told(queries, {"ARD": best, "other": worst})}
    assert rows["ARD"]["right"] == rows["ARD"]["effect"] == 1 and rows["ARD"]["ours_minus"] == 0
    assert rows["other"]["right"] == 0
    by_hand = np.mean([min(q.effects) / max(q.effects) for q in queries])
    assert rows["other"]["effect"] == pytest.approx(by_hand, abs=1e-6)
    assert rows["other"]["ours_minus"] == pytest.approx(1 - by_hand, abs=1e-6)
    assert rows["a guess"]["right"] == pytest.approx(1 / 3, abs=1e-6)
    assert rows["a guess"]["effect"] == pytest.approx(np.mean([np.mean(q.effects) / max(q.effects) for q in queries]), abs=1e-6)
    assert rows["ARD"]["n_queries"] == 8 and rows["ARD"]["n_collections"] == 2
    assert rows["other"]["ours_minus_low"] <= rows["other"]["ours_minus"] <= rows["other"]["ours_minus_high"]
