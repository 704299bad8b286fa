from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ard import identity
from ard.identity import (IdentityConfig, IdentityEncoder, contrastive_loss, draw_pairs, nearest_individual,
                          rendered_trials, square_crops, train_identity)
from ard.probes import Probes, colour_statistics, fit_probe, fit_probes, world_scenes

TINY = IdentityConfig(crop=16, width=8, dim=8, steps=4, classes=2, individuals=2, warmup=1, checkpoint_every=2)


def test_probe_separates_what_is_separable_and_says_what_it_expects():
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", "c"])[np.arange(300) % 3]
    x = rng.normal(size=(300, 5)) + 3 * np.eye(5)[np.arange(300) % 3]
    probe = fit_probe(x, labels, 1.0)
    assert probe.accuracy(x, labels) > 0.95
    two = fit_probe(x[labels != "c"], labels[labels != "c"], 1.0)
    assert two.accuracy(x[labels != "c"], labels[labels != "c"]) > 0.95
    with pytest.raises(ValueError, match="5 features"):
        probe.predict(x[:, :3])
    with pytest.raises(ValueError, match="two classes"):
        fit_probe(x, ["a"] * 300)


def test_probes_of_the_world_save_and_load(world, tmp_path):
    probes, checks = fit_probes(world, 200, 60, features=colour_statistics)
    assert set(checks) == {"base", "test"} and checks["base"]["context"] > 0.6
    probes.save(tmp_path / "p.safetensors")
    scenes, labels = world_scenes(world, 20, 9)
    images = np.stack([s.image for s in scenes])
    again = Probes.load(tmp_path / "p.safetensors", colour_statistics)
    assert again.accuracy(images, labels) == probes.accuracy(images, labels)
    with pytest.raises(FileNotFoundError, match="probes missing"):
        Probes.load(tmp_path / "none")


def test_probes_go_on_where_they_were_killed(world, tmp_path, monkeypatch):
    import ard.probes as module

    monkeypatch.setattr(module, "CHUNK", 50)
    def flawed(scenes, seed): return 255 - np.stack([s.image for s in scenes])
    whole, _ = fit_probes(world, 120, 20, features=colour_statistics, blemish=flawed)
    seen = []

    def killed(images):
        seen.append(len(images))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return colour_statistics(images)

    with pytest.raises(KeyboardInterrupt):
        fit_probes(world, 120, 20, features=killed, blemish=flawed, folder=tmp_path)
    again, _ = fit_probes(world, 120, 20, features=killed, blemish=flawed, folder=tmp_path)
    assert seen[:4] == [50, 50, 50, 20], "only what was not finished is computed again"
    assert all(np.array_equal(again.probes[a].weight, whole.probes[a].weight) for a in whole.probes)


def test_judges_learn_from_flawed_pictures_too(world):
    flawed = []
    def blemish(scenes, seed):
        flawed.append(len(scenes))
        return 255 - np.stack([s.image for s in scenes])
    rng = [np.random.default_rng(3) for _ in range(2)]
    (photo, clean, keys), (same, other, again) = (draw_pairs(world, r, TINY, blemish=b) for r, b in zip(rng, (None, blemish)))
    assert flawed == [len(keys) // 2] and keys == again and torch.equal(photo, same)
    assert torch.equal(clean[0], other[0]) and not torch.equal(clean[1], other[1])


def test_square_crops_keep_proportions():
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[0, 24:40, 8:56] = 255  # 48 wide, 16 high
    crop = square_crops(image, np.array([[8, 24, 56, 40.0]]), IdentityConfig(crop=48, margin=0.0))[0, 0]
    assert float((crop > 0.5).float().mean()) == pytest.approx(1 / 3, abs=0.05)


def test_twins_are_no_negatives():
    a = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    alone = contrastive_loss(a[:2], a[:2], ["x", "y"], 0.1)
    doubled = contrastive_loss(a[[0, 1, 0]], a[[0, 1, 0]], ["x", "y", "x"], 0.1)
    assert torch.isfinite(doubled) and float(doubled) < float(contrastive_loss(a[[0, 1, 0]], a[[0, 1, 0]], "xyz", 0.1))
    assert float(alone) < 1


def test_identity_training_resumes_bit_by_bit(world, tmp_path, monkeypatch):
    train_identity(world, tmp_path / "whole", TINY)
    import ard.identity as module

    real, calls = module.draw_pairs, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "draw_pairs", killed)
    with pytest.raises(KeyboardInterrupt):
        train_identity(world, tmp_path / "part", TINY)
    train_identity(world, tmp_path / "part", TINY)
    assert (tmp_path / "part/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    encoder = IdentityEncoder.load(tmp_path / "part")
    vectors = encoder.embed(np.zeros((2, 64, 64, 3), np.uint8), np.array([[0, 0, 64, 64]] * 2))
    assert vectors.shape == (2, 8) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_nearest_individual_by_a_perfect_and_a_blind_judge(world):
    rng = np.random.default_rng(0)
    pool = [world.individual("cat", "test", rng) for _ in range(40)]
    pool = list({i.palette: i for i in pool}.values())[:3]
    scene = world.scene(rng, individuals=[pool[1]], context="beach", medium="photo", fillers=0)

    class Colours:
        """Mean colour under the box, which palettes change."""

        def embed(self, images, boxes):
            out = [i[int(b[1]):int(b[3]), int(b[0]):int(b[2])].mean((0, 1)) for i, b in zip(images, boxes)]
            return np.array([np.r_[v, -(v @ v) / 2, 1] if len(out) > 1 else np.r_[v, 1, 0] for v in out])

    class Blind:
        def embed(self, images, boxes):
            return np.ones((len(images), 2))

    args = (np.stack([scene.image]), np.array([scene.objects[0].box]), [pool[1]], [pool], [("beach", "photo")])
    assert nearest_individual(Colours(), world, *args)[0]
    assert not nearest_individual(Blind(), world, *args)[0]
    with pytest.raises(ValueError, match="not among"):
        nearest_individual(Blind(), world, *args[:2], [pool[1]], [pool[:1]], args[4])


def test_trials_ask_for_one_of_ten_that_are_apart(world):
    images, boxes, truths, pools, settings = rendered_trials(world, 3, size=4)
    assert images.shape == (3, 64, 64, 3) and boxes.shape == (3, 4) and len(settings) == 3
    for truth, pool in zip(truths, pools):
        assert truth in pool and len(pool) == 4 and {i.class_name for i in pool} == {truth.class_name}
        assert all(a.differs(b) >= 2 for k, a in enumerate(pool) for b in pool[:k])
    assert np.array_equal(images, rendered_trials(world, 3, size=4)[0])

    class OneCat:
        classes = ("cat",)

        def individual(self, *_):
            return truths[0]

    with pytest.raises(ValueError, match="only 1 of 2"):
        rendered_trials(OneCat(), 1, size=2)


def test_a_crop_is_wider_than_the_box_by_the_margin_on_each_side_and_mirrors_with_it():
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[0, 24:40, 24:40] = 255
    crop = square_crops(image, np.array([[24, 24, 40, 40.0]]), IdentityConfig(crop=32, margin=0.5))[0, 0]
    assert float((crop > 0.5).float().mean()) == pytest.approx(1 / 4, abs=0.04), "a side of 1 + 2 * .5 of the box's"
    noise = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    one = square_crops(noise, np.array([[10, 20, 30, 44.0]]), IdentityConfig(crop=24))
    other = square_crops(noise[:, :, ::-1], np.array([[34, 20, 54, 44.0]]), IdentityConfig(crop=24))
    assert torch.allclose(one, other.flip(-1), atol=1e-4)


def test_a_mirrored_picture_has_the_vector_of_the_picture():
    torch.manual_seed(0)
    encoder = IdentityEncoder(TINY).eval()
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    plain = encoder.embed(images, np.array([[10, 20, 30, 44.0]] * 2))
    assert np.allclose(plain, encoder.embed(images[:, :, ::-1], np.array([[34, 20, 54, 44.0]] * 2)), atol=1e-4)


def test_every_step_of_identity_training_sees_other_pairs(world, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(identity, "draw_pairs", lambda w, rng, *rest, **more: seen.append(rng.random()) or draw_pairs(w, rng, *rest, **more))
    train_identity(world, tmp_path, TINY)
    assert len(set(seen)) == len(seen) == TINY.steps


def test_flaws_are_those_of_the_pictures_own_scenes(world):
    whose = []

    def blemish(scenes, seed):
        whose.extend(s.objects[0].individual.individual_id for s in scenes)
        return np.stack([s.image for s in scenes])

    keys = draw_pairs(world, np.random.default_rng(3), TINY, blemish=blemish)[2]
    assert whose == keys[1::2] and len(set(keys)) > 1


def test_some_of_the_other_renderings_are_mirrored_and_no_photo_is(world, monkeypatch):
    ramp = torch.linspace(0, 1, 16).expand(3, 16, 16)
    monkeypatch.setattr(identity, "square_crops", lambda images, boxes, config: ramp.expand(len(images), -1, -1, -1))
    first, second, keys = draw_pairs(world, np.random.default_rng(0), IdentityConfig(classes=4, individuals=4))
    mirrored = [not torch.equal(one, ramp) for one in second]
    assert all(torch.equal(one, ramp) for one in first) and 0 < sum(mirrored) < len(keys)
    assert all(torch.equal(one, ramp.flip(-1)) for one, turned in zip(second, mirrored) if turned)


def test_rivals_are_rendered_in_the_querys_own_setting():
    asked = []

    class World:
        def scene(self, rng, **how):
            asked.append((how["context"], how["medium"], how["fillers"]))
            return SimpleNamespace(image=np.zeros((8, 8, 3), np.uint8), objects=[SimpleNamespace(box=(0, 0, 4, 4))])

    judge = SimpleNamespace(embed=lambda images, boxes: np.ones((len(images), 2)))
    pool = [SimpleNamespace(individual_id=name) for name in "ab"]
    settings = [("beach", "photo"), ("forest", "oil painting")]
    nearest_individual(judge, World(), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 4)), [pool[0]] * 2, [pool] * 2, settings, renders=3)
    assert asked == [(*setting, 0) for setting in settings for _ in range(2 * 3)]
