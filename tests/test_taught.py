"""A study's detector is the one that settings of phase 1 describe: before it, or after it in either way of teaching."""

import pytest
import torch

from ard.detector.model import load_detector, save_detector
from ard.taught import after_phase1
from tests.detector.conftest import tiny  # noqa: F401
from tests.toy_attribution import CLASSES, ROOT, toy_dataset

SETTINGS = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "schedule": "cosine", "warmup": 0, "losses": "groundingdino", "clip": 1.0,
            "autocast": False, "other_names": 1, "rivals": 1, "absent": 0.25, "rendered": 4, "whitening": 3.0, "score_rule": "exemplar",
            "companions": 1.0, "class_words": True, "likeness_weight": 1.5, "seed": 0}


@pytest.fixture
def learn(tiny, tmp_path):  # noqa: F811
    dataset = toy_dataset(tmp_path / "toy", per_class=1)
    save_detector(tiny, tmp_path / "start")
    return lambda **told: after_phase1(tmp_path / "start", {**SETTINGS, **told}, dataset, ROOT / "data/world", CLASSES, tmp_path / "work")


def test_settings_decide_what_is_learned_and_the_likeness_is_measured_once(learn, tmp_path):
    start = load_detector(tmp_path / "start").state_dict()
    before, words, published = learn(steps=0), learn(), learn(class_words=False)
    for model in (before, words, published):
        assert not model.training and model.config.likeness_weight == 1.5 and model.config.score_rule == "exemplar"
        assert torch.equal(model.likeness_head.project.weight, before.likeness_head.project.weight)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in start.items()), "nothing is trained in 0 steps"
    moved = [model.state_dict()["exemplar_projection.weight"] for model in (words, published)]
    assert not torch.equal(*moved) and not any(torch.equal(m, start["exemplar_projection.weight"]) for m in moved)


def test_a_run_that_was_done_is_read_again(learn, tmp_path):
    first = learn()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npz")}
    again = learn()
    assert files and files == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npz")}
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values()))
