"""The ablation table: a wrong setting is refused before anything is trained, a killed run goes on, differences are paired."""

import numpy as np
import pytest
import torch

from ard import ablated, ablation
from ard.config import ConfigError, read_yaml
from ard.detector.features import FeatureCache
from ard.detector.variants import Variant
from ard.files import Ledger
from tests.detector.conftest import NAMES
from tests.detector.conftest import phase_data, toy  # noqa: F401
from tests.toy_attribution import tiny_detector

BASE = {"phase1": {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "schedule": "cosine", "warmup": 0, "losses": "groundingdino",
                   "other_names": 1, "rivals": 1, "absent": 0.5, "rendered": 0, "likeness": True, "whitening": 0.0, "clip": 1.0, "autocast": False, "score_rule": "mean",
                   "seed": 0, "validate_every": 7},
        "phase2": {"steps": 2, "positives": 1, "k": 2, "learning_rate": 1e-3, "schedule": "cosine", "warmup": 0,
                   "lambda_cls": 1.0, "lambda_reg": 0.5, "adapter": "linear", "seed": 0},
        "variant": dict(vars(Variant()))}


def test_a_wrong_key_is_refused_before_any_row_is_trained(tmp_path):
    rows, trained = {"as used": {}, "typo": {"phase1.rival": 0}}, []
    with pytest.raises(ConfigError, match="phase1.rival.*did you mean 'phase1.rivals'"):
        ablation.run_rows(rows, BASE, Ledger(tmp_path / "l"), "", lambda s: trained.append(s), lambda m, v: {})
    assert not trained and BASE["phase1"]["rivals"] == 1


def answered(value):
    return {phase: {name: [float(value), 0.0, 1.0] for name in ablated.MEASURES} for phase in ablated.PHASES}


def asking(tmp_path, rows, base=BASE, shared="the same", stop_after=None):
    """Rows run as the notebook runs them, with detectors that are their settings; (hits, names of what was trained)."""
    trained = []

    def train(settings):
        if len(trained) == stop_after:
            raise KeyboardInterrupt
        trained.append((settings["phase1"]["rivals"], settings["phase2"]["k"]))
        return settings

    def ask(model, variant):
        return answered(model["phase1"]["rivals"])

    return lambda: ablation.run_rows(rows, base, Ledger(tmp_path / "l"), shared, train, ask), trained


def test_rows_that_are_done_are_not_trained_again(tmp_path):
    rows = {"a": {}, "b": {"phase1.rivals": 0}, "c": {"phase2.k": 6}}
    run, trained = asking(tmp_path, rows, stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert trained == [(1, 2), (0, 2)]
    run, trained = asking(tmp_path, rows)
    found = run()
    assert trained == [(1, 6)]
    assert found == {"a": answered(1), "b": answered(0), "c": answered(1)}
    assert asking(tmp_path, rows)[0]() == found


def test_only_what_changed_is_trained_again(tmp_path):
    rows = {"a": {}, "b": {"phase1.rivals": 0}}
    asking(tmp_path, rows)[0]()

    def trained(*arguments, **told):
        run, trained = asking(tmp_path, *arguments, **told)
        run()
        return trained

    assert trained({"b, by another name": rows["b"], "a": {}}) == []
    assert trained({**rows, "c": {"phase2.k": 6}}) == [(1, 6)]
    assert trained(rows) == [] and trained({**rows, "c": {"phase2.k": 6}}) == [(1, 6)], "a row not wanted was dropped"
    watched = {**BASE, "phase1": {**BASE["phase1"], "validate_every": 9}}
    assert trained(rows, base=watched) == [], "nothing here depends on how often 06 looks"
    assert trained(rows, base={**BASE, "phase1": {**BASE["phase1"], "steps": 3}}) == [(1, 2), (0, 2)]
    assert trained(rows, shared="other pictures") == [(1, 2), (0, 2)]


def test_a_row_depends_on_code_and_pictures(tmp_path, monkeypatch, dataset):
    before = ablation.mark(BASE, 1)
    assert ablation.mark(BASE, 1) == before != ablation.mark(BASE, 2)
    read = ablation.code_reached("import ard.ablated", ablation.ROOT)
    assert {"ard/ablated.py", "ard/detector/phases.py", "ard/detector/whitening.py"} <= set(read) and "ard/ablation.py" not in read
    monkeypatch.setattr(ablation, "code_reached", lambda source, root: {**read, "ard/ablated.py": "edited"})
    assert ablation.mark(BASE, 1) != before
    samples = ablation.validation_samples(dataset, 1)
    (tmp_path / "world").mkdir()
    shared = ablation.shared_by_rows(samples, tmp_path)
    (tmp_path / "world" / "a").write_text("a picture")
    assert shared != ablation.shared_by_rows(samples, tmp_path) != ablation.shared_by_rows(samples[1:], tmp_path)


def test_a_row_depends_on_all_data_that_its_stage_reads():
    stage = read_yaml(ablation.ROOT / "ablations" / "dvc.yaml")["stages"]["20_ablations"]
    assert {dep.removeprefix("data/") for dep in stage["deps"] if dep.startswith("data/")} == set(ablation.READ)


def test_a_row_is_compared_with_the_one_it_names():
    rows = {"as used": {}, "paper": {"phase1.rivals": 0}, "seed": {"phase1.seed": 1, "against": "paper"}}
    assert ablation.references(rows) == {"as used": "as used", "paper": "as used", "seed": "paper"}
    with pytest.raises(ConfigError, match="'papr', which is no row; did you mean 'paper'"):
        ablation.references({**rows, "seed": {"against": "papr"}})


def test_differences_are_paired_with_the_first_row(dataset):
    samples = ablation.validation_samples(dataset, 0)
    rng = np.random.default_rng(0)
    right = (rng.random(len(samples)) < 0.5).astype(float)

    def phases(shift):
        same = {name: list(right) for name in ablated.MEASURES}
        return {"ARD-": same, "ARD": {**same, "recall_1": list(np.clip(right - shift, 0, 1))}}

    against = ablation.references({"as used": {}, "worse": {}})
    table = ablation.ablation_table({"as used": phases(0), "worse": phases(1)}, samples, against)
    assert [(r["row"], r["method"]) for r in table] == [("as used", "ARD-"), ("as used", "ARD"), ("worse", "ARD-"), ("worse", "ARD")]
    assert table[0]["difference"] == table[2]["difference"] == 0 and table[3]["difference"] == -right.mean()
    assert table[3]["difference_low"] <= -right.mean() <= table[3]["difference_high"]
    assert table[3]["recall_1"] == 0 and table[3]["same_class_recall_1"] == pytest.approx(right.mean())


def test_trainings_of_the_same_settings_are_taken_together(dataset):
    samples = ablation.validation_samples(dataset, 0)
    rng = np.random.default_rng(1)
    right = {name: (rng.random(len(samples)) < share).astype(float) for name, share in
             {"a": 0.9, "a seed 1": 0.7, "b": 0.3, "b seed 1": 0.2}.items()}
    found = {name: {phase: {"recall_1": list(hits)} for phase in ablated.PHASES} for name, hits in right.items()}
    rows = ablation.over_seeds(found, {"a": ["a", "a seed 1"], "b": ["b", "b seed 1"], "one": ["a"]}, samples)
    assert [(r["settings"], r["method"], r["trainings"]) for r in rows[:3]] == [("a", "ARD-", 2), ("a", "ARD", 2), ("b", "ARD-", 2)]
    shares = [right["a"].mean(), right["a seed 1"].mean()]
    assert rows[0]["recall_1"] == pytest.approx(np.mean(shares)) and rows[0]["difference"] == 0
    assert rows[0]["spread"] == pytest.approx(abs(shares[0] - shares[1]) / np.sqrt(2)) and rows[4]["spread"] is None
    gap = np.mean([right["b"], right["b seed 1"]]) - np.mean(shares)
    assert rows[2]["difference"] == pytest.approx(gap)
    assert rows[2]["difference_low"] <= rows[2]["difference"] <= rows[2]["difference_high"]
    with pytest.raises(ConfigError, match="'b seed 2', which is no row; did you mean 'b seed 1'"):
        ablation.over_seeds(found, {"b": ["b", "b seed 2"]}, samples)


def test_hits_are_in_the_order_of_the_samples(dataset):
    samples = ablation.validation_samples(dataset, 0)
    model, cache = tiny_detector(), FeatureCache()
    whole = ablated.hits(model, dataset, samples, cache)
    back = ablated.hits(model, dataset, samples[::-1], cache)
    assert whole.keys() == {"ARD-", "ARD"} and set(whole["ARD"]) == set(ablated.MEASURES)
    assert all(whole[p][m] == back[p][m][::-1] and len(whole[p][m]) == len(samples) for p in whole for m in whole[p])


def test_what_is_switched_off_is_not_trained(dataset, phase_data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(ablated, "load_detector", lambda folder: tiny_detector())

    def pairs(count):
        raise AssertionError("no rendered pairs were wanted")

    paper = ablation.changed_settings(BASE, {"phase1.likeness": False, "phase1.rivals": 0, "phase1.absent": 0.0})
    def positives(variant):
        return phase_data

    plain = ablated.learn("", positives, pairs, paper, NAMES, tmp_path / "paper")
    ours = ablated.learn("", positives, pairs, BASE, NAMES, tmp_path / "ours")
    assert plain.likeness_head is None and ours.likeness_head is not None and plain.config.adapters
    with pytest.raises(AssertionError, match="no rendered pairs"):
        ablated.learn("", positives, pairs, ablation.changed_settings(BASE, {"phase1.rendered": 3}), NAMES, tmp_path / "r")


def test_rows_of_one_first_phase_train_it_once(phase_data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(ablated, "load_detector", lambda folder: tiny_detector())
    steps, real = [], ablated.train_phase1

    def counted(*arguments, **told):
        log = real(*arguments, **told, watched=lambda loss_of: lambda *a: (steps.append(1), loss_of(*a))[1])
        return log

    monkeypatch.setattr(ablated, "train_phase1", counted)

    def train(changes):
        settings = ablation.changed_settings(BASE, changes)
        return ablated.learn("", lambda variant: phase_data, lambda count: None, settings, NAMES, tmp_path)

    first, other, text = train({}), train({"phase2.k": 3, "phase2.learning_rate": 0.01}), train({"phase1.score_rule": "text"})
    assert len(steps) == BASE["phase1"]["steps"] and text.config.score_rule == "text"
    assert torch.equal(first.exemplar_projection.weight, other.exemplar_projection.weight)
    assert not torch.equal(first.score_head.region.weight, other.score_head.region.weight)
    assert torch.equal(first.score_head.region.weight, text.score_head.region.weight)
    train({"phase1.seed": 1})
    assert len(steps) == 2 * BASE["phase1"]["steps"]


def test_what_a_phase_depends_on_has_a_folder_of_its_own(tmp_path):
    def places(changes):
        return ablated.folders(tmp_path, ablation.changed_settings(BASE, changes))

    used = places({})
    assert used == ablated.folders(tmp_path, {k: v for k, v in BASE.items() if k != "variant"})
    assert places({"phase1.score_rule": "text"}) == used, "nothing is trained by the rule"
    for changes in ({"variant.query_box": "released"}, {"variant.parts": "text"}, {"variant.fused_layers": 1},
                    {"phase1.seed": 5}):
        assert not set(places(changes)) & set(used)
    late = [places(c) for c in ({"variant.negatives": "mined"}, {"variant.objective": "infonce"}, {"phase2.k": 3},
                                {"variant.negatives": "mined", "phase1.score_rule": "text"})]
    assert {first for first, _ in late} == {used[0]} and len({second for _, second in [used, *late]}) == 5


def test_rendered_pairs_are_not_asked_with_wrong_boxes(tmp_path):
    wrong = ablation.changed_settings(BASE, {"variant.query_box": "released", "phase1.rendered": 4})
    with pytest.raises(ValueError, match="phase1.rendered to 0"):
        ablated.learn("", None, None, wrong, NAMES, tmp_path)
