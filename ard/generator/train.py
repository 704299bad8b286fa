"""Trains the generator on scenes of base drawings: resumable, on CPU or GPU (paper: the base model G before customisation).

Autoencoder first (principal components, then its decoder's refinement), then text encoder and denoiser together.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from tqdm import tqdm

from ard.generator.build import assemble, build_scheduler, build_text_encoder, build_unet
from ard.generator.text import MAX_LENGTH, build_tokenizer, caption
from ard.generator.vae import PatchAutoencoder
from ard.precision import bfloat16
from ard.world import World


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes and schedule of the generator's training."""

    latent_channels: int
    unet_widths: tuple[int, int]
    text_width: int
    text_layers: int
    pool_scenes: int
    two_object_share: float
    batch_size: int
    total_steps: int
    learning_rate: float
    ema_decay: float
    prompt_dropout: float
    log_snr: tuple[float, float]
    object_weight: float
    compile: bool
    seed: int


def render_pool(world: World, n: int, seed: int, two_object_share: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """`n` captioned scenes of base individuals: uint8 (n, 64, 64, 3), objects' share of each latent cell in 255ths, captions.

    Scene i depends on (seed, i) only. No fillers: no caption names them, so learning them would be learning noise.
    """
    images, cover, captions = [], [], []
    for i in tqdm(range(n), desc="render", mininterval=5):
        rng = np.random.default_rng((seed, i))
        scene = world.scene(rng, n_objects=2 if rng.random() < two_object_share else 1, fillers=0)
        images.append(scene.image)
        cover.append(cell_cover(np.any([o.mask for o in scene.objects], 0)))
        captions.append(caption([o.class_name for o in scene.objects], scene.context, scene.medium))
    return np.stack(images), np.stack(cover), captions


def cell_cover(mask: np.ndarray) -> np.ndarray:
    """Share of each 8x8 cell that a boolean mask (H, W) covers, in 255ths: uint8 (H / 8, W / 8)."""
    height, width = mask.shape
    return np.round(mask.reshape(height // 8, 8, width // 8, 8).mean((1, 3)) * 255).astype(np.uint8)


@torch.no_grad()
def encode_pool(vae: PatchAutoencoder, images: np.ndarray) -> Tensor:
    """Latents of the scenes and of their mirror images, float16 (2, n, C, 8, 8)."""
    out = []
    for view in (images, images[:, :, ::-1]):
        batches = np.array_split(view, max(1, len(view) // 512))
        out.append(torch.cat([vae.encode(to_tensor(b)).latent_dist.mode().half() for b in batches]))
    return torch.stack(out)


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def timestep_density(alphas_cumprod: Tensor, mean: float, std: float, even: float = 0.15) -> Tensor:
    """How often each timestep is drawn, (T,) summing to 1: log SNR is normal (EDM, Karras et al. 2022, section 5).

    With v-prediction's plain squared error this is EDM's weighting too. A share `even` is drawn evenly, so that pure
    noise, where sampling starts, is trained as well.
    """
    log_snr = (alphas_cumprod.double() / (1 - alphas_cumprod.double()).clamp_min(1e-12)).clamp_min(1e-12).log()
    step = -torch.gradient(log_snr)[0]
    density = step * torch.exp(-0.5 * ((log_snr - mean) / std) ** 2)
    return ((1 - even) * density / density.sum() + even / len(density)).float()


class GeneratorTrainer:
    """Model, averaged model, optimiser and counters; everything that a checkpoint must hold."""

    def __init__(self, config: GeneratorConfig, tokenizer, device: str = "cpu"):
        torch.manual_seed(config.seed)
        self.config, self.device, self.step = config, torch.device(device), 0
        self.text = build_text_encoder(tokenizer, config.text_width, config.text_layers).to(device)
        self.unet = build_unet(config.latent_channels, config.unet_widths, config.text_width).to(device)
        self.unet.to(memory_format=torch.channels_last)
        # fused attention is slow backwards on CPU at 64 tokens: plain products make a step 1.5 times faster
        self.unet.set_attn_processor(AttnProcessor())
        self.text.set_attn_implementation("eager")
        self.parameters = [*self.text.parameters(), *self.unet.parameters()]
        self.ema = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=1e-2, betas=(0.9, 0.99), fused=True)
        self.scheduler = build_scheduler()
        self.timesteps = timestep_density(self.scheduler.alphas_cumprod, *config.log_snr)
        self.denoise = torch.compile(self.unet) if config.compile else self.unet

    def rate(self) -> float:
        """Linear warm-up over 500 steps, then cosine to 5% at `total_steps`."""
        warm = min(1.0, (self.step + 1) / 500)
        share = min(1.0, self.step / self.config.total_steps)
        return self.config.learning_rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))

    def train_step(self, latents: Tensor, token_ids: Tensor, cover: Tensor) -> float:
        """One step on latents (B, C, 8, 8), token ids (B, MAX_LENGTH) and objects' share of each cell (B, 8, 8).

        Cells of objects weigh `object_weight` times as much: where the error counts does not move its optimum. Random
        draws depend on the step only.
        """
        rng = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        noise = torch.randn(latents.shape, generator=rng).to(self.device)
        t = torch.multinomial(self.timesteps, len(latents), replacement=True, generator=rng).to(self.device)
        noisy = self.scheduler.add_noise(latents, noise, t).contiguous(memory_format=torch.channels_last)
        target = self.scheduler.get_velocity(latents, noise, t)
        with bfloat16(self.device.type):
            hidden = self.text(token_ids).last_hidden_state
            predicted = self.denoise(noisy, t, hidden).sample
        weight = 1 + (self.config.object_weight - 1) * cover
        loss = ((predicted.float() - target).pow(2).mean(1) * weight).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.optimiser.step()
        self.optimiser.zero_grad()
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, self.parameters, 1 - decay)
        self.step += 1
        return float(loss)

    def state(self) -> dict:
        return {"step": self.step, "text": self.text.state_dict(), "unet": self.unet.state_dict(), "ema": self.ema,
                "optimiser": self.optimiser.state_dict()}

    def load_state(self, state: dict) -> None:
        self.step = state["step"]
        self.text.load_state_dict(state["text"])
        self.unet.load_state_dict(state["unet"])
        self.optimiser.load_state_dict(state["optimiser"])
        for mine, theirs in zip(self.ema, state["ema"]):
            mine.copy_(theirs)

    def pipeline(self, vae: PatchAutoencoder, tokenizer):
        """The averaged model as a pipeline on CPU (a copy: training goes on undisturbed)."""
        text = build_text_encoder(tokenizer, self.config.text_width, self.config.text_layers)
        unet = build_unet(self.config.latent_channels, self.config.unet_widths, self.config.text_width)
        for mine, averaged in zip([*text.parameters(), *unet.parameters()], self.ema):
            mine.data.copy_(averaged)
        return assemble(vae, text, tokenizer, unet)


def save_checkpoint(trainer: GeneratorTrainer, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(trainer.state(), partial)
    partial.replace(path)


def train_generator(config: GeneratorConfig, world: World, work: str | Path, device: str = "cpu",
                    checkpoint_every: int = 500, stop_after_s: float = float("inf")):
    """Train to `total_steps`, or until `stop_after_s`; run again to go on. Returns the averaged model's pipeline.

    `work` holds the pool, the autoencoder, `checkpoint.pt` and `log.jsonl`; it is not versioned.
    """
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(work / "tokenizer")
    images, cover, captions = _pool(config, world, work)
    vae = _autoencoder(config, images, work)
    latents = encode_pool(vae, images)
    ids = tokenizer([*captions, ""], padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt").input_ids
    trainer = GeneratorTrainer(config, tokenizer, device)
    checkpoint, start = work / "checkpoint.pt", time.time()
    if checkpoint.exists():
        trainer.load_state(torch.load(checkpoint, weights_only=True, map_location=device))
    bar = tqdm(total=config.total_steps, initial=trainer.step, desc="generator", mininterval=10)
    losses: list[float] = []
    while trainer.step < config.total_steps and time.time() - start < stop_after_s:
        rng = np.random.default_rng((config.seed, trainer.step))
        pick = rng.integers(len(images), size=config.batch_size)
        words = torch.from_numpy(np.where(rng.random(config.batch_size) < config.prompt_dropout, len(images), pick))
        mirrored = rng.integers(2, size=config.batch_size)
        batch = latents[torch.from_numpy(mirrored), torch.from_numpy(pick)].float()
        weights = torch.from_numpy(np.where(mirrored[:, None, None], cover[pick, :, ::-1], cover[pick]) / 255).float()
        losses.append(trainer.train_step(batch.to(device), ids[words].to(device), weights.to(device)))
        bar.update()
        if trainer.step % checkpoint_every == 0:
            save_checkpoint(trainer, checkpoint)
            row = {"step": trainer.step, "loss": round(float(np.mean(losses)), 5), "seconds": round(time.time() - start)}
            with (work / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            losses = []
    save_checkpoint(trainer, checkpoint)
    return trainer.pipeline(vae, tokenizer)


def _pool(config: GeneratorConfig, world: World, work: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    words = work / "captions.json"
    if not words.exists():
        images, cover, captions = render_pool(world, config.pool_scenes, config.seed, config.two_object_share)
        np.save(work / "pool.npy", images)
        np.save(work / "cover.npy", cover)
        words.write_text(json.dumps(captions))
    return np.load(work / "pool.npy"), np.load(work / "cover.npy"), json.loads(words.read_text())


def _autoencoder(config: GeneratorConfig, images: np.ndarray, work: Path) -> PatchAutoencoder:
    if not (work / "vae" / "config.json").exists():
        torch.manual_seed(config.seed)
        vae = PatchAutoencoder(config.latent_channels).fit_components(images[:8000])
        vae.save_pretrained(work / "vae")
    return PatchAutoencoder.from_pretrained(work / "vae")
