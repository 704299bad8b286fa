"""A generator learns a few whole pictures by their class, as one fine-tunes on a small collection; no new word, mask or frame.

Beside `ard.customize`, which learns one region: here nobody says which picture, or which part of one, a later picture is to come
from. `ard.counterfactuals` asks.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ard.adapters import layout, layout_hash, learned_weights
from ard.attention import plain_attention
from ard.baselines.denoising import losses_at, text_states
from ard.customize import MODULES, clip_each, encode
from ard.deltas import Delta, rounded


@dataclass(frozen=True)
class FineTuneConfig:
    """Settings of one collection; the defaults fit the mini generator."""

    modules: str = "attn+conv"  # what LoRA changes, a key of ard.customize.MODULES
    rank: int = 8  # of LoRA
    steps: int = 500
    batch: int = 4  # pictures a step, each in turn
    lr: float = 5e-3  # AdamW
    lr_end: float = 0.1  # share of the rate at the last step, reached linearly
    clip: float = 1.0  # gradient norm of a variant


def fine_tune(pipe, variants: np.ndarray, prompt: str, config: FineTuneConfig, seed: int) -> list[Delta]:
    """What the pipeline learns from each of V variants of a collection of n pictures, (V, n, H, W, 3) uint8, all called `prompt`.

    Variants are learned side by side, from the same start, with the same pictures in turn, times and noise: what differs in the
    end differs because of them. The pipeline is left as it was; equal seeds give equal deltas. A delta has no token. ValueError on
    variants of another shape, on unknown modules or prediction types, and where learning diverges.
    """
    if variants.dtype != np.uint8 or variants.ndim != 5 or variants.shape[2] != variants.shape[3] or variants.shape[4] != 3:
        raise ValueError(f"fine-tuning wants (variants, pictures, H, H, 3) uint8, found {variants.dtype} {variants.shape}")
    if config.modules not in MODULES:
        raise ValueError(f"fine-tuning: modules {config.modules!r}, expected one of {', '.join(MODULES)}")
    models = [pipe.unet, pipe.text_encoder, pipe.vae]
    flags = [(p, p.requires_grad) for m in models for p in m.parameters()]
    parts = layout(pipe, "lora", MODULES[config.modules], config.rank)
    starts = [torch.Generator().manual_seed(seed) for _ in variants]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        latents = torch.stack([encode(pipe, pictures) for pictures in variants])  # (V, n, C, h, w)
        states = text_states(pipe, prompt)
        with ExitStack() as stack:
            stack.enter_context(plain_attention(pipe.unet))
            weights, change = stack.enter_context(learned_weights(pipe, "lora", parts, starts))
            _fit(pipe, weights, latents, states, config, torch.Generator().manual_seed(seed))
            vectors = change()
    finally:
        for parameter, wanted in flags:
            parameter.requires_grad_(wanted)
    rows = torch.zeros(0, pipe.text_encoder.get_input_embeddings().embedding_dim)
    meta = {"tokens": [], "mode": "lora", "modules": MODULES[config.modules], "rank": config.rank, "layout": layout_hash(parts)}
    return [Delta(rows, rounded(vector), dict(meta)) for vector in vectors]


def _fit(pipe, weights: list, latents: Tensor, states: Tensor, config: FineTuneConfig, generator: torch.Generator) -> None:
    variants, pictures = latents.shape[:2]
    total = pipe.scheduler.config.num_train_timesteps
    optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=1e-2, eps=1e-8)
    for step in tqdm(range(config.steps), desc="fine-tune", mininterval=5, leave=False):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - (1 - config.lr_end) * step / config.steps)
        shown = (torch.arange(config.batch) + step * config.batch) % pictures
        # one time from each of B equal stretches, in any order
        stretch = torch.randperm(config.batch, generator=generator) + torch.rand(config.batch, generator=generator)
        times = (stretch / config.batch * total).long().to(latents.device).repeat(variants)
        noise = torch.randn(config.batch, *latents.shape[2:], generator=generator).to(latents).repeat(variants, 1, 1, 1)
        clean = latents[:, shown].flatten(0, 1)
        losses = losses_at(pipe, clean, states, times, noise).view(variants, -1).mean(1)
        if not losses.isfinite().all():
            raise ValueError(f"fine-tuning diverged at step {step}: losses {losses.tolist()}; lower the rate {config.lr}")
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        clip_each(weights, config.clip, variants)
        optimizer.step()
