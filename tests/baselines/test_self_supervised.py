"""The self-supervised ViT: augmentations, the teacher's update, and training that survives a kill."""

import numpy as np
import pytest
import torch

from ard.baselines import self_supervised
from ard.baselines.self_supervised import MoCo, ViTConfig, follow, infonce, load_vit, mild, strong, train_vit, views

TINY = ViTConfig(size=16, patch=8, width=12, depth=1, heads=2, hidden=8, out=4, view=16, steps=5, batch=4, warmup=1,
                 checkpoint_every=2)


def pictures(count, seed=0, height=20, width=28):
    """Blocks of random colours, so that a crop changes a picture."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, height // 4, width // 4, 3), dtype=np.uint8)
    return blocks.repeat(4, 1).repeat(4, 2)


@pytest.mark.parametrize("augment", [mild, strong])
def test_augmentation_keeps_shape_and_depends_on_its_generator_alone(augment):
    for shape in ((20, 28), (64, 64), (4, 40), (1, 1)):
        image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
        before = image.copy()
        first, second = (augment(image, np.random.default_rng(3)) for _ in range(2))
        assert first.shape == image.shape and first.dtype == np.uint8
        assert np.array_equal(first, second) and np.array_equal(image, before)
    drawn = {augment(pictures(1)[0], np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert len(drawn) == 20


def test_mild_changes_pictures_less_than_strong():
    change = {augment: np.mean([np.abs(augment(p, np.random.default_rng(i)).astype(float) - p).mean()
                                for i, p in enumerate(pictures(200))]) for augment in (mild, strong)}
    assert 0 < change[mild] < change[strong]
    flat = np.full((16, 16, 3), (200, 60, 20), np.uint8)
    assert np.abs(mild(flat, np.random.default_rng(0)).astype(int) - flat).max() <= 1, "flips and crops keep colours"
    assert max(np.abs(strong(flat, np.random.default_rng(i)).astype(int) - flat).max() for i in range(9)) > 10


def test_two_views_of_a_picture_differ_and_stand_in_order():
    dark, light = np.zeros((16, 16, 3), np.uint8), pictures(1)[0]
    found = views([dark, light], np.random.default_rng(0), 16)
    assert found.shape == (4, 3, 16, 16) and found.abs().max() <= 1
    assert torch.equal(found[0], found[2]) and (found[0] == found[0, 0, 0, 0]).all(), "black stays black in both views"
    assert not torch.equal(found[1], found[3])


def test_the_teacher_follows_by_the_formula():
    student, teacher = (torch.nn.Linear(3, 2) for _ in range(2))
    before = [p.detach().clone() for p in teacher.parameters()]
    follow(teacher, student, 0.9)
    for new, old, model in zip(teacher.parameters(), before, student.parameters()):
        assert torch.allclose(new, 0.9 * old + 0.1 * model)
    follow(teacher, student, 1.0)
    follow(teacher, student, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters()))


def test_infonce_by_hand():
    """Cosines 1 and 0 at temperature 1/2: 2 tau x log(1 + e^-2) each way."""
    found = infonce(torch.eye(2) * 3, torch.eye(2), 0.5)
    assert float(found) == pytest.approx(np.log(1 + np.exp(-2)), abs=1e-6)
    assert float(infonce(torch.eye(2), torch.eye(2).flip(0), 0.5)) == pytest.approx(np.log(1 + np.exp(2)), abs=1e-6)


def test_the_teacher_starts_as_the_student_and_gets_no_gradient():
    torch.manual_seed(0)
    model = MoCo(TINY).train()
    assert all(torch.equal(a, b) for a, b in zip(model.student.parameters(), model.teacher.parameters()))
    model.loss(views(list(pictures(4)), np.random.default_rng(0), 16), 0.2).backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in [*model.student.parameters(), *model.predict.parameters()])


def test_a_killed_training_ends_in_the_same_bytes(tmp_path):
    stock = list(pictures(12))

    def draw(rng, count):
        return [stock[i] for i in rng.integers(len(stock), size=count)]

    calls = []

    def torn(rng, count):
        calls.append(count)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(rng, count)

    train_vit(draw, TINY, tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train_vit(torn, TINY, tmp_path / "torn.safetensors")
    assert not (tmp_path / "torn.safetensors").exists()
    again = []
    train_vit(lambda rng, count: again.append(count) or draw(rng, count), TINY, tmp_path / "torn.safetensors")
    assert len(again) == 3, "two of five steps were in the checkpoint"
    assert (tmp_path / "torn.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["torn.safetensors", "whole.safetensors"]


def test_the_file_holds_the_trained_student(tmp_path, monkeypatch):
    models = []
    monkeypatch.setattr(self_supervised, "follow", lambda teacher, student, momentum: models.append(student))
    train_vit(lambda rng, count: list(pictures(count)), TINY, tmp_path / "vit.safetensors")
    loaded, x = load_vit(tmp_path / "vit.safetensors"), torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(x), models[-1][0].eval()(x)) and loaded(x).shape == (2, TINY.width)
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
    assert loaded(torch.randn(1, 3, 32, 32)).shape == (1, TINY.width), "any multiple of the patch fits"


def test_training_brings_views_of_a_picture_together(tmp_path):
    """Eight pictures of one colour each: after some steps, views of a picture are nearer to each other than to others."""
    stock = [np.full((16, 16, 3), colour, np.uint8) for colour in np.random.default_rng(0).integers(0, 256, (8, 3))]
    config = ViTConfig(**{**vars(TINY), "steps": 60, "batch": 8, "learning_rate": 3e-3, "momentum": 0.9})
    losses = []
    real = infonce

    def noted(queries, keys, temperature):
        losses.append(float(real(queries, keys, temperature).detach()))
        return real(queries, keys, temperature)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_supervised, "infonce", noted)
        train_vit(lambda rng, count: stock, config, tmp_path / "vit.safetensors")
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
