"""Settings tried on validation: what is changed, what it is held against, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from ard import arena
from ard.arena_choices import base_trained, compared, kept, tried
from ard.baselines.kit import Kit
from ard.baselines.registry import Entry
from ard.config import ConfigError
from ard.intervals import bootstrap_mean, paired_difference
from ard.metrics import to_csv
from ard.records import Attribution, positive
from tests.toy_attribution import toy_dataset

BUILT = []


class Knows:
    """Right for the share `knows` of the concepts, in the order of their ids, else wrong."""

    def __init__(self, dataset, knows):
        concepts = sorted({s.concept_id for s in dataset.samples["val"]})
        self.known = set(concepts[: round(knows * len(concepts))])

    def rank(self, query, gallery):
        own = positive(query.sample, list(gallery)).image_id
        sure = query.sample.concept_id in self.known
        return [Attribution(im.image_id, None, float((im.image_id == own) == sure)) for im in gallery]


def build(kit):
    told = kit.settings.get("test_arena_choices", {})
    BUILT.append(told)
    return Knows(kit.dataset, told.get("knows", {}).get("share", 0.5))


@pytest.fixture
def kit(tmp_path):
    BUILT.clear()
    return Kit(toy_dataset(tmp_path / "toy"), "val", work=tmp_path / "work", settings={"test_arena_choices": {"other": 1}})


KNOWN = {"m": Entry("m", build, (), "tests")}
ROWS = {"m": [{"test_arena_choices.knows.share": 1.0}, {"test_arena_choices.knows.share": 0.0}]}


def test_changes_stand_beside_what_is_used(kit, tmp_path):
    samples = kit.dataset.samples["val"]
    used, better, worse = tried(ROWS, KNOWN, kit, samples, tmp_path / "answers")
    assert [r["change"] for r in (used, better, worse)] == ["as used", "knows.share 1.0", "knows.share 0.0"]
    assert used["minus"] == 0 and better["recall_1"] == 1 and worse["recall_1"] == 0
    assert better["minus"] == pytest.approx(1 - used["recall_1"]) and worse["minus"] == pytest.approx(-used["recall_1"])
    assert BUILT[0] == {"other": 1} and BUILT[1] == {"other": 1, "knows": {"share": 1.0}} and kit.settings == {
        "test_arena_choices": {"other": 1}}
    assert list(tried(ROWS, KNOWN, kit, samples, tmp_path / "answers")) == [used, better, worse] and len(BUILT) == 3


def test_rows_of_an_earlier_table_are_kept_unless_what_they_are_made_of_changed(kit, tmp_path):
    samples, file = kit.dataset.samples["val"], tmp_path / "choices.csv"
    assert kept(file) == {}
    first = list(tried(ROWS, KNOWN, kit, samples, tmp_path / "first"))
    file.write_text(to_csv(first, list(first[0])))
    more = {"m": [*ROWS["m"], {"test_arena_choices.knows.share": 0.25}]}
    again = list(tried(more, KNOWN, kit, samples, tmp_path / "again", kept(file)))
    assert again[:3] == first and len(BUILT) == 3 + 2, "of the new row and what it is held against, nothing else"
    assert again[3] == list(tried(more, KNOWN, kit, samples, tmp_path / "fresh"))[3]
    assert to_csv(again[:3], list(first[0])) == file.read_text()
    BUILT.clear()
    other = list(tried(ROWS, KNOWN, kit.told({"test_arena_choices": {"other": 2}}), samples, tmp_path / "other", kept(file)))
    assert len(BUILT) == 3 and not {r["made_of"] for r in other} & {r["made_of"] for r in first}, "settings in use changed"
    list(tried(ROWS, KNOWN, kit, samples[1:], tmp_path / "fewer", kept(file)))
    assert len(BUILT) == 6, "other queries"


def test_a_few_shot_detector_is_trained_once(kit, tmp_path, monkeypatch):
    trained, entry, file = [], KNOWN["m"], tmp_path / "base.csv"
    monkeypatch.setattr("ard.arena_choices.base_quality", lambda kit, name, scenes: trained.append(name) or scenes / 100)
    first = list(base_trained([entry], kit, 60))
    file.write_text(to_csv(first, list(first[0])))
    assert list(base_trained([entry], kit, 60, kept(file))) == first and trained == ["m"] and first[0]["map_50"] == 0.6
    assert list(base_trained([entry], kit, 70, kept(file)))[0]["map_50"] == 0.7 and trained == ["m", "m"], "other scenes"


def test_a_change_that_would_change_nothing_is_refused(kit, tmp_path):
    for rows, problem in (({"n": []}, "no method 'n'"), ({"m": [{"abu.steps": 2}]}, "'abu.steps' is no setting of 'm'")):
        with pytest.raises(ConfigError, match=problem):
            list(tried(rows, KNOWN, kit, kit.dataset.samples["val"], tmp_path / "answers"))


def test_a_kit_told_otherwise_shares_what_is_open(kit):
    vars(kit)["efficientnet"] = "opened"
    other = kit.told({"a": {}})
    assert other.efficientnet == "opened" and other.settings == {"a": {}} and other.dataset is kit.dataset
    assert kit.settings != other.settings and replace(kit).settings == kit.settings
    assert np.array_equal(sorted(vars(other)), sorted(vars(kit))) and arena.family(KNOWN["m"]) == "test_arena_choices"


def test_numbers_of_a_row_resample_exemplars():
    concepts = np.repeat(list("abcdef"), 4)
    found, used = np.repeat([1.0, 1, 0, 1, 0, 0], 4), np.repeat([0.0, 1, 0, 0, 1, 0], 4)
    row = compared({"recall_1": found, "recall_10": found, "same_class_recall_1": found}, {"recall_1": used}, concepts)
    mean, gap = bootstrap_mean(found, concepts), paired_difference(found, used, concepts)
    assert (row["recall_1"], row["low"], row["high"]) == (mean.mean, mean.low, mean.high)
    assert (row["minus"], row["minus_low"], row["minus_high"]) == (gap.mean, gap.low, gap.high)


def test_a_row_is_of_what_it_is_held_against_too(kit, tmp_path):
    """The change says all of its own settings, so its answers stay; the settings in use are others, so its difference does not."""
    samples, rows, file = kit.dataset.samples["val"], {"m": [{"test_arena_choices.knows.share": 1.0}]}, tmp_path / "c.csv"

    def using(share, before=()):
        told = kit.told({"test_arena_choices": {"knows": {"share": share}}})
        return list(tried(rows, KNOWN, told, samples, tmp_path / str(share), dict(before)))

    first = using(0.5)
    file.write_text(to_csv(first, list(first[0])))
    again = using(0.0, kept(file))
    assert again[1]["recall_1"] == first[1]["recall_1"] == 1 and again[1]["minus"] == pytest.approx(1) and first[1]["minus"] < 1
