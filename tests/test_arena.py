"""The arena: each method is asked once, by what its answers depend on; and its table reads both sides of a pair alike."""

import importlib.util
import re
import sys
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest

from ard import arena, arena_tables, gallery_figures, metrics
from ard.baselines import registry, simple
from ard.baselines.kit import Kit
from ard.baselines.registry import Entry, RegistryError, entries
from ard.config import load_params
from ard.evaluation import asked_samples
from ard.files import Ledger, read_jsonl
from ard.intervals import paired_difference
from ard.provenance import code_of
from ard.records import Attribution, Dataset
from tests.test_evaluation import Guess
from tests.toy_attribution import ROOT

ASKED = []


@pytest.fixture
def kit(dataset, tmp_path):
    ASKED.clear()
    return Kit(dataset, data=tmp_path / "data", work=tmp_path / "work")


class Noted(Guess):
    """Writes down which queries it was asked, and that it was fitted on train alone."""

    def __init__(self, name, dataset, **kinds):
        super().__init__(dataset, **kinds)
        self.name = name

    def fit(self, ad_train, generator):
        ASKED.append((self.name, "fit", *ad_train.samples))

    def rank(self, query, gallery):
        ASKED.append((self.name, query.sample.sample_id))
        return super().rank(query, gallery)


def right(kit):
    return Noted("right", kit.dataset)


def blind(kit):
    return Noted("blind", kit.dataset, knows=False, boxes=False)


TWO = {"right": Entry("right", right, ("box",), "", per_query=True), "blind": Entry("blind", blind, (), "")}


@pytest.fixture(autouse=True)
def no_generator(monkeypatch):
    monkeypatch.setattr(Kit, "generator", None)


def test_a_method_is_asked_once_and_a_new_one_alone(kit, dataset, tmp_path):
    samples = dataset.samples["test"]
    first = arena.run({"blind": TWO["blind"]}, kit, samples, tmp_path / "out", timings=tmp_path / "t.json")
    assert ASKED == [("blind", "fit", "train"), *(("blind", s.sample_id) for s in samples)]
    ASKED.clear()
    both = arena.run(TWO, kit, samples, tmp_path / "out", timings=tmp_path / "t.json")
    assert {who for who, *_ in ASKED} == {"right"} and both["blind"] == first["blind"]
    ASKED.clear()
    assert arena.run(TWO, kit, samples, tmp_path / "out") == both and not ASKED
    costs = arena.read_json(tmp_path / "t.json")
    assert set(costs) == {"right", "blind"} and all(cost["query_seconds"] >= 0 for cost in costs.values())
    again = arena.run({"right": TWO["right"]}, kit, samples, tmp_path / "out")
    lines = (tmp_path / "out/answers.jsonl").read_text().splitlines()
    assert again["right"] == both["right"] and len(lines) == 1, "a method that left the list leaves the file"


def test_a_slow_method_is_asked_one_query_of_each_exemplar(kit, dataset, tmp_path):
    found = arena.run(TWO, kit, dataset.samples["test"], tmp_path / "out")
    assert len(found["right"]["rank"]) == 6 and len(found["blind"]["rank"]) == 12
    chosen = arena.subset(TWO["right"], dataset.samples["test"])
    assert len({s.concept_id for s in chosen}) == 6


def test_a_killed_run_goes_on_at_its_query(kit, dataset, tmp_path, monkeypatch):
    samples, rank = dataset.samples["test"], Noted.rank

    def dies(self, query, gallery):
        if len(ASKED) == 5:
            raise KeyboardInterrupt
        return rank(self, query, gallery)

    whole = arena.run({"blind": TWO["blind"]}, replace(kit, work=tmp_path / "other"), samples, tmp_path / "whole")
    ASKED.clear()
    monkeypatch.setattr(Noted, "rank", dies)
    with pytest.raises(KeyboardInterrupt):
        arena.run({"blind": TWO["blind"]}, kit, samples, tmp_path / "out")
    monkeypatch.setattr(Noted, "rank", rank)
    ASKED.clear()
    assert arena.run({"blind": TWO["blind"]}, kit, samples, tmp_path / "out") == whole
    assert len([a for a in ASKED if a[1] != "fit"]) == len(samples) - 4


def test_answers_to_other_settings_are_not_taken_for_these(kit, dataset, tmp_path):
    samples, blind_only = dataset.samples["test"], {"blind": TWO["blind"]}
    arena.run(blind_only, kit, samples, tmp_path / "out")
    ASKED.clear()
    arena.run(blind_only, replace(kit, settings={"test_arena": {"steps": 2}}), samples, tmp_path / "out")
    assert len([a for a in ASKED if a[1] != "fit"]) == len(samples), "the same work folder holds answers to the old settings"


def module(path, text, name="made_method"):
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return Entry("made", found.build, ("box",), "", reads=("models/open_set",))


def test_what_makes_a_method_run_again(kit, dataset, tmp_path):
    samples, plain = dataset.samples["test"], "import ard.intervals\ndef build(kit):\n    return 1\n"

    def of(text=plain, kit=kit, samples=samples, shown=()):
        return arena.fingerprint(module(tmp_path / "made_method.py", text), kit, samples, shown)

    same = of()
    assert of("# why\nimport ard.intervals\ndef build(kit):\n    'What.'\n    return 1\n") == same, "words alone change nothing"
    assert of(plain.replace("1", "2")) != same
    assert of(plain.replace("intervals", "geometry")) != same, "the code that it reaches counts"
    assert of(kit=replace(kit, settings={"made_method": {"steps": 2}})) != same
    assert of(kit=replace(kit, settings={"abu": {"steps": 2}})) == same, "another method's settings do not count"
    assert of(samples=samples[1:]) != same and of(shown=["a"]) != same
    moved = [replace(samples[0], exemplar_box=(1.0, 1.0, 9.0, 9.0)), *samples[1:]]
    assert of(samples=moved) != same, "where the source is decides the record"
    taught = {**dataset.samples, "train": dataset.samples["train"][1:]}
    assert of(kit=replace(kit, dataset=replace(dataset, samples=taught))) != same, "so does what was learned from"
    bare = {**dataset.gallery, "test": [replace(image, objects=()) for image in dataset.gallery["test"]]}
    assert of(kit=replace(kit, dataset=replace(dataset, gallery=bare))) != same, "and what the gallery shows"
    (kit.data / "models/open_set").mkdir(parents=True)
    (kit.data / "models/open_set/w").write_text("1")
    assert of() != same
    assert of(kit=replace(kit, dataset=replace(dataset, root=tmp_path))) != same, "no pictures there"


def test_a_change_of_a_method_makes_the_stages_stale_that_ask_it():
    code = code_of(ROOT / "notebooks/10_arena.ipynb", ROOT)
    assert {f"ard/baselines/{name}.py" for name in ("abu", "abc_rows", "simple")} <= set(code) and "ard/baselines/fsod/rows.py" in code


def test_the_registry_itself_is_no_part_of_a_fingerprint():
    listed = arena._code_of("from ard.baselines.simple import ENTRIES", ".")
    names = {line.split()[0] for line in listed}
    assert "ard/detector/model.py" in names and not names & {*arena.JOINTS, "ard/evaluation.py"}


def test_summary_against_the_answers(dataset):
    samples, gallery, rng = dataset.samples["test"], dataset.gallery["test"], np.random.default_rng(0)
    answers = {s.sample_id: [Attribution(im.image_id, (0.0, 0.0, 9.0, 9.0), float(v)) for im, v in
                             zip(gallery, rng.random(len(gallery)))] for s in samples}
    kept = arena.summary(answers, samples, dataset, "test", shown=[samples[0].sample_id, "elsewhere"])
    outcomes = metrics.evaluate(answers, dataset)
    assert arena_tables.outcomes_of(kept, samples, dataset, "test")[3].rank == outcomes[3].rank
    assert [r == 1 for r in kept["rank"]] == [f == 0 for f in kept["first"]] and set(kept["first"]) == {0, 1, 2}
    for i, s in enumerate(samples):
        scores = {a.image_id: a.score for a in answers[s.sample_id]}
        own = next(im.image_id for im in gallery if im.file == s.exemplar_file)
        assert kept["best"][i] == pytest.approx(max(scores.values()), rel=1e-3)
        assert kept["without"][i] == pytest.approx(max(v for k, v in scores.items() if k != own), rel=1e-3)
    wrong = [max(a.score for a in answers[s.sample_id]) for s, r in zip(samples, kept["rank"]) if r > 1]
    assert [w[-1] for w in kept["wrong"]] == pytest.approx(sorted(wrong, reverse=True)[: arena.WRONG], rel=1e-3)
    assert list(kept["shown"]) == [samples[0].sample_id] and len(kept["shown"][samples[0].sample_id]) == len(gallery)


def test_nothing_found_is_kept_as_nothing(dataset):
    samples = dataset.samples["test"][:2]
    answers = {s.sample_id: [Attribution(im.image_id, None, float("-inf")) for im in dataset.gallery["test"]] for s in samples}
    kept = arena.summary(answers, samples, dataset, "test")
    assert kept["best"] == [None, None] and kept["wrong"] == [] and kept["rank"] == [6, 6]
    assert arena_tables.trust({"m": kept}) == [{"method": "m", "auroc": 0.5}]


def answered(dataset, samples, knows, boxes):
    method, gallery = Guess(dataset, knows, boxes), dataset.open_gallery("test")
    return metrics.evaluate({s.sample_id: method.rank(dataset.query(s), gallery) for s in samples}, dataset)


def test_the_table_reads_both_sides_alike(dataset):
    samples = dataset.samples["test"]
    ours = [replace(o, iou=0.0) for o in answered(dataset, samples, True, True)]  # right images, wrong boxes
    outcomes = {"ARD": ours, "boxes": answered(dataset, samples, True, True),
                "none": answered(dataset, samples[::2], False, False)}
    rows = arena_tables.table(outcomes, {"ARD": ("text",), "boxes": ("training", "box"), "none": ()}, "toy")
    by = {(r["method"], r["gated"]): r for r in rows}
    assert by["boxes", True]["ard_minus"] == -1 and by["boxes", False]["ard_minus"] == 0
    assert by["none", False]["ard_minus"] == 1 and ("none", True) not in by and by["none", False]["n_queries"] == 6
    assert by["boxes", True]["given"] == "box, training" and by["none", False]["given"] == "Q alone"
    assert by["class oracle", False]["given"] == "the truth" and set(rows[0]) == set(arena_tables.COLUMNS)


def test_a_source_above_all_others_above_half_and_tied_with_them(dataset):
    samples = dataset.samples["test"]
    facts = [metrics.facts(s, dataset.gallery["test"]) for s in samples]
    n = facts[0].gallery_size
    first, last = ([metrics.Outcome(f, rank, 1, None) for f in facts] for rank in (1, n))
    mixed = [metrics.Outcome(f, 1 if i % 2 else n, 1, None) for i, f in enumerate(facts)]
    names = {"first": first, "last": last, "mixed": mixed, "fewer": first[:4]}
    against = {"first": "last", "fewer": "last", "mixed": "absent", "last": "fewer"}
    rows = {r["method"]: r for r in arena_tables.above_others(names, against)}
    assert [rows[name]["above"] for name in names] == [1, 0, 0.5, 1] and rows["first"]["minus"] == 1
    assert rows["mixed"]["above_low"] <= 0.5 <= rows["mixed"]["above_high"]
    assert rows["fewer"]["minus"] == 1, "over its own queries"
    assert rows["last"]["minus"] is None and rows["mixed"]["minus"] is None, "only what was asked the same is compared"


def test_rows_of_08_must_be_of_the_same_queries(dataset):
    samples = dataset.samples["test"]
    rows = [{"method": name, "sample_id": s.sample_id, "rank": 2, "same_class_rank": 1, "iou": 0.7}
            for name in arena_tables.EVALUATED for s in samples[1:]]
    assert arena_tables.evaluated(rows, samples[1:], dataset, "test")["ARD"][0].rank == 2
    with pytest.raises(ValueError, match=f"1 of 12 queries.*{samples[0].sample_id}"):
        arena_tables.evaluated(rows, samples, dataset, "test")


def test_entries_come_from_installed_packages_too(monkeypatch):
    class Point:
        def __init__(self, found):
            self.found = found

        def load(self):
            return self.found

    def installed(*found):
        monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [Point(f) for f in found if group == "ard.methods"])
        return entries([simple])

    known = installed(TWO["blind"], [TWO["right"]])
    assert {"GroundingDINO (words alone)", "blind", "right"} <= set(known)
    assert "blind" not in entries([simple], skip=["blind"])
    with pytest.raises(RegistryError, match="no method 'blinds' to skip; did you mean 'blind'"):
        entries([simple], skip=["blinds"])
    with pytest.raises(RegistryError, match="'blind' stands twice"):
        installed(TWO["blind"], TWO["blind"])
    with pytest.raises(RegistryError, match="expected an Entry, found function"):
        installed(right)


def test_a_misspelt_need_is_refused():
    with pytest.raises(RegistryError, match="method 'x': unknown 'boxes'.*did you mean 'box'"):
        Entry("x", right, ("boxes",), "")


def test_shipped_answers_are_of_the_shipped_code(monkeypatch):
    monkeypatch.chdir(ROOT)
    told, shipped = load_params("params.yaml", "arena"), Dataset.load("data/mini-coco")
    samples = asked_samples(shipped, "test", told["queries_per_exemplar"], told["max_exemplars"])
    ours = {(row["method"], row["sample_id"]): row for row in read_jsonl("data/results/queries.jsonl")[0]}
    shown = [s.sample_id for s in gallery_figures.illustrative(ours, samples, told["shown_queries"])]
    kit, known = Kit(shipped, settings=told["methods"]), entries(skip=told["skip"])
    wanted = [f"{name} {arena.fingerprint(entry, kit, arena.subset(entry, samples), shown)}" for name, entry in known.items()]
    assert Ledger("data/arena/answers.jsonl").keys() == wanted, "run: python -m ard.run 10_arena"


def test_the_example_of_the_readme_gets_its_row(kit, dataset, tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [block] = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "ENTRIES" in b]
    assert len(block.splitlines()) < 30
    (tmp_path / "brightness.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    assert re.search(r'entry-points."(.*)"\]', text)[1] == registry.GROUP
    points = [metadata.EntryPoint("brightness", re.search(r'^brightness = "(.*)"', text, re.MULTILINE)[1], "ard.methods")]
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: points)
    known = entries([])
    record = arena.run(known, kit, dataset.samples["test"], tmp_path / "out")["brightness"]
    assert len(record["rank"]) == 12 and len(set(record["rank"])) > 1


def test_the_gap_to_ours_resamples_exemplars(dataset):
    samples = dataset.samples["test"]
    ours = answered(dataset, samples, True, False)
    theirs = [replace(o, rank=1 + i // 2 % 2) for i, o in enumerate(ours)]  # both queries of every second exemplar go wrong
    found = arena_tables.behind(ours, theirs, gated=False)
    a, b = (metrics.values(side, False)["recall_1"] for side in (ours, theirs))
    want = paired_difference(a, b, [s.concept_id for s in samples])
    assert [found[k] for k in ("ard_minus", "ard_minus_low", "ard_minus_high")] == pytest.approx([want.mean, want.low, want.high], abs=1e-6)
    assert not np.isclose(want.low, paired_difference(a, b, range(len(a))).low)


def test_of_equal_answers_the_order_does_not_matter():
    answers = [Attribution(name, None, score) for name, score in (("c", 0.5), ("a", 0.5), ("b", 0.9), ("d", 0.5))]
    assert [a.image_id for a in arena.strongest(answers)] == [a.image_id for a in arena.strongest(answers[::-1])] == ["b", "a", "c", "d"]


def test_the_split_and_the_class_filter_decide_a_record(kit, dataset, tmp_path):
    entry = module(tmp_path / "made_method.py", "def build(kit):\n    return 1\n")

    def of(entry=entry, **changes):
        return arena.fingerprint(entry, replace(kit, **changes), dataset.samples["test"])

    assert of() != of(split="val")
    assert of() != of(settings={"class_filter": {"threshold": 0.3}}), "its boxes are those of the class filter"
    blind = replace(entry, reads=())
    assert of(blind) == of(blind, settings={"class_filter": {"threshold": 0.3}})


def test_an_answer_of_the_class_is_so_wherever_the_class_stands_in_its_picture(dataset):
    sample, gallery = dataset.samples["test"][0], dataset.gallery["test"]
    other = next(im for im in gallery if im.objects[0].class_name != sample.class_name)
    cat = replace(other.objects[0], class_name=sample.class_name, individual_id="")
    shown = [im if im is not other else replace(other, objects=(*other.objects, cat)) for im in gallery]
    assert arena.first_answer(sample, Attribution(other.image_id, None, 1.0), gallery) == 2
    assert arena.first_answer(sample, Attribution(other.image_id, None, 1.0), shown) == 1


def test_trust_compares_galleries_with_the_source_and_without():
    rows = arena_tables.trust({"sure": {"best": [0.9, 0.8], "without": [0.1, None]}, "half": {"best": [0.9, 0.3], "without": [0.5, 0.5]},
                               "fooled": {"best": [0.1, 0.2], "without": [0.5, 0.6]}})
    assert [row["auroc"] for row in rows] == [1, 0.5, 0]
