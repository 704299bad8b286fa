"""Baselines on tiny pictures whose right answer is known by construction."""

import numpy as np
import pytest
import torch
from PIL import Image

from ard.baselines.abc import AbCConfig, Mappers, abc_method, nt_xent, orthogonality, train
from ard.baselines.colour_histogram import colour_histogram
from ard.baselines.cosine import CropRanker, ImageRanker
from ard.baselines.methods import pick_queries, run_method
from ard.metrics import evaluate, table2_row
from ard.records import Dataset, GalleryImage, GroundTruth, Sample

N = 6
BOX = (8.0, 8.0, 24.0, 24.0)
COLOURS = np.array([[230, 20, 20], [20, 230, 20], [20, 20, 230], [230, 230, 20], [20, 230, 230], [150, 60, 100]])


def picture(colour, background):
    image = np.full((32, 32, 3), background, np.uint8)
    image[8:24, 8:24] = colour
    return image


def mean_colour(images):
    """A fake encoder: centred mean colour, (n, 3)."""
    return np.stack([im.reshape(-1, 3).mean(0) for im in images]) - 128


@pytest.fixture
def dataset(tmp_path):
    """X and Q of individual i share the colour of their square; backgrounds are random and say nothing."""
    rng = np.random.default_rng(0)
    images, samples = [], []
    for i in range(N):
        Image.fromarray(picture(COLOURS[i], rng.integers(0, 255, 3))).save(tmp_path / f"x{i}.png")
        images.append(GalleryImage(f"x{i}.png", f"x{i}", (GroundTruth("cat", f"i{i}", f"d{i}", "g", BOX),), 32, 32))
        for q in range(3):
            Image.fromarray(picture(COLOURS[i], rng.integers(0, 255, 3))).save(tmp_path / f"q{i}-{q}.png")
            samples.append(Sample(f"s{i}-{q}", f"q{i}-{q}.png", BOX, "p", "cat", f"c{i}", f"x{i}.png", BOX, q, "beach",
                                  "photo", "test", f"i{i}", f"d{i}", "g"))
    return Dataset(tmp_path, {"test": tuple(samples)}, {"test": tuple(images)})


def proposals(image_id, class_name):
    """The true box and a wrong one of the background."""
    return np.array([[0.0, 0, 8, 8], BOX]) if class_name == "cat" else np.zeros((0, 4))


def score(method, dataset):
    return table2_row("toy", "m", evaluate(run_method(method, dataset), dataset))


@pytest.mark.parametrize("method", [CropRanker(mean_colour, proposals), CropRanker(colour_histogram, proposals)])
def test_crops_find_the_region_and_the_image(method, dataset):
    row = score(method, dataset)
    assert row["recall_1"] == row["box_acc"] == row["same_class_recall_1"] == 1 and row["gated"]


def test_whole_images_are_distracted_and_have_no_box(dataset):
    row = score(ImageRanker(mean_colour), dataset)
    assert row["recall_1"] < 0.8 and row["box_acc"] is None and not row["gated"]


def test_a_region_may_be_asked_about_whole_images(dataset):
    sample, seen = dataset.samples["test"][0], []
    method = ImageRanker(lambda images: seen.extend(im.shape for im in images) or mean_colour(images), crop_query=True)
    method.rank(dataset.query(sample), dataset.open_gallery("test"))
    assert seen == [(16, 16, 3)] + N * [(32, 32, 3)]


def test_images_without_a_proposal_come_last(dataset):
    def sparse(image_id, class_name):
        return proposals(image_id, class_name) if image_id in ("x0", "x1") else np.zeros((0, 4))

    answers = run_method(CropRanker(mean_colour, sparse), dataset)
    assert sum(np.isneginf(a.score) and a.box is None for a in answers["s0-0"]) == N - 2
    outcomes = evaluate(answers, dataset)
    assert [o.rank for o in outcomes] == [1] * 6 + [N] * 12
    assert table2_row("toy", "m", outcomes)["box_acc"] == pytest.approx(1 / 3, abs=1e-6)


def test_gallery_is_encoded_once(dataset):
    calls = []

    def counting(images):
        calls.append(len(images))
        return mean_colour(images)

    for method, want in ((ImageRanker(counting), N), (CropRanker(counting, proposals), 2 * N)):
        calls.clear()
        run_method(method, dataset)
        assert sum(calls) == want + 18


def test_pick_queries_is_stable_and_fair(dataset):
    samples = dataset.samples["test"]
    two = pick_queries(samples, 2)
    assert len(two) == 2 * N and len({s.concept_id for s in two}) == N
    assert {s.sample_id for s in pick_queries(reversed(samples), 2)} == {s.sample_id for s in two}
    assert pick_queries(samples, None) == samples == pick_queries(samples, 99)
    with pytest.raises(ValueError, match="at least 1"):
        pick_queries(samples, 0)


def shifted_pairs(n=40, d=16, seed=0):
    """Generated features are real ones under a fixed rotation plus noise: raw cosine fails, two mappers can undo it."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    real = rng.normal(size=(n, d))
    owner = np.repeat(np.arange(n), 4)
    return real, real[owner] @ turn + 0.1 * rng.normal(size=(4 * n, d)), owner, turn


def hits(mappers, real, synthetic, owner):
    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = unit(mappers.map_synthetic(synthetic)) @ unit(mappers.map_real(real)).T
    return (scores.argmax(1) == owner).mean()


def test_abc_learns_the_domain_gap_and_generalises():
    real, synthetic, owner, turn = shifted_pairs(120)
    mappers, history = train(real, synthetic, owner, AbCConfig(epochs=60, batch=64, learning_rate=1e-2))
    new = np.random.default_rng(9).normal(size=(40, 16))
    assert hits(Mappers(16), new, new @ turn, np.arange(40)) < 0.3
    assert hits(mappers, new, new @ turn, np.arange(40)) > 0.8
    assert history[-1] < history[0] / 2


def test_abc_starts_as_plain_cosine(dataset):
    plain, mapped = ImageRanker(mean_colour), abc_method(Mappers(3), mean_colour)
    for a, b in zip(*(run_method(m, dataset)["s0-0"] for m in (plain, mapped)), strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-6)
    assert score(CropRanker(mean_colour, proposals, Mappers(3).map_real, Mappers(3).map_synthetic), dataset)["recall_1"] == 1
    assert score(abc_method(Mappers(3), mean_colour, crop_query=True), dataset)["box_acc"] is None


def test_orthogonality_is_zero_with_finite_gradient_at_the_start():
    mappers = Mappers(8)
    loss = orthogonality(mappers.real.weight, mappers.synthetic.weight)
    loss.backward()
    assert loss.item() < 1e-5 and float(mappers.real.weight.grad.abs().max()) == 0
    turned = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    assert float(orthogonality(turned)) < 1e-4
    assert float(orthogonality(2 * torch.eye(4))) == pytest.approx(np.linalg.norm(3 * np.eye(4)) / 2, rel=1e-5)


def test_regulariser_keeps_the_mappers_near_orthogonal():
    real, synthetic, owner, _ = shifted_pairs(20)
    gaps = {}
    for strength in (0.0, 0.05, 1.0):
        mappers, _ = train(real, synthetic, owner, AbCConfig(epochs=60, learning_rate=1e-2, regularisation=strength))
        gaps[strength] = float(orthogonality(mappers.real.weight, mappers.synthetic.weight).detach())
    assert gaps[1.0] < gaps[0.05] < gaps[0.0] and gaps[1.0] < 0.5


def test_abc_is_deterministic_and_survives_its_file(tmp_path):
    real, synthetic, owner, _ = shifted_pairs(12)
    first, second = (train(real, synthetic, owner, AbCConfig(epochs=3))[0] for _ in range(2))
    first.save(tmp_path / "abc.safetensors")
    again = Mappers.load(tmp_path / "abc.safetensors")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]) and torch.equal(value, again.state_dict()[name])


def test_abc_refuses_what_cannot_be_contrasted():
    with pytest.raises(ValueError, match="at least two exemplars with queries, found 1"):
        train(np.ones((1, 4)), np.ones((3, 4)), np.zeros(3, int), AbCConfig(epochs=1))


def test_nt_xent_is_symmetric_and_least_for_matching_pairs():
    a, b = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).split([5])[0], torch.eye(5)[:, :4]
    assert torch.isclose(nt_xent(a, b, 0.07), nt_xent(b, a, 0.07))
    assert nt_xent(a, a, 0.07) < nt_xent(a, a.roll(1, 0), 0.07)
