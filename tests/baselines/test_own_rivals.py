"""Rivals from any encoder: whitening undoes what real and generated pictures differ in, regions see places, kept features are read."""

from functools import lru_cache

import numpy as np
import pytest
import torch

from ard.baselines import own_rivals
from ard.baselines.abc import AbCConfig, abc_method
from ard.baselines.cosine import CropRanker
from ard.baselines.mappers import Mappers
from ard.baselines.own_rivals import CELLS, region_encoder, rivals, whitening
from ard.baselines.whitened import whitening as by_real_ones
from ard.detector.published import AttributionDetector
from ard.metrics import evaluate
from tests.detector.official import small_config
from tests.toy_attribution import toy_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return toy_dataset(tmp_path_factory.mktemp("toy"), per_class=2)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return AttributionDetector(small_config()).eval()


def individuals(rng, count=60, each=6, width=20):
    """Vectors of individuals: who it is stands in four directions, what differs from picture to picture, much, in all others, and
    generated pictures are another kind: moved as a whole, and with features that real ones never show."""
    who = np.concatenate([2 * rng.normal(size=(count, 4)), np.zeros((count, width - 4))], 1)
    noise = np.r_[np.full(4, 0.3), np.full(width - 4, 3.0)]
    owner = np.repeat(np.arange(count), each)
    real, synthetic = who + noise * rng.normal(size=who.shape), who[owner] + noise * rng.normal(size=(len(owner), width)) + 6.0
    real, synthetic = (np.concatenate([v, share * rng.normal(size=(len(v), 6))], 1) for v, share in ((real, 0.0), (synthetic, 0.5)))
    return {"real": real[None], "synthetic": synthetic[None], "owner": owner}


def found(pairs, change):
    real, synthetic = (change(pairs[name][0]) for name in ("real", "synthetic"))
    real, synthetic = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (real, synthetic))
    return ((synthetic @ real.T).argmax(1) == pairs["owner"]).mean()


def test_whitening_finds_new_individuals_across_two_kinds_of_pictures():
    rng = np.random.default_rng(0)
    known, new = individuals(rng), individuals(rng)
    learned, real_ones = whitening(known, 0.01), by_real_ones(*(known[name].astype(np.float32) for name in ("real", "synthetic")), known["owner"], 0.01)
    shares = [found(new, change) for change in (learned, real_ones, lambda v: v)]
    assert shares[0] > 0.25 > 2 * max(shares[1:])


def test_regions_are_the_backbones_maps_on_their_places(detector):
    encode = region_encoder(detector, (0.5,) * 3, (0.5,) * 3, 64, batch=2)
    rng, bright = np.random.default_rng(0), np.linspace(0, 200, 64)[None, :, None]  # from left to right
    pictures = [(bright + rng.integers(0, 55, (64, 64, 3))).astype(np.uint8) for _ in range(3)]
    seen = encode(pictures)
    channels = detector.model.backbone.conv_encoder.intermediate_channel_sizes
    assert seen.shape == (3, sum(c * n * n for c, n in zip(channels, CELLS)))
    assert np.allclose(seen[2:], encode(pictures[2:]), atol=1e-5), "whatever its batch"
    fine = seen[:, : channels[0] * 9].reshape(3, channels[0], 3, 3)
    turned = encode([p[:, ::-1] for p in pictures])[:, : channels[0] * 9].reshape(fine.shape)
    assert np.abs(turned - fine).mean() > np.abs(turned[..., ::-1] - fine).mean(), "a mirrored picture has its places mirrored"


def test_every_rival_ranks_each_picture_and_a_killed_run_finds_its_features(dataset, detector, tmp_path, monkeypatch):
    def encode(images):
        return np.stack([im.reshape(-1, 3).mean(0) - 128 for im in images])

    where = {im.image_id: im for im in dataset.gallery["test"]}
    boxes = lru_cache(lambda image_id, name: np.array([o.box for o in where[image_id].objects if o.class_name == name]).reshape(-1, 4))
    told = (dataset, encode, region_encoder(detector, (0.5,) * 3, (0.5,) * 3, 64), boxes, AbCConfig(epochs=2), 1.0, tmp_path)
    methods, gallery = rivals(*told), dataset.open_gallery("test")
    assert len(methods) == 5
    answers = {}
    for name, method in methods.items():
        answers[name] = {s.sample_id: method.rank(dataset.query(s), gallery) for s in dataset.samples["test"]}
        outcomes = evaluate(answers[name], dataset)
        assert all(o.box_ok for o in outcomes) or name == "AbC"
        wrong = [a for s in dataset.samples["test"] for a in answers[name][s.sample_id] if np.isneginf(a.score)]
        assert {where[a.image_id].objects[0].class_name for a in wrong} == ({"bear", "cat", "dog"} if name != "AbC" else set())
    query, (whole, cut) = dataset.query(dataset.samples["test"][0]), (Mappers.load(tmp_path / f"{name}.safetensors") for name in ("abc", "crops"))
    for name, same in (("AbC", abc_method(whole, encode)), ("class filter + AbC", CropRanker(encode, boxes, cut.map_real, cut.map_synthetic))):
        assert same.rank(query, gallery) == answers[name][query.sample.sample_id]
    monkeypatch.setattr(own_rivals, "pair_features", lambda *given: pytest.fail("seen before"))
    again = rivals(*told)
    assert all(method.rank(query, gallery) == answers[name][query.sample.sample_id] for name, method in again.items())
