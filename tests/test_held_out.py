"""A held-out test set is asked as the first one was: what methods learn from stays, every query is asked of every method once."""

import shutil

import pytest

from ard import arena_tables, held_out, report
from ard.baselines.kit import Kit
from ard.detector.model import save_detector
from ard.detector.operating import save_operating_point
from ard.evaluation import alone
from tests.detector.conftest import tiny  # noqa: F401
from tests.test_evaluation import Guess
from tests.toy_attribution import ROOT, toy_dataset

OTHER = "GroundingDINO (words alone)"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders of two datasets, the known one and a held-out one, with other queries."""
    root = tmp_path_factory.mktemp("both")
    for name, size in (("known", 1), ("new", 2)):
        toy_dataset(root / name, per_class=size).save()
    return root


@pytest.fixture
def kit(both, tmp_path, tiny):  # noqa: F811
    for name in ("open_set", "exemplar_prompted", "ard"):
        save_detector(tiny, tmp_path / "models" / name)
    save_operating_point(tmp_path / "models/open_set", 0.01)
    shutil.copytree(ROOT / "data/world", tmp_path / "world")
    return Kit(held_out.opened(both / "known", both / "new"), data=tmp_path, work=tmp_path / "work")


def test_train_is_the_known_one_and_test_the_held_out_one(both):
    known, new = (held_out.Dataset.load(both / name) for name in ("known", "new"))
    dataset = held_out.opened(both / "known", both / "new")
    assert dataset.samples["train"] == known.samples["train"] and dataset.gallery["train"] == known.gallery["train"]
    assert [s.sample_id for s in dataset.samples["test"]] == [s.sample_id for s in new.samples["test"]]
    one = held_out.opened(both / "known", both / "new", max_exemplars=1)
    assert len({s.concept_id for s in one.samples["test"]}) == 1 and len(one.gallery["test"]) == len(dataset.gallery["test"])


def test_the_methods_of_notebook_08_in_the_order_of_its_table(kit):
    names = list(held_out.evaluated(kit, abc_epochs=1))
    assert [*names, "ARD-", "ARD"] == list(arena_tables.EVALUATED)
    assert list(held_out.evaluated(kit, boxes_only=True)) == [name for name in names if name not in ("image cosine", "AbC")]


def test_all_are_asked_everything_and_a_killed_run_goes_on(kit, monkeypatch):
    monkeypatch.setattr(held_out, "rendered_query", lambda world, sample, seed: kit.dataset.query(sample))
    guess = Guess(kit.dataset)
    answers = held_out.ask_all(kit, {"guess": alone("guess", guess)}, [OTHER])
    assert list(answers) == ["guess", OTHER, "ARD-", "ARD", report.RENDERED]
    asked = {s.sample_id for s in kit.dataset.samples["test"]}
    assert all(set(found) == asked for found in answers.values()) and guess.asked == len(asked)
    assert answers[report.RENDERED] == answers["ARD"], "the same queries, here"
    assert held_out.ask_all(kit, {"guess": alone("guess", guess)}, [OTHER]) == answers and guess.asked == len(asked)


def test_a_second_asking_does_not_replace_the_first(kit):
    guess = alone("guess", Guess(kit.dataset))
    with pytest.raises(ValueError, match="asked twice: guess"):
        held_out.ask_generated(kit, {"guess": guess, "guess, from 0.01": guess})


def test_the_table_says_what_each_was_given_and_how_far_ard_is_ahead(kit):
    right, wrong = Guess(kit.dataset), Guess(kit.dataset, knows=False)
    gallery, samples = kit.dataset.open_gallery("test"), kit.dataset.samples["test"]
    answers = {name: {s.sample_id: method.rank(kit.dataset.query(s), gallery) for s in samples}
               for name, method in ((OTHER, wrong), ("ARD", right), (report.RENDERED, right))}
    outcomes, rows = held_out.table(answers, kit.dataset, "new")
    gated = {row["method"]: row for row in rows if row["gated"]}
    assert list(outcomes) == list(answers) and {row["dataset"] for row in rows} == {"new"}
    assert gated[OTHER]["given"] == "text" and gated[OTHER]["ard_minus"] == 1.0 and gated[OTHER]["recall_1"] == 0.0
    assert gated[report.RENDERED]["given"] == gated["ARD"]["given"] and gated["ARD"]["recall_1"] == 1.0
