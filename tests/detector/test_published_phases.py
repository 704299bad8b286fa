"""The published detector learns pairs: phase 1 all but its backbones and F, phase 2 F alone; box and picture move together."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from ard.detector import published_phases as pp
from ard.detector.criterion import corners
from ard.detector.processor import AttributionProcessor
from ard.detector.prompts import EXEMPLAR, TEXT
from ard.detector.published import AttributionDetector
from ard.detector.train import TrainSettings, supervised_loss
from ard.validation import changed
from tests.detector.official import small_config
from tests.toy_attribution import CLASSES, toy_dataset

SETTINGS = TrainSettings(steps=8, batch_size=2, warmup=0, learning_rate=1e-4, schedule="step", log_every=1, checkpoint_every=2)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return pp.Pairs(toy_dataset(tmp_path_factory.mktemp("toy")), "train", AttributionProcessor(96, 160))


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return AttributionDetector(small_config(shared_vision=False))


def test_phase_1_learns_all_but_the_backbones_and_f(detector, pairs, tmp_path):
    before, loss = copy.deepcopy(detector), supervised_loss(SETTINGS)
    pp.train_phase1(detector, pairs, CLASSES, SETTINGS, tmp_path)
    names = changed(before, detector)
    assert {"exemplar_projection.weight", "model.text_projection.weight"} <= names
    assert not [n for n in names if "backbone" in n or n.startswith(("score_head.region", "score_head.token"))]
    with torch.no_grad():
        first, last = (loss(m, pp.phase1_batches(m, pairs, CLASSES, 12)(np.random.default_rng(1)))[1]["loss"] for m in (before, detector))
    assert last < 0.9 * first, "the same pictures, before and after"


def test_phase_2_learns_f_alone_from_the_identity(detector, pairs, tmp_path):
    before = copy.deepcopy(detector)
    rows = pp.train_phase2(detector, pairs, dataclasses.replace(SETTINGS, steps=2, batch_size=1), tmp_path, k=2)
    assert changed(before, detector) == {f"score_head.{m}.{p}" for m in ("region", "token") for p in ("weight", "bias")}
    assert rows[0]["orthogonality"] < 1e-5 < rows[-1]["orthogonality"] and detector.config.adapters


def test_phase_1_lights_name_and_exemplar_on_the_box_of_the_picture_as_it_is_shown(detector, pairs, monkeypatch):
    opened = []
    monkeypatch.setattr(pp.Pairs, "gallery", lambda *given, real=pp.Pairs.gallery: opened.append(real(*given)) or opened[-1])
    batch = pp.phase1_batches(detector, pairs, CLASSES, 6)(np.random.default_rng(0))
    assert {bool(one.transform.steps[0][0] == "hflip") for one in opened} == {True, False}
    for i, one in enumerate(opened):
        assert batch.targets.real[i].tolist() == [True]
        box = corners(batch.targets.boxes[i]) * torch.tensor([*one.transform.size] * 2)
        assert torch.allclose(box, torch.tensor(one.boxes, dtype=torch.float32), atol=1e-3)
        lit = batch.targets.tokens[i, 0].bool()
        phrase = batch.prompt.phrase[i, lit].unique()
        own = (batch.prompt.phrase[i] == phrase) & torch.isin(batch.prompt.kind[i], torch.tensor([TEXT, EXEMPLAR]))
        assert len(phrase) == 1 and torch.equal(lit, own) and (batch.prompt.kind[i, lit] == EXEMPLAR).sum() == 1


def test_a_query_has_its_negatives_behind_it_and_the_backbones_never_drop(detector, pairs):
    detector.train()
    make = pp.phase2_batches(detector, pairs, positives=2, k=3)
    first, again = (make(np.random.default_rng(5)) for _ in range(2))
    assert first.targets.real.any(1).tolist() == [True, False, False, False] * 2
    for rows in (slice(0, 4), slice(4, 8)):
        assert (first.prompt.exemplar[rows] == first.prompt.exemplar[rows][:1]).all()
    assert all(torch.equal(a, b) for a, b in zip(first.features.levels, again.features.levels)), "dropout would differ"
    assert torch.equal(first.prompt.text, again.prompt.text)


def test_a_killed_phase_goes_on_to_the_same_weights(detector, pairs, tmp_path, monkeypatch):
    settings, start = dataclasses.replace(SETTINGS, steps=4), copy.deepcopy(detector)
    pp.train_phase1(detector, pairs, CLASSES, settings, tmp_path / "whole")
    killed, opened = copy.deepcopy(start), []

    def dying(self, row, rng, real=pp.Pairs.query):
        opened.append(row)
        if len(opened) > 6:
            raise KeyboardInterrupt
        return real(self, row, rng)

    with monkeypatch.context() as torn, pytest.raises(KeyboardInterrupt):
        torn.setattr(pp.Pairs, "query", dying)
        pp.train_phase1(killed, pairs, CLASSES, settings, tmp_path / "killed")
    pp.train_phase1(start, pairs, CLASSES, settings, tmp_path / "killed")
    assert not changed(detector, start)
