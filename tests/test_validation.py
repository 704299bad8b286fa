"""Training with a watch: the same weights as without, rows that survive a kill, and never a look at the test split."""

import dataclasses

import pytest
import torch

from ard import validation as v
from ard.detector import phases
from ard.detector.train import TrainSettings
from tests.detector.conftest import NAMES
from tests.detector.conftest import phase_data, toy  # noqa: F401
from tests.toy_attribution import CLASSES, tiny_detector, toy_dataset

SETTINGS = TrainSettings(steps=5, batch_size=2, warmup=0, learning_rate=1e-3, log_every=1, checkpoint_every=1)


class Check:
    def __init__(self, die_at=None):
        self.count, self.die_at = 0, die_at

    def __call__(self, model):
        self.count += 1
        if self.count == self.die_at:
            raise KeyboardInterrupt
        model.eval()
        torch.rand(3)  # must not change what is learned
        model.train()
        return {"weight": round(float(model.exemplar_projection.weight.detach().sum()), 6)}


def test_watching_changes_nothing_and_sees_each_due_step(phase_data, tmp_path):
    plain, watched = tiny_detector(), tiny_detector()
    phases.train_phase1(plain, phase_data, NAMES, SETTINGS, tmp_path / "a")
    log, rows = v.watched_phase1(watched, phase_data, NAMES, SETTINGS, v.Watch(Check(), 2, tmp_path / "b"))
    assert v.changed(plain, watched) == set() and len(log) == 5
    assert [r["step"] for r in rows] == [0, 2, 4, 5] and len({r["weight"] for r in rows}) == 4


def test_what_is_watched_is_measured_in_full_precision(phase_data, tmp_path):
    class Precise(Check):
        def __call__(self, model):
            assert not torch.is_autocast_enabled("cpu")
            return super().__call__(model)

    settings = dataclasses.replace(SETTINGS, autocast=True)
    watch = v.Watch(Precise(), 2, tmp_path)
    assert len(v.watched_phase1(tiny_detector(), phase_data, NAMES, settings, watch)[1]) == 4


@pytest.mark.parametrize("phase", [1, 2])
def test_a_killed_run_ends_the_same(phase, phase_data, tmp_path):
    def run(check, folder):
        model = tiny_detector()
        watch = v.Watch(check, 2, tmp_path / folder)
        if phase == 1:
            return model, v.watched_phase1(model, phase_data, NAMES, SETTINGS, watch)
        return model, v.watched_phase2(model, phase_data, SETTINGS, watch)

    whole, expected = run(Check(), "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Check(die_at=2), "killed")
    again, found = run(Check(), "killed")
    assert v.changed(whole, again) == set() and found == expected


def test_validation_asks_the_validation_split_only(tmp_path):
    dataset = toy_dataset(tmp_path)
    check = v.Validation(dataset, 4)
    assert len(check.samples) == 4 and {s.split for s in check.samples} == {"val"}
    model = tiny_detector().train()
    row = check(model)
    assert tuple(row) == v.COLUMNS and row["same_class_chance"] == 0.5 and model.training
    with pytest.raises(ValueError, match="test split"):
        v.Validation(dataset, 4, "test")


def test_phase_data_is_read_back(tmp_path, monkeypatch):
    dataset, file = toy_dataset(tmp_path), tmp_path / "train.safetensors"
    first = v.stored_phase_data(dataset, "train", file, 3)
    monkeypatch.setattr(phases, "load_phase_data", None)
    again = v.stored_phase_data(dataset, "train", file, 3)
    fresh = first.gallery.shape
    assert torch.equal(first.queries, again.queries) and (first.boxes == again.boxes).all() and fresh[:2] == (2, 6)
    assert again.names == first.names and len(again.names) == 3 and set().union(*again.shown) == set(CLASSES)


def test_card_and_csv():
    assert v.csv_of([{"step": 1, "loss": 0.5}]) == "step,loss\n1,0.5\n"
    assert "| box_acc | 0.5000 |" in v.model_card("ARD", "a detector", {"box_acc": 0.5})
