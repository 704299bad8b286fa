"""VFA and ICPE: each mechanism against a case computed by hand, then training, fine-tuning and ranking at toy size."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ard.baselines.fsod import ENTRIES, rows, train
from ard.baselines.fsod.aggregation import AGGREGATIONS, ICPE, VFA
from ard.baselines.fsod.blocks import (
    Code, InformationCoupling, PrototypeAggregation, VariationalEncoder, any_class, intra_image_aggregation, kl_divergence,
    own_class, variational_loss)
from ard.baselines.fsod.model import FewShotDetector, Regions, box_mask, class_logits
from ard.baselines.fsod.settings import FewShotSettings
from ard.baselines.fsod.tune import Heads, find_novel, fine_tune, joined, new_heads, novel_scores
from ard.baselines.kit import Kit
from ard.config import ConfigError
from ard.detector.features import FeatureCache, image_features
from ard.detector.pool import ScenePool
from ard.records import Dataset, Gallery, GalleryImage, Query, Sample
from ard.world import World

NAMES = ("bear", "cat", "dog")
TINY = FewShotSettings(scenes=12, width=16, vector=16, roi_side=4, proposals=8, rois=8, steps=4, batch=2, warmup=1,
                       tune_steps=20, tune_rate=0.05, binary_rate=0.05, threshold=0.0)


def identity(layer: nn.Module, scale: float = 1.0) -> None:
    """A square linear layer or 1x1 convolution that multiplies by `scale`."""
    with torch.no_grad():
        layer.weight.copy_(scale * torch.eye(len(layer.weight)).view_as(layer.weight))
        layer.bias.zero_()


@pytest.fixture(scope="module")
def scenes():
    """12 pictures of one object each, three classes in turn, and their pool."""
    world, rng = World.load(Path(__file__).parents[2] / "data/world"), np.random.default_rng(0)
    made = [world.scene(rng, [world.individual(NAMES[i % 3], "base", rng)], fillers=0) for i in range(12)]
    images = np.stack([s.image for s in made])
    boxes = np.array([s.objects[0].box for s in made], np.float32)
    label = np.arange(12) % 3
    return images, ScenePool(image_features(images), torch.zeros(12, 0), boxes, np.arange(12), label, label.astype(str))


@pytest.fixture
def pool(scenes):
    return scenes[1]


def detector(name: str = "vfa", settings: FewShotSettings = TINY) -> FewShotDetector:
    torch.manual_seed(0)
    return FewShotDetector(name, settings, len(NAMES)).requires_grad_(False).eval()


def weights(model: nn.Module) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in model.state_dict().items()}


def asked(images: np.ndarray, pool: ScenePool, i: int) -> Query:
    sample = Sample("q", "q.png", tuple(map(float, pool.boxes[i])), "p", NAMES[i % 3], "c", "x.png", (0.0, 0.0, 9.0, 9.0), 0,
                    "", "", "val", "", "", "")
    return Query(sample, images[i])


def gallery(images: np.ndarray) -> Gallery:
    return Gallery([GalleryImage(str(i), f"image {i}", ()) for i in range(len(images))], lambda file: images[int(file)])


# --- VFA's blocks ---


def test_variational_aggregation_by_hand():
    vfa = VFA(1, 2, kl_weight=0.0).eval()
    for layer, scale in ((vfa.encoder.encoder[0], 1.0), (vfa.encoder.mu, 1.0), (vfa.encoder.logvar, 0.0)):
        identity(layer, scale)
    vfa.encoder.mu.bias.data.copy_(torch.tensor([-1.5, math.log(3) - 1.25]))  # the deviation is 1
    shots = torch.tensor([[0.25, 0.5], [0.75, 0.0]])[..., None]  # two of one class, (.5, .25) on average
    gates = vfa(lambda maps: shots, torch.zeros(1, 2, 1, 1, 1), torch.zeros(3, 1, 1, 1)).gates
    regions = torch.tensor([2.0, 4.0])
    # mu + std = (.5 - 1.5 + 1, .25 + ln 3 - 1.25 + 1) = (0, ln 3), whose sigmoids are 1/2 and 3/4, for each of 3 pictures
    assert torch.allclose(regions * gates, torch.tensor([1.0, 3.0]).expand(3, 1, 2), atol=1e-4)


def test_encoder_gives_mean_plus_deviation_whatever_was_sampled():
    encoder = VariationalEncoder(2).eval()
    identity(encoder.encoder[0])
    identity(encoder.mu)
    identity(encoder.logvar, 0.0)
    encoder.logvar.bias.data.fill_(math.log(4))  # standard deviation 2
    codes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        codes.append(encoder(torch.tensor([[0.5, 0.25]])))
    assert torch.allclose(codes[0].invariant, torch.tensor([[2.5, 2.25]]), atol=1e-4)
    assert torch.equal(codes[0].invariant, codes[1].invariant)
    assert not torch.equal(codes[0].reconstruction, codes[1].reconstruction)


def test_divergence_and_loss_by_hand():
    mu, logvar = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, math.log(4)], [0.0, 0.0]])
    # rows: (1 + 1 - 1 - 0) / 2 + (0 + 4 - 1 - ln 4) / 2 = .5 + .806853, and 0
    assert float(kl_divergence(mu, logvar)) == pytest.approx(1.306853 / 2, abs=1e-5)
    code = Code(mu, logvar, mu, torch.full((2, 2), 0.5))
    vectors = torch.tensor([[0.5, 0.7], [0.5, 0.5]])  # mean squared error .04 / 4
    assert float(variational_loss(code, vectors, 0.1)) == pytest.approx(0.01 + 0.1 * 1.306853 / 2, abs=1e-5)


def test_class_agnostic_aggregation_takes_other_classes_and_icpe_takes_its_own():
    labels = [torch.tensor([2]), torch.tensor([0, 4])] * 500
    picks = any_class(labels, 5, torch.Generator().manual_seed(0))
    assert torch.equal(picks, any_class(labels, 5, torch.Generator().manual_seed(0)))
    assert torch.bincount(picks[::2], minlength=5).min() > 60  # a fifth of 500 each, and so mostly not class 2
    own = own_class(labels, 5, torch.Generator().manual_seed(0))
    assert set(own[::2].tolist()) == {2} and set(own[1::2].tolist()) == {0, 4}


# --- ICPE's blocks ---


def two_pixels() -> tuple[torch.Tensor, torch.Tensor]:
    """A support of one pixel (1, 0) and a query of two, (1, 0) and (0, 1)."""
    return torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.eye(2).view(1, 2, 1, 2)


def test_coupling_with_a_zero_normalisation_is_the_identity():
    torch.manual_seed(0)
    coupling = InformationCoupling(4)
    supports, queries = torch.randn(3, 4, 2, 2), torch.randn(5, 4, 3, 3)
    assert torch.equal(coupling(supports, queries), supports.expand(5, 3, 4, 2, 2))
    nn.init.ones_(coupling.norm.weight)
    assert not torch.allclose(coupling(supports, queries), supports.expand(5, 3, 4, 2, 2))


def test_attention_and_gate_of_a_two_pixel_map():
    coupling = InformationCoupling(2).eval()
    for layer in (coupling.q, coupling.k, coupling.v, coupling.out):
        identity(layer)
    nn.init.ones_(coupling.norm.weight)
    support, query = two_pixels()
    near, far = math.e / (math.e + 1), 1 / (math.e + 1)  # softmax of (1, 0): .731 and .269
    assert torch.allclose(coupling.attention(support, query).flatten(), torch.tensor([near, far]))
    gate = math.sqrt(0.5)  # cosine of (1, 0) and the query's mean (.5, .5)
    wanted = torch.tensor([1 + gate * near, gate * far])
    assert torch.allclose(coupling(support, query).flatten(), wanted, atol=1e-4)


def test_prototype_of_three_vectors_and_two_shots():
    positions = torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 3.0]]).T  # mean (2, 2); cosines .7071, .7071, 1
    by_hand = 2 + (3 * math.sqrt(0.5) + 3) / 3
    assert torch.allclose(intra_image_aggregation(positions), torch.full((2,), by_hand))
    assert torch.allclose(intra_image_aggregation(positions, alpha=0.0), torch.full((2,), 2.0))
    prototypes = PrototypeAggregation(2)
    prototypes.weight.weight.data.copy_(torch.tensor([[1.0, -1.0]]))
    prototypes.weight.bias.data.fill_(math.log(3))  # both shots weigh sigmoid(ln 3) = 3/4, since x = y in both
    shots = torch.stack([positions, 2 * positions])
    assert torch.allclose(prototypes(shots), torch.full((2,), 0.75 * 1.5 * by_hand))


def test_icpe_gates_are_the_prototypes_of_what_each_picture_left_of_the_supports():
    torch.manual_seed(0)
    icpe = ICPE(4, 4, kl_weight=0.0).eval()
    supports, maps = torch.randn(2, 3, 4, 2, 2), torch.randn(5, 4, 3, 3)
    gates, described, _ = icpe(lambda m: m.flatten(2), supports, maps)
    alone = icpe.prototypes(supports.flatten(3))  # the coupling starts as the identity
    assert torch.allclose(gates, alone.expand(5, 2, 4), atol=1e-6) and described.shape == (5, 2, 4)
    assert described.requires_grad, "what the meta classifier is told by learns too"
    nn.init.ones_(icpe.coupling.norm.weight)
    coupled = icpe(lambda m: m.flatten(2), supports, maps).gates
    assert not torch.allclose(coupled[0], coupled[1])


# --- the detector around them ---


def test_mask_is_the_covered_share_and_reaches_the_support(pool):
    assert box_mask(torch.tensor([[16.0, 0.0, 64.0, 24.0]]), 2).tolist() == [[[[0.5 * 0.75, 0.75], [0.0, 0.0]]]]
    model, box = detector(), torch.from_numpy(pool.boxes[:1])
    whole = model.support_maps(pool.features[:1], box)
    assert not torch.allclose(whole, model.support_maps(pool.features[:1], box / 2))


def test_logits_are_read_under_their_own_gate():
    cls = nn.Linear(2, 3)
    cls.weight.data = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    cls.bias.data = torch.tensor([0.0, 0.5, 0.0])
    vectors, gates = torch.tensor([[2.0, 3.0]]), torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    # background: mean of 2 (first gate) and 6 (second); classes: 2 + .5 and 6
    assert torch.allclose(class_logits(cls, vectors, gates), torch.tensor([[4.0, 2.5, 6.0]]))


@pytest.mark.parametrize(("name", "reaches"), [("vfa", False), ("icpe", True)])
def test_proposals_shape_the_features_of_icpe_alone(pool, name, reaches):
    model = detector(name).requires_grad_(True).train()
    model.vectors = lambda maps, boxes: torch.zeros(sum(map(len, boxes)), TINY.vector)
    model.support_maps = lambda features, boxes: torch.randn(len(features), TINY.width, 8, 8)
    episode = train.draw_episode(pool, train.by_class(pool, NAMES), 2, np.random.default_rng(0))
    model.coupled_to = model.gates
    model.gates = lambda supports, maps: model.coupled_to(supports, maps.detach())
    train.episode_loss(model, episode).backward()
    grad = model.neck.levels[0].weight.grad
    assert (grad is not None and bool(grad.abs().max() > 0)) == reaches


def test_map50_of_an_oracle_is_one_and_of_a_liar_low(pool):
    model = detector()
    model.aggregation.box_on_raw = True
    model.cls.weight.data = 9 * torch.eye(4, TINY.vector)
    model.cls.bias.data.zero_()
    model.box.weight.data.zero_()
    model.box.bias.data.zero_()
    boxes, owner = torch.from_numpy(pool.boxes), torch.from_numpy(pool.scene)
    model.fixed_gates = lambda supports, maps: torch.ones(12, 3, TINY.vector)
    values = []
    for turn in (0, 1):
        vectors = torch.eye(4, TINY.vector)[torch.from_numpy((pool.label + turn) % 3 + 1)]
        model.regions = lambda features: Regions(torch.zeros(12, 1), boxes, owner, vectors)
        values.append(train.base_map50(model, pool, torch.zeros(3, 1, 1, 1, 1)))
    assert values[0] == 1.0 and values[1] < 0.5


# --- base training ---


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_training_resumes_to_the_same_bytes(pool, tmp_path, name):
    straight = train.train_base(name, TINY, pool, NAMES, tmp_path / "straight.pt")
    halfway = train.train_base(name, TINY, pool, NAMES, tmp_path / "killed.pt", steps=2)
    resumed = train.train_base(name, TINY, pool, NAMES, tmp_path / "killed.pt")
    assert weights(straight) == weights(resumed) != weights(halfway)
    train.save_detector(straight, name, tmp_path / "kept.safetensors")
    assert weights(train.load_detector(tmp_path / "kept.safetensors", name, TINY, 3)) == weights(straight)
    other = replace(TINY, tune_steps=1)  # of no matter to base training
    train.load_detector(tmp_path / "kept.safetensors", name, other, 3)
    with pytest.raises(ValueError, match="other settings; delete it"):
        train.load_detector(tmp_path / "kept.safetensors", name, replace(TINY, learning_rate=1.0), 3)


def test_training_refuses_a_class_without_support_and_too_few_shots(pool, tmp_path):
    with pytest.raises(ValueError, match="no zebra in 12 base scenes"):
        train.train_base("vfa", TINY, pool, (*NAMES, "zebra"), tmp_path / "c.pt")
    with pytest.raises(ValueError, match="expected 5 shots of each class, found 4 bear"):
        train.shots_of(pool, NAMES, 5)


# --- fine-tuning ---


def test_base_class_competes_in_the_softmax_but_not_in_the_binary_head():
    vectors, gates = torch.rand(5, TINY.vector), torch.rand(5, 4, TINY.vector)
    scores = {}
    for lift in (0.0, 5.0):
        model = detector()
        model.cls.bias[2] += lift
        scores[lift] = [novel_scores(new_heads(model, binary, 0), vectors, gates) for binary in (False, True)]
    assert (scores[5.0][0] < scores[0.0][0]).all()
    assert torch.equal(scores[5.0][1], scores[0.0][1])


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize("binary", [False, True])
def test_fine_tuning_finds_the_concept_and_changes_nothing_but_its_heads(scenes, name, binary):
    images, pool = scenes
    model = detector(name)
    before, cache = weights(model), FeatureCache()
    method = rows.FewShotMethod(model, pool, NAMES, TINY, binary, cache)
    first, again = method.rank(asked(images, pool, 7), gallery(images)), method.rank(asked(images, pool, 8), gallery(images))
    assert weights(model) == before and first != again
    fresh = rows.FewShotMethod(detector(name), pool, NAMES, TINY, binary, cache)
    assert fresh.rank(asked(images, pool, 8), gallery(images)) == again
    own, support = method.query_lesson(asked(images, pool, 7))
    lesson = joined(own, method.base)
    assert torch.equal(lesson.regions.owner, torch.cat([own.regions.owner, method.base.regions.owner + len(own.regions.maps)]))
    gates = torch.cat([model.fixed_gates(s, lesson.regions.maps) for s in (method.supports, support)], 1)
    is_novel, lead = lesson.labels == 4, []
    for steps in (0, 100):
        heads = fine_tune(model, lesson, gates, binary, replace(TINY, tune_steps=steps))
        scores = novel_scores(heads, lesson.regions.vectors, gates[lesson.regions.owner])
        lead.append(float(scores[is_novel].mean() - scores[~is_novel].mean()))
    assert lead[1] > lead[0] + 0.02


def test_lesson_shows_the_query_and_its_mirror_image(scenes):
    images, pool = scenes
    method = rows.FewShotMethod(detector(), pool, NAMES, TINY, False)
    lesson, support = method.query_lesson(asked(images, pool, 4))
    assert [shown.tolist() for shown in lesson.shown] == [[3], [3]] and support.shape == (1, 1, TINY.width, 8, 8)
    assert set(lesson.labels.tolist()) <= {0, 4} and {0, 1} == set(lesson.regions.owner[lesson.labels == 4].tolist())
    x0, y0, x1, y1 = pool.boxes[4].tolist()
    for picture, wanted in enumerate(([x0, y0, x1, y1], [64 - x1, y0, 64 - x0, y1])):
        boxes = lesson.regions.boxes[lesson.regions.owner == picture]
        assert torch.isclose(boxes, torch.tensor(wanted), atol=1e-4).all(1).any()


def test_strongest_detection_of_each_picture_or_none():
    model = detector()
    heads = Heads(nn.Linear(TINY.vector, 1), nn.Linear(TINY.vector, 4))
    heads.cls.weight.data = torch.eye(1, TINY.vector)
    for layer in heads:
        layer.bias.data.zero_()
    heads.box.weight.data.zero_()
    vectors = torch.zeros(3, TINY.vector)
    vectors[:, 0] = torch.tensor([0.0, math.log(3), -1.0])
    boxes = torch.tensor([[1.0, 1, 9, 9], [2.0, 2, 30, 30], [5.0, 5, 20, 20]])
    regions = Regions(torch.zeros(3, 1), boxes, torch.tensor([0, 0, 2]), vectors)
    first, empty, last = find_novel(model, heads, regions, torch.ones(3, 4, TINY.vector))
    assert first[0].tolist() == [2.0, 2.0, 30.0, 30.0] and first[1] == pytest.approx(0.75)
    assert empty is None and last[0].tolist() == [5.0, 5.0, 20.0, 20.0]


@pytest.mark.parametrize("name, raw", [("vfa", True), ("icpe", False)])
def test_vfa_refines_boxes_by_raw_vectors_and_icpe_by_gated_ones(name, raw):
    model, vectors = detector(name), torch.rand(1, TINY.vector, generator=torch.Generator().manual_seed(0))
    regions = Regions(torch.zeros(1, 1), torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([0]), vectors)
    heads = new_heads(model, binary=False, seed=0)
    low, high = (find_novel(model, heads, regions, torch.full((1, 4, TINY.vector), gate))[0][0] for gate in (0.2, 0.9))
    assert torch.equal(low, high) == raw


def test_weak_detections_are_none(scenes):
    images, pool = scenes
    method = rows.FewShotMethod(detector(), pool, NAMES, replace(TINY, threshold=1.1), True)
    answers = method.rank(asked(images, pool, 0), gallery(images))
    assert [(a.image_id, a.box, a.score) for a in answers] == [(f"image {i}", None, -math.inf) for i in range(12)]


# --- rows ---


def test_rows_train_once_keep_the_result_and_refuse_wrong_settings(scenes, tmp_path, monkeypatch):
    images, pool = scenes
    monkeypatch.setattr(rows, "World", SimpleNamespace(load=lambda root: SimpleNamespace(classes=NAMES)))
    monkeypatch.setattr(rows, "build_pool", lambda *_: pool)
    settings = {k: getattr(TINY, k) for k in ("scenes", "width", "vector", "roi_side", "proposals", "rois", "steps", "batch",
                                              "tune_steps", "threshold")}
    kit = Kit(Dataset(Path(), {}, {}), "val", work=tmp_path, settings={"fsod": settings})
    assert [e.name for e in ENTRIES] == ["VFA", "VFA (binary)", "ICPE", "ICPE (binary)"]
    assert all(e.per_query and set(e.given) == {"box", "training"} for e in ENTRIES)
    answers = ENTRIES[0].build(kit).rank(asked(images, pool, 1), gallery(images))
    assert [a.image_id for a in answers] == [f"image {i}" for i in range(12)]
    assert all(0 <= a.score <= 1 and 0 <= a.box[0] <= a.box[2] <= 64 and 0 <= a.box[1] <= a.box[3] <= 64 for a in answers)
    monkeypatch.setattr(rows, "train_base", lambda *_: pytest.fail("trained a second time"))
    ENTRIES[1].build(kit)
    with pytest.raises(ConfigError, match="did you mean 'vector'"):
        ENTRIES[0].build(replace(kit, settings={"fsod": {"vectr": 3}}))
