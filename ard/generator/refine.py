"""Trains the autoencoder's decoder refinement; the latent space stays as the components fixed it, so order is free."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from ard.generator.train import to_tensor
from ard.generator.vae import PatchAutoencoder, psnr
from ard.precision import bfloat16


@dataclass(frozen=True)
class RefineConfig:
    """Schedule of the decoder's refinement."""

    steps: int
    batch_size: int
    learning_rate: float
    latent_noise: float
    seed: int


def refine_decoder(vae: PatchAutoencoder, images: np.ndarray, config: RefineConfig) -> list[float]:
    """Train the decoder on scenes, uint8 (N, 64, 64, 3), in place; returns the losses.

    A little noise on the latents (standard deviation `latent_noise`) teaches it to accept what a denoiser leaves.
    """
    vae.requires_grad_(False)
    parts = (vae.refine_in, vae.refine_mid, vae.refine_up, vae.refine_up2, vae.refine_out)
    parameters = [p.requires_grad_(True) for part in parts for p in part.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, max(config.steps, 2), pct_start=0.1)
    rng, losses = np.random.default_rng(config.seed), []
    noise = torch.Generator().manual_seed(config.seed)
    for _ in tqdm(range(config.steps), desc="refine decoder", mininterval=5):
        x = to_tensor(images[rng.integers(len(images), size=config.batch_size)])
        z = vae.encode(x).latent_dist.mode()
        z = z + config.latent_noise * torch.randn(z.shape, generator=noise)
        with bfloat16():
            y = vae.decode(z).sample
        loss = F.mse_loss(y.float(), x) + 0.1 * F.l1_loss(y.float(), x)
        loss.backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    vae.requires_grad_(False)
    return losses


@torch.no_grad()
def reconstruction_psnr(vae: PatchAutoencoder, images: np.ndarray) -> np.ndarray:
    """PSNR in dB of each image, uint8 (N, 64, 64, 3), after encoding and decoding."""
    x = to_tensor(images)
    return psnr(x, torch.cat([vae(part) for part in x.split(64)])).numpy()
