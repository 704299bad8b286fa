"""Redrawn scenes: unchanged at strength 0, farther from the scene the more noise, each from its own start."""

import numpy as np
import pytest
from torch import nn

from ard.generator import load_pipeline
from ard.generator.redraw import redrawn
from ard.generator.text import caption
from ard.generator.train import to_tensor
from ard.world import World


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("data/models/generator")


@pytest.fixture(scope="module")
def scenes():
    world = World.load("data/world")
    drawn = [world.scene(np.random.default_rng(k), n_objects=1, fillers=0) for k in range(6)]
    return np.stack([s.image for s in drawn]), [caption([s.objects[0].class_name], s.context, s.medium) for s in drawn]


def _error(a, b):
    return np.abs(a.astype(int) - b).mean()


def test_without_noise_only_the_autoencoder_is_seen(pipe, scenes):
    images, prompts = scenes
    latents = pipe.vae.encode(to_tensor(images)).latent_dist.mode()
    decoded = ((pipe.vae.decode(latents).sample.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(redrawn(pipe, images, prompts, (0.0, 0.0)), decoded.astype(np.uint8))


def test_more_noise_leaves_less_of_the_scene(pipe, scenes):
    images, prompts = scenes
    weak, middle, strong = (redrawn(pipe, images, prompts, (s, s), seed=1) for s in (0.1, 0.4, 0.9))
    assert weak.shape == images.shape and weak.dtype == np.uint8
    assert _error(weak, images) < _error(middle, images) < _error(strong, images)


def test_equal_seeds_draw_equally_and_each_has_its_own_strength(pipe, scenes):
    images, prompts = scenes
    one, two, other = (redrawn(pipe, images, prompts, (0.0, 0.8), seed=s) for s in (3, 3, 4))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    same = np.repeat(images[:1], 8, 0)
    errors = [_error(picture, images[0]) for picture in redrawn(pipe, same, prompts[:1] * 8, (0.0, 0.8), seed=5)]
    assert max(errors) > 2 * min(errors)


def test_a_scheduler_of_perfect_predictions_gives_the_latents_back(pipe, scenes, monkeypatch):
    """A denoiser that knows the scene ends at it from any start: noise and steps are those of one schedule."""
    images, prompts = scenes[0][:2], scenes[1][:2]
    clean = pipe.vae.encode(to_tensor(images)).latent_dist.mode() * pipe.vae.config.scaling_factor

    class Oracle(nn.Module):
        def forward(self, noisy, time, hidden):
            a = pipe.scheduler.alphas_cumprod[time]
            noise = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
            return type("Out", (), {"sample": a.sqrt() * noise - (1 - a).sqrt() * clean})

    plain = redrawn(pipe, images, prompts, (0.0, 0.0))
    monkeypatch.setattr(pipe, "unet", Oracle())
    # the last step stops at the least noise of the schedule, not at none
    assert _error(redrawn(pipe, images, prompts, (0.7, 0.7)), plain) < 1.5


def test_wrong_input_is_named(pipe, scenes):
    images, prompts = scenes
    with pytest.raises(ValueError, match="one prompt for each of 6 images, found 5"):
        redrawn(pipe, images, prompts[:5])
    with pytest.raises(ValueError, match="within 0 to 1"):
        redrawn(pipe, images, prompts, (0.5, 1.2))
