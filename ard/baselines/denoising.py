"""The denoising loss of pictures at fixed times under fixed noise: how well a generator knows each of them.

For methods that ask a generator (`ard.baselines.abu`). Latents come from `ard.customize.encode`, which multiplies by the
autoencoder's scaling factor: a loss of unscaled latents would be that of noise levels the generator never saw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Probe:
    """What a loss is measured at. Made once and used before and after a change of weights, whose effect would otherwise
    drown in that of another noise."""

    times: Tensor  # (T,) int64
    noise: Tensor  # (T, C, h, w), the same for all pictures: a loss does not depend on who else is measured

    def __len__(self) -> int:
        return len(self.times)


def even_probe(pipe, count: int, seed: int) -> Probe:
    """The middles of `count` equal stretches of the schedule, each with a noise of its own. Equal seeds, equal probes."""
    total, side = pipe.scheduler.config.num_train_timesteps, pipe.unet.config.sample_size
    if not 1 <= count <= total:
        raise ValueError(f"times of a probe: expected 1 to {total}, the schedule's, found {count}")
    shape = (count, pipe.unet.config.in_channels, side, side)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=pipe.unet.dtype)
    times = ((torch.arange(count) + 0.5) * total / count).long()
    return Probe(times.to(pipe.unet.device), noise.to(pipe.unet.device))


@torch.no_grad()
def text_states(pipe, prompt: str) -> Tensor:
    """What the UNet reads of a prompt, (1, tokens, width)."""
    ids = pipe.tokenizer(prompt, padding="max_length", truncation=True, max_length=pipe.tokenizer.model_max_length,
                         return_tensors="pt").input_ids
    return pipe.text_encoder(ids.to(pipe.unet.device))[0]


def denoising_losses(pipe, latents: Tensor, states: Tensor, probe: Probe, batch: int = 80) -> Tensor:
    """Mean squared error of the UNet's prediction of `latents` (n, C, h, w) under `states` (1, tokens, width), (n, T).

    Column t belongs to the probe's time t. `batch`: passes computed together, which changes the last digits. With
    gradients where the weights have them.
    """
    count = len(probe)
    places = torch.arange(len(latents) * count, device=latents.device).split(batch)
    rows = [losses_at(pipe, latents[i // count], states, probe.times[i % count], probe.noise[i % count]) for i in places]
    return torch.cat(rows).view(len(latents), count)


def losses_at(pipe, latents: Tensor, states: Tensor, times: Tensor, noise: Tensor) -> Tensor:
    """(B,) losses of latents (B, C, h, w), each at its own time with its own noise."""
    asked, target = question(pipe, latents, states, times, noise)
    return (pipe.unet(*asked).sample - target).float().square().mean((1, 2, 3))


def question(pipe, latents: Tensor, states: Tensor, times: Tensor, noise: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """What the UNet is asked of latents (B, C, h, w), each at its own time with its own noise, and what it should predict, as them."""
    scheduler = pipe.scheduler
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"scheduler prediction_type {kind!r}: expected 'epsilon' or 'v_prediction'")
    target = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, times)
    return (scheduler.add_noise(latents, noise, times), times, states.expand(len(latents), -1, -1)), target
