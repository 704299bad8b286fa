"""The generator's autoencoder: principal components of 8x8 patches, plus a learned refinement of the decoder.

It takes the place of Stable Diffusion's VAE and has the same interface (`encode(x).latent_dist`, `decode(z)`), so a
`StableDiffusionPipeline` folder loads it by name. A linear start needs no training and fixes the latent space at once.
"""

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn
from torch.nn import functional as F


class PointPosterior:
    """A posterior without spread: patch components are a deterministic code."""

    def __init__(self, mean: Tensor):
        self.mean = mean

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mean


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, C, H/8, W/8) of overall standard deviation 1, and back."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 40,
        hidden: int = 128,
        scaling_factor: float = 1.0,
        # the pipeline reads the down-sampling factor, 8, off the length of this list
        block_out_channels: tuple[int, ...] = (1, 1, 1, 1),
    ):
        super().__init__()
        self.encoder = nn.Conv2d(3, latent_channels, 8, stride=8)
        self.decoder = nn.ConvTranspose2d(latent_channels, 3, 8, stride=8)
        self.refine_in = nn.Conv2d(latent_channels, hidden, 3, padding=1)
        self.refine_mid = nn.Conv2d(hidden, 16 * 24, 3, padding=1)
        self.refine_up = nn.Conv2d(24 + 12, 48, 3, padding=1)
        self.refine_up2 = nn.Conv2d(48, 48, 3, padding=1)
        self.refine_out = nn.Conv2d(48, 12, 3, padding=1)
        nn.init.zeros_(self.refine_out.weight)
        nn.init.zeros_(self.refine_out.bias)

    @torch.no_grad()
    def fit_components(self, images: np.ndarray, whitening: float = 0.5) -> "PatchAutoencoder":
        """Set encoder and decoder to the principal components of `images`, uint8 (N, H, W, 3).

        Component i is divided by std_i ** whitening: fully whitened weak components would be noise to the diffusion
        model, raw ones would be drowned by brightness. Everything is then scaled to overall standard deviation 1.
        """
        channels = self.config.latent_channels
        patches = F.unfold(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, 8, stride=8)
        patches = patches.transpose(1, 2).reshape(-1, 192).double()
        mean = patches.reshape(-1, 3, 64).mean((0, 2)).repeat_interleave(64)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        std, basis = values.flip(0)[:channels].sqrt(), vectors.flip(1)[:, :channels]
        # a sign rule makes the components the same on every machine
        basis = basis * torch.sign(basis.gather(0, basis.abs().argmax(0, keepdim=True)))
        gain = std**-whitening
        gain = gain / ((std * gain) ** 2).mean().sqrt()
        down, up = (basis * gain).T, (basis / gain).T
        self.encoder.weight.copy_(down.reshape(channels, 3, 8, 8))
        self.encoder.bias.copy_(-(down @ mean))
        self.decoder.weight.copy_(up.reshape(channels, 3, 8, 8))
        self.decoder.bias.copy_(mean[::64])
        return self

    def encode(self, x: Tensor, return_dict: bool = True):
        posterior = PointPosterior(self.encoder(x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator=None):
        linear = self.decoder(z)
        hidden = F.silu(self.refine_mid(F.silu(self.refine_in(z))))
        hidden = torch.cat([F.pixel_shuffle(hidden, 4), F.pixel_unshuffle(linear, 2)], 1)
        hidden = F.silu(self.refine_up2(F.silu(self.refine_up(hidden))))
        image = linear + F.pixel_shuffle(self.refine_out(hidden), 2)
        return DecoderOutput(sample=image) if return_dict else (image,)

    def forward(self, sample: Tensor) -> Tensor:
        return self.decode(self.encode(sample).latent_dist.mode()).sample


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per image; both (B, 3, H, W) in [-1, 1]."""
    error = (images.clamp(-1, 1) - reconstructions.clamp(-1, 1)).pow(2).flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))
