"""Pictures drawn again by the generator from part of the way through its noise (SDEdit, Meng et al. 2022): the flaws of
generated pictures on scenes whose truth is known."""

from typing import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ard.generator.text import caption
from ard.world import Scene

Blemish = Callable[[Sequence[Scene], int], np.ndarray]  # scenes and a seed -> their pictures with flaws, uint8 (n, H, W, 3)


def redraws(pipe, strength: tuple[float, float], steps: int = 20) -> Blemish:
    """`redrawn` for scenes, which know their own prompts."""

    def blemish(scenes: Sequence[Scene], seed: int) -> np.ndarray:
        prompts = [caption([o.class_name for o in s.objects], s.context, s.medium) for s in scenes]
        return redrawn(pipe, np.stack([s.image for s in scenes]), prompts, strength, steps, seed)

    return blemish


@torch.no_grad()
def redrawn(
    pipe,
    images: np.ndarray,
    prompts: Sequence[str],
    strength: tuple[float, float] = (0.2, 0.6),
    steps: int = 20,
    seed: int = 0,
    batch: int = 64,
) -> np.ndarray:
    """Images uint8 (n, H, W, 3) with their prompts -> uint8 (n, H, W, 3): each noised to a share of the way, denoised.

    pipe: a StableDiffusionPipeline or alike. strength: the share is drawn evenly from this range for each image.
    steps: of the whole way, without guidance. Layout and boxes stay; outlines and fine marks become the generator's own.
    """
    if len(images) != len(prompts):
        raise ValueError(f"expected one prompt for each of {len(images)} images, found {len(prompts)}")
    if not 0 <= strength[0] <= strength[1] <= 1:
        raise ValueError(f"strength: expected a range within 0 to 1, found {tuple(strength)}")
    generator, out = torch.Generator().manual_seed(seed), []
    for start in range(0, len(images), batch):
        part = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).permute(0, 3, 1, 2)
        share = strength[0] + (strength[1] - strength[0]) * torch.rand(len(part), generator=generator)
        latents = pipe.vae.encode(part.float() / 127.5 - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        first = steps - (steps * share).round().long()
        latents = _denoised(pipe, latents, noise, _hidden(pipe, prompts[start : start + batch]), first, steps)
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
        out.append(((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(out) if out else images


def _hidden(pipe, prompts: Sequence[str]) -> Tensor:
    ids = pipe.tokenizer(list(prompts), padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True,
                         return_tensors="pt").input_ids
    return pipe.text_encoder(ids).last_hidden_state


def _denoised(pipe, latents: Tensor, noise: Tensor, hidden: Tensor, first: Tensor, steps: int) -> Tensor:
    """Latents (B, C, h, w) that join the way of `steps` steps at their own `first` (B,), noised as befits it."""
    pipe.scheduler.set_timesteps(steps)
    for step, time in enumerate(pipe.scheduler.timesteps):
        joins, under_way = first == step, first <= step
        if joins.any():
            latents[joins] = pipe.scheduler.add_noise(latents[joins], noise[joins], time.repeat(int(joins.sum())))
        if under_way.any():
            predicted = pipe.unet(latents[under_way], time, hidden[under_way]).sample
            latents[under_way] = pipe.scheduler.step(predicted, time, latents[under_way]).prev_sample
    return latents
