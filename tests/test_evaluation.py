"""Answers survive a kill, rows are complete, rendered queries are right, and the report finds what was planted."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from ard import evaluation, report
from ard.baselines.abc import AbCConfig
from ard.detector.score import detect
from ard.diagnostics import change_summary
from ard.evaluation import ROWS, alone, asked_samples, class_proposals, collect, train_abc, write_results
from ard.metrics import ANALYTIC_ROWS, IOU_GATE, TABLE2_COLUMNS
from ard.records import Attribution, RecordError
from ard.rendered import individual_of, rendered_query
from ard.world import World
from tests.toy_attribution import CLASSES, ROOT, tiny_detector

METHODS = [row for row in ROWS if row not in ANALYTIC_ROWS] + [report.CROPS_RENDERED]


@pytest.fixture
def gallery(dataset):
    return dataset.open_gallery("test")


class Guess:
    """A method that counts its questions; `knows` decides whether it is right."""

    def __init__(self, dataset, knows=True, boxes=True):
        self.asked, self.dataset, self.knows, self.boxes = 0, dataset, knows, boxes

    def rank(self, query, gallery):
        self.asked += 1
        own = query.sample.exemplar_file
        box = query.sample.exemplar_box if self.boxes else None
        return [Attribution(i.image_id, box, 1.0 if (i.file == own) == self.knows else 0.1) for i in gallery]


def answered(dataset, **special):
    """Answers of every method: right ones, but for the methods named in `special`."""
    gallery, answers = dataset.open_gallery("test"), {}
    for name in METHODS:
        method = special.get(name, Guess(dataset, boxes=name not in ("image cosine", "AbC")))
        answers[name] = {s.sample_id: method.rank(dataset.query(s), gallery) for s in dataset.samples["test"]}
    return answers


def test_a_killed_evaluation_goes_on(dataset, gallery, tmp_path):
    samples, file = dataset.samples["test"], tmp_path / "a.jsonl"
    whole, _ = collect(alone("m", Guess(dataset)), samples, dataset.query, gallery, tmp_path / "b.jsonl", "m")
    collect(alone("m", Guess(dataset)), samples[:5], dataset.query, gallery, file, "m")
    file.write_bytes(file.read_bytes()[:-20])  # torn while it was written
    rest = Guess(dataset)
    again, milliseconds = collect(alone("m", rest), samples, dataset.query, gallery, file, "m")
    assert again == whole and rest.asked == len(samples) - 4 and milliseconds > 0


def test_nothing_found_survives_the_ledger(dataset, gallery, tmp_path):
    class Nothing:
        def rank(self, query, gallery):
            return [Attribution(i.image_id, None, float("-inf")) for i in gallery]

    found, _ = collect(alone("m", Nothing()), dataset.samples["test"][:1], dataset.query, gallery, tmp_path / "l", "m")
    assert all(a.score == float("-inf") and a.box is None for a in next(iter(found["m"].values())))


def test_asked_samples(dataset):
    assert len(asked_samples(dataset, "test", 1)) == 6 and len(asked_samples(dataset, "test", 0)) == 12
    few = asked_samples(dataset, "test", 0, max_exemplars=2)
    assert len(few) == 4 and len({s.concept_id for s in few}) == 2


def test_table2_has_every_row_in_both_readings(dataset):
    outcomes = report.outcomes_of(answered(dataset), dataset)
    rows = report.table2(outcomes, "toy")
    assert tuple(dict.fromkeys(r["method"] for r in rows)) == ROWS and all(tuple(r) == TABLE2_COLUMNS for r in rows)
    readings = {m: [r["gated"] for r in rows if r["method"] == m] for m in ROWS}
    assert readings["ARD"] == [True, False] and readings["AbC"] == readings["chance"] == [False]
    assert next(r for r in rows if r["method"] == "ARD")["recall_1"] == 1
    with pytest.raises(ValueError, match="none of: crop cosine$"):
        report.table2({k: v for k, v in outcomes.items() if k != "crop cosine"}, "toy")


def test_differences_are_paired_and_the_oracle_is_gated_by_the_method(dataset):
    outcomes = report.outcomes_of(answered(dataset, **{"crop cosine": Guess(dataset, knows=False)}), dataset)
    rows = {(r["a"], r["b"], r["gated"]): r for r in report.differences(outcomes)}
    assert rows["ARD", "crop cosine", True]["difference"] == 1 and rows["ARD", "ARD-", True]["difference"] == 0
    assert rows["ARD", "class oracle", True]["recall_1_b"] == 0.5, "two of a class in the gallery, box always right"
    same = {r["method"]: r for r in report.same_class(outcomes)}
    assert same["ARD"]["difference"] == 0.5 and same["crop cosine"]["same_class_recall_1"] == 0


def worse(answers, dataset, name, how):
    """`answers` with a method spoiled: 'box' misses R_X, 'rank' puts X last."""
    spoiled = {}
    for s in dataset.samples["test"]:
        own = next(i.image_id for i in dataset.gallery["test"] if i.file == s.exemplar_file)
        change = {"box": (0.0, 0.0, 1.0, 1.0)} if how == "box" else {"score": -1.0}
        spoiled[s.sample_id] = [replace(a, **change) if a.image_id == own else a for a in answers[name][s.sample_id]]
    return answers | {name: spoiled}


@pytest.mark.parametrize("spoil, link", [
    ([], "none"), ([("ARD", "rank")], "generator"), ([("ARD", "box"), (report.RENDERED, "box")], "proposal"),
    ([("ARD", "rank"), (report.RENDERED, "rank")], "ranking")])
def test_the_failing_link_is_the_one_that_was_broken(dataset, spoil, link):
    answers = answered(dataset)
    for name, how in spoil:
        answers = worse(answers, dataset, name, how)
    found = report.diagnose(report.outcomes_of(answers, dataset))
    assert found["link"] == link and sum(found["loss"].values()) + found["recall_1"] == pytest.approx(1)
    assert ("above its class oracle:" in report.verdict(found)) == (link == "none")
    assert link == "none" or f"failing link is {link}." in report.verdict(found)


def test_the_report_says_whether_the_exemplar_is_read(dataset):
    rows = [{"question": "exemplar", "method": "ARD", "concept_id": str(i), "own": 0.5, "changed": 0.2, "partner_above": True}
            for i in range(8)]
    outcomes = report.outcomes_of(answered(dataset), dataset)
    assert report.diagnose(outcomes, change_summary(rows, "rendered"))["reads_exemplar"] is True
    assert report.diagnose(outcomes, change_summary([r | {"own": 0.1} for r in rows], "rendered"))["reads_exemplar"] is False
    assert report.diagnose(outcomes, change_summary(rows, "generated"))["reads_exemplar"] is None


def test_query_rows_keep_the_strongest(dataset):
    answers = answered(dataset)
    rows = report.query_rows(answers, report.outcomes_of(answers, dataset))
    row = next(r for r in rows if r["method"] == "ARD")
    own = next(s for s in dataset.samples["test"] if s.sample_id == row["sample_id"])
    assert row["rank"] == 1 and row["top"][0][0] == own.concept_id and len(row["top"]) == 6
    assert len(rows) == len(METHODS) * len(dataset.samples["test"])


def test_results_are_written_at_once(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("ARD_WORK", str(tmp_path / "work"))
    write_results(tmp_path / "results", {"a": [{"x": 1}], "none": []}, [{"q": 1}], {"link": "none"})
    assert {p.name for p in (tmp_path / "results").iterdir()} == {"a.csv", "none.csv", "queries.jsonl", "diagnosis.json"}


def test_rendered_queries_show_the_individual_in_the_templates_scene(dataset):
    world, sample = World.load(ROOT / "data/world"), dataset.samples["test"][0]
    person = individual_of(sample)
    assert person.individual_id == sample.individual_id and person.designer == sample.designer
    query = rendered_query(world, sample)
    again, other = rendered_query(world, sample), rendered_query(world, sample, seed=1)
    assert (query.image == again.image).all() and (query.image != other.image).any()
    x0, y0, x1, y1 = query.sample.query_box
    assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64 and query.sample.sample_id == sample.sample_id
    with pytest.raises(RecordError, match="mini world"):
        individual_of(replace(sample, individual_id="coco-17"))


def test_proposals_are_boxes_of_the_class(dataset):
    proposals = class_proposals(tiny_detector(), dataset, "test", CLASSES, threshold=0.0)
    assert all(proposals(i.image_id, c).shape[1] == 4 for i in dataset.gallery["test"] for c in CLASSES)
    none = class_proposals(tiny_detector(), dataset, "test", CLASSES, threshold=1.1)
    assert all(len(none(i.image_id, c)) == 0 for i in dataset.gallery["test"] for c in CLASSES)
    assert IOU_GATE == 0.5


def test_abc_is_trained_once(dataset, tmp_path):
    calls = []

    def encode(images):
        calls.append(len(images))
        return np.stack([im.reshape(-1, 3).mean(0) for im in images])

    first = train_abc(dataset, encode, AbCConfig(epochs=2), tmp_path / "abc.safetensors")
    count = len(calls)
    again = train_abc(dataset, encode, AbCConfig(epochs=2), tmp_path / "abc.safetensors")
    assert len(calls) == count and (first.map_real(np.eye(3)) == again.map_real(np.eye(3))).all()


def test_time_is_of_a_pair(dataset, gallery, tmp_path, monkeypatch):
    ticks = itertools.count()  # every look at the clock is a second later: each query takes one
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: float(next(ticks)))
    _, milliseconds = collect(alone("m", Guess(dataset)), dataset.samples["test"][:3], dataset.query, gallery, tmp_path / "l", "m")
    assert milliseconds == 1000 / len(gallery)


def test_proposals_are_those_of_each_class_by_its_own_name(dataset):
    model = tiny_detector()
    proposals = class_proposals(model, dataset, "test", CLASSES, threshold=0.0)
    image = dataset.gallery["test"][0]
    wanted = {c: detect(model, dataset.pixels(image.file)[None], c, 0.0)[0].boxes for c in CLASSES}
    assert all(np.allclose(proposals(image.image_id, c), wanted[c], atol=1e-2) for c in CLASSES)
    assert any(wanted[a].shape != wanted[b].shape or not np.allclose(wanted[a], wanted[b], atol=0.1)
               for a, b in itertools.combinations(CLASSES, 2))


def test_abc_pairs_each_query_with_its_own_exemplar(dataset, tmp_path, monkeypatch):
    """Also of more samples than are encoded at once, and in another order than the gallery's."""
    samples = dataset.samples["train"][::-1] * 6
    more, given = replace(dataset, samples={"train": samples}), {}

    def train(real, synthetic, owner, config):
        given.update(real=real, synthetic=synthetic, owner=owner)
        return real_train(real, synthetic, owner, config)

    def encode(images):
        return np.stack([np.asarray(im, float).reshape(-1, 3).mean(0) for im in images])

    real_train = evaluation.train
    monkeypatch.setattr(evaluation, "train", train)
    train_abc(more, encode, AbCConfig(epochs=1), tmp_path / "abc.safetensors")
    assert len(samples) > 64 and np.array_equal(given["synthetic"], encode([dataset.pixels(s.query_file) for s in samples]))
    assert np.array_equal(given["real"][given["owner"]], encode([dataset.pixels(s.exemplar_file) for s in samples]))
