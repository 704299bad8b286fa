"""A benchmark in windows: whoever is asked, each image has one answer, of its strongest window, by every reading."""

import numpy as np
import pytest
import torch

from ard.baselines.kit import Kit
from ard.clutter import ClutterConfig, by_size, cluttered, summary, with_twin
from ard.detector.closeup import CloseUp, CloseUpSettings
from ard.detector.features import REGION
from ard.detector.method import DetectorMethod
from ard.detector.readings import JUDGED
from ard.detector.tied import TiedGroundingDinoForObjectDetection
from ard.evaluation import alone
from ard.geometry import box_iou
from ard.records import Attribution
from ard.together import log_odds
from ard.windowed import Windowed, ask_ard, ask_others
from tests.toy_attribution import tiny_detector, toy_dataset

SPLIT = "val"


@pytest.fixture(scope="module")
def clutter(tmp_path_factory):
    from ard.world import World
    from tests.toy_attribution import ROOT

    root = tmp_path_factory.mktemp("clutter")
    toy = toy_dataset(root / "toy", per_class=1)
    return cluttered(toy, World.load(ROOT / "data/world"), SPLIT, root / "large", ClutterConfig(pool=1, min_grey_distance=0.01))


@pytest.fixture(scope="module")
def closeup():
    generator = torch.Generator().manual_seed(0)
    return CloseUp(torch.randn(REGION, 4, generator=generator) / 30, torch.zeros(4), 2.0, 0.5, CloseUpSettings(width=4))


def test_every_image_has_one_answer_inside_of_it(clutter, closeup, tmp_path):
    cut = Windowed.of(clutter, SPLIT, tmp_path / "windows", 2)
    plain = Windowed.of(clutter, SPLIT, tmp_path / "whole", 1)
    ard = DetectorMethod(TiedGroundingDinoForObjectDetection.of(tiny_detector(), likeness_weight=1.5))
    found, whole = (ask_ard(one, ard, closeup, tmp_path / f"{len(one.views)}.jsonl") for one in (cut, plain))
    assert set(found) == {"ARD", "ARD, close-up", f"ARD{JUDGED}", f"ARD, close-up{JUDGED}"}
    names = [image.image_id for image in clutter.gallery[SPLIT]]
    for row, answers in found.items():
        assert list(answers) == [s.sample_id for s in clutter.samples[SPLIT]]
        for query, some in answers.items():
            assert [a.image_id for a in some] == names
            assert all(0 <= a.box[0] <= a.box[2] <= 128 and 0 <= a.box[1] <= a.box[3] <= 128 for a in some)
    for row in ("ARD", "ARD, close-up"):
        for query, some in found[row].items():  # the whole picture is one of the windows
            assert all(a.score >= b.score - 1e-4 for a, b in zip(some, whole[row][query], strict=True))
    looks = {name: added(whole[name], whole[f"ARD, close-up{JUDGED}" if JUDGED in name else "ARD, close-up"]) for name in ("ARD", f"ARD{JUDGED}")}
    assert whole["ARD"] != whole[f"ARD{JUDGED}"] and np.abs(looks["ARD"]).max() > 0.1
    assert np.allclose(looks["ARD"], looks[f"ARD{JUDGED}"], atol=1e-3)  # one look at the box that ranks serves both readings


def added(before, after):
    return np.array([[log_odds(b.score) - log_odds(a.score) for a, b in zip(before[q], after[q], strict=True)] for q in before])


def test_a_run_that_was_killed_goes_on(clutter, closeup, tmp_path):
    cut, file = Windowed.of(clutter, SPLIT, tmp_path / "windows", 2), tmp_path / "kept.jsonl"
    first = ask_ard(cut, DetectorMethod(tiny_detector()), closeup, file)

    class Nobody:
        def read(self, query, gallery):
            raise AssertionError("asked again")

    assert ask_ard(cut, Nobody(), closeup, file) == first


def test_the_second_look_is_at_the_box_that_ranks(clutter, closeup, tmp_path):
    cut, own, other = Windowed.of(clutter, SPLIT, tmp_path / "windows", 2), (4.0, 4.0, 40.0, 30.0), (30.0, 30.0, 60.0, 60.0)
    windows = [image.image_id for image in cut.dataset.gallery[SPLIT]]

    class Torn:
        def read(self, query, gallery):
            return {name: [Attribution(w, box, 0.9999 if w.endswith("-3") else 0.5) for w in windows]
                    for name, box in (("ARD", own), (f"ARD{JUDGED}", other))}

    found = ask_ard(cut, Torn(), closeup, tmp_path / "torn.jsonl")
    sample = clutter.samples[SPLIT][0]
    asked = closeup.vectors(clutter.pixels(sample.query_file)[None], [sample.query_box])[0]
    shown = np.stack([cut.dataset.pixels(image.file) for image in cut.dataset.gallery[SPLIT] if image.image_id.endswith("-3")])
    expected = closeup.logits(asked, closeup.vectors(shown, [own] * len(shown))).numpy()
    for row in ("ARD", f"ARD{JUDGED}"):
        name = row.replace("ARD", "ARD, close-up", 1)
        told = added({1: found[row][sample.sample_id]}, {1: found[name][sample.sample_id]})[0]
        assert np.allclose(told, expected, atol=1e-3)


def test_a_window_that_is_strongest_after_a_second_look_answers_and_judges(clutter, closeup, tmp_path, monkeypatch):
    cut, box = Windowed.of(clutter, SPLIT, tmp_path / "windows", 2), (4.0, 4.0, 40.0, 30.0)
    windows = [image.image_id for image in cut.dataset.gallery[SPLIT]]

    class Ranks:
        def read(self, query, gallery):
            judged = [Attribution(w, box, 0.3 + 0.05 * int(w[-1])) for w in windows]
            return {"ARD": [Attribution(w, box, 0.6 if w.endswith("-4") else 0.5) for w in windows], f"ARD{JUDGED}": judged}

    class Look:
        def __init__(self, closeup):
            pass

        def __call__(self, picture, region, answers, pictures):
            return np.array([float(a.image_id.endswith("-7")) for a in answers])

    monkeypatch.setattr("ard.windowed.SecondLook", Look)
    found = ask_ard(cut, Ranks(), closeup, tmp_path / "ranks.jsonl")
    once, twice = log_odds([0.6])[0], log_odds([0.5])[0] + 1
    for row, score in (("ARD", once), ("ARD, close-up", twice), (f"ARD{JUDGED}", log_odds([0.5])[0]), (f"ARD, close-up{JUDGED}", log_odds([0.65])[0] + 1)):
        for some in found[row].values():
            assert len(some) == len(clutter.gallery[SPLIT]) and np.allclose(log_odds([a.score for a in some]), score, atol=1e-5), row


class Seer:
    """Knows where things are; sees them as large as a window shows them."""

    def __init__(self, cut):
        self.cut = cut

    def rank(self, query, gallery):
        answers = []
        for window in gallery:
            image, seen = self.cut.views[window.image_id]
            boxes, kept = seen.transform.boxes([image.objects[0].box], 0.99)
            area = float(np.prod(boxes[0][2:] - boxes[0][:2])) if len(boxes) else float("-inf")
            mine = image.objects[0].individual_id == query.sample.individual_id
            answers.append(Attribution(window.image_id, tuple(boxes[0]) if len(boxes) else None, area + 1e4 * mine))
        return answers


def test_methods_with_boxes_come_back_to_the_pictures_own_pixels(clutter, tmp_path):
    cut = Windowed.of(clutter, SPLIT, tmp_path / "windows", 2)
    found = ask_others(cut, Kit(cut.dataset, SPLIT, work=tmp_path), {"seer": alone("seer", Seer(cut))}, [])
    homes = {image.image_id: image for image in clutter.gallery[SPLIT]}
    for some in found["seer"].values():
        for a in some:
            assert box_iou([a.box], [homes[a.image_id].objects[0].box])[0, 0] > 0.9
    (row,) = summary(found, clutter, SPLIT)
    assert row["recall_1"] == row["box_acc"] == 1 and row["n_queries"] == len(clutter.samples[SPLIT])
    halves = by_size(found, clutter, SPLIT)
    assert [one["half"] for one in halves] == ["smaller", "larger"] and halves[0]["area"] < halves[1]["area"]
    assert sum(one["n_queries"] for one in halves) == row["n_queries"]


@pytest.mark.parametrize("fifth", [0.9, 0.2])  # one window far ahead before the second look, or none
def test_a_method_scored_by_cosines_is_looked_at_twice_in_every_window(clutter, closeup, tmp_path, monkeypatch, fifth):
    cut, box = Windowed.of(clutter, SPLIT, tmp_path / "windows", 2), (4.0, 4.0, 40.0, 30.0)
    windows = [image.image_id for image in cut.dataset.gallery[SPLIT]]
    unseen = clutter.gallery[SPLIT][0].image_id  # nothing is found in it
    cosines = np.array([fifth if w.endswith("-5") else 0.2 for w in windows])

    def ask(entry, kit, samples, file):
        rows = [Attribution(w, None, float("-inf")) if w.startswith(unseen) else Attribution(w, box, c) for w, c in zip(windows, cosines)]
        return {s.sample_id: rows for s in samples}, {}

    monkeypatch.setattr("ard.windowed.arena.ask", ask)
    monkeypatch.setattr("ard.windowed.entries", lambda: {"rival": None})
    found = ask_others(cut, Kit(cut.dataset, SPLIT, work=tmp_path), {}, ["rival"], closeup)
    assert set(found) == {"rival", "rival, close-up"}
    regions = closeup.vectors(np.stack([cut.dataset.pixels(im.file) for im in cut.dataset.gallery[SPLIT]]), [box] * len(windows))
    for s in clutter.samples[SPLIT]:
        once, twice = found["rival"][s.sample_id], found["rival, close-up"][s.sample_id]
        assert [a.image_id for a in once] == [a.image_id for a in twice] and once[0] == twice[0] and once[0].score == float("-inf")
        asked = closeup.vectors(clutter.pixels(s.query_file)[None], [s.query_box])[0]
        scores = (10 * cosines + 0.5 * closeup.logits(asked, regions).numpy()).reshape(len(once), -1)  # the fixture weighs 1
        assert np.allclose([a.score for a in twice[1:]], scores[1:].max(1), atol=1e-3)
        for a, at in zip(twice[1:], scores[1:].argmax(1)):
            assert np.allclose(a.box, cut.views[f"{a.image_id}-{at}"][1].back([box])[0])


def test_twins_are_those_beside_another_of_their_class(clutter):
    twins = {s.sample_id for s in with_twin(clutter, SPLIT).samples[SPLIT]}
    for s in clutter.samples[SPLIT]:
        home = next(image for image in clutter.gallery[SPLIT] if image.file == s.exemplar_file)
        assert (s.sample_id in twins) == ([o.class_name for o in home.objects].count(s.class_name) == 2)
