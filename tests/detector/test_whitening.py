"""Whitening: what makes one individual differ from itself no longer hides who it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ard.detector import whitening
from ard.detector.features import REGION
from ard.detector.model import load_detector, save_detector
from ard.detector.phases import PhaseData, train_phase1
from ard.detector.train import TrainSettings
from tests.detector.conftest import NAMES

PEOPLE, CLASSES, QUERIES = 40, 4, 3


@pytest.fixture
def people(monkeypatch):
    """PEOPLE vectors, and queries in which twenty directions say nothing of who it is, loudly: (vectors, AD+, fresh queries)."""
    rng = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(35, REGION, generator=rng), dim=-1)
    who = torch.randn(PEOPLE, 15, generator=rng) @ directions[:15]

    def seen(owner):
        return who[owner] + 5 * torch.randn(len(owner), 20, generator=rng) @ directions[15:]

    owner = torch.arange(PEOPLE).repeat_interleave(QUERIES)
    names = tuple(f"class {i % CLASSES}" for i in owner.tolist())
    photos = torch.stack([seen(torch.arange(PEOPLE)) for _ in range(2)])
    data = PhaseData(torch.arange(2 * PEOPLE).reshape(2, PEOPLE, 1), torch.stack([seen(owner), seen(owner)]),
                     np.zeros((2, len(owner), 4)), owner.numpy(), names, tuple(frozenset({n}) for n in names[::QUERIES]))
    monkeypatch.setattr(whitening, "region_vectors", lambda features, boxes: photos.flatten(0, 1)[features[:, 0]])
    return photos[0], data, seen(torch.arange(PEOPLE))


def logits(model, photos, queries):
    """(PEOPLE, PEOPLE) of queries and photos, other classes left out."""
    token = torch.ones(1, len(queries), dtype=torch.bool)
    found = model.likeness_head(photos[None], queries[None], token)[0].T.detach()
    label = torch.arange(len(queries)) % CLASSES
    return torch.where(label[:, None] == label, found, -torch.inf)


def right(found):
    return (found.argmax(1) == torch.arange(len(found))).float().mean().item()


def test_individuals_of_a_class_are_told_apart_in_pictures_never_seen(tiny, people):
    photos, data, fresh = people
    tiny.add_likeness(0)
    before = right(logits(tiny, photos, fresh))
    whitening.whiten_likeness(tiny, data, 0.01)
    assert before < 0.5 and right(logits(tiny, photos, fresh)) > 0.95


def test_a_query_is_more_likely_than_not_its_own_source_and_no_other(tiny, people):
    photos, data, fresh = people
    whitening.give_likeness(tiny, data, 0.01)
    found, own = logits(tiny, photos, fresh), torch.eye(PEOPLE, dtype=torch.bool)
    assert (found[own] > 0).float().mean() > 0.9 and (found[~own & found.isfinite()] < 0).float().mean() > 0.9


def test_the_covariance_is_the_one_around_each_owner_s_mean():
    rng = np.random.default_rng(0)
    vectors, owners = rng.normal(size=(30, 4)), rng.integers(5, size=30)
    apart = np.concatenate([vectors[owners == o] - vectors[owners == o].mean(0) for o in set(owners)])
    plain = apart.T @ apart / (30 - len(set(owners)))
    found = whitening.within_covariance(torch.from_numpy(vectors).float(), owners, 2.0)
    assert np.allclose(found, plain + 2 * np.trace(plain) / 4 * np.eye(4), atol=1e-5)


def test_whitened_vectors_vary_alike_in_all_directions():
    rng = np.random.default_rng(0)
    vectors, owners = torch.from_numpy(rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4))).float(), rng.integers(6, size=60)
    found = whitening.within_covariance(vectors @ whitening.whitener(vectors, owners, 0.0), owners, 0.0)
    assert torch.allclose(found, torch.eye(4), atol=1e-4)


def test_the_source_is_read_in_its_own_box(phase_data):
    found = whitening._exemplars(phase_data, np.arange(12), np.arange(12))
    assert torch.allclose(found, phase_data.queries.float(), atol=1e-2), "the toy's queries are read from R_X itself"


def test_what_cannot_be_whitened_is_refused(tiny, people):
    with pytest.raises(ValueError, match="no likeness head"):
        whitening.whiten_likeness(tiny, people[1])
    with pytest.raises(ValueError, match="every individual has one picture"):
        whitening.within_covariance(torch.randn(3, 2), np.arange(3), 1.0)


def test_training_leaves_the_measured_projection_alone(tiny, phase_data, tmp_path):
    noisy = replace(phase_data, queries=phase_data.queries + 0.1 * torch.randn(phase_data.queries.shape))
    whitening.give_likeness(tiny, noisy, 3.0)
    measured, learned = tiny.likeness_head.project.weight.clone(), tiny.likeness_head.scale.item()
    train_phase1(tiny, noisy, NAMES, TrainSettings(steps=2, batch_size=2, warmup=0, learning_rate=1e-2), tmp_path)
    assert torch.equal(tiny.likeness_head.project.weight, measured) and tiny.likeness_head.scale.item() != learned
    again = load_detector(save_detector(tiny, tmp_path / "m"))
    assert torch.equal(again.likeness_head.project.weight, measured.half().float())


def test_without_whitening_the_head_has_random_weights(tiny, people):
    whitening.give_likeness(tiny, people[1], 0.0, seed=3)
    drawn = tiny.likeness_head.project.weight.clone()
    tiny.likeness_head = None
    tiny.add_likeness(3)
    assert torch.equal(drawn, tiny.likeness_head.project.weight)
