"""A small ViT trained without labels on scenes of the mini world, as MoCo v3 (Chen et al. 2021), and the augmentations of AbC.

One of AbC's encoders (`ard.baselines.encoders`): it takes the place of the published DINO and MoCo v3 weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as colours
from tqdm import tqdm

from ard.backbones import freeze
from ard.baselines.mappers import head
from ard.checkpoints import Checkpoint, warm_cosine
from ard.files import atomic_write_bytes

Draw = Callable[[np.random.Generator, int], list[np.ndarray]]  # n pictures (H, W, 3) uint8


@dataclass(frozen=True)
class ViTConfig:
    """Sizes and training; about a million parameters."""

    size: int = 64  # px a side at test; published 224
    patch: int = 8  # px; published 16
    width: int = 160  # channels; published 768 (ViT-B)
    depth: int = 3  # blocks; published 12. Wide and shallow learns more in minutes
    heads: int = 5  # of attention; published 12
    hidden: int = 512  # units of the heads' hidden layers; published 4096
    out: int = 128  # channels that are compared; published 256
    view: int = 48  # px a side in training: near two thirds of the patches, so near twice the pictures a second
    steps: int = 500  # optimiser steps; published 300 epochs of ImageNet
    batch: int = 64  # pictures a step, two views each; published 4096
    learning_rate: float = 1e-3  # AdamW; published 1.5e-4 for each 256 of the batch
    weight_decay: float = 0.1  # as published
    warmup: int = 50  # steps; published 40 epochs
    temperature: float = 0.2  # as published
    momentum: float = 0.99  # of the teacher at the start, up a cosine to 1, as published
    checkpoint_every: int = 50  # steps
    seed: int = 0  # of weights, scenes and views


# ---- augmentation ----------------------------------------------------------------------------------------------------
def mild(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 -> the same shape: a flip half of the time and a crop of 70% to 100%, resized back (supplement 2.2)."""
    return np.asarray(_cropped(image, rng, 0.7, image.shape[1::-1]))


def strong(image: np.ndarray, rng: np.random.Generator, least: float = 0.4, size: int | None = None) -> np.ndarray:
    """DINO's augmentation without multi-crops (supplement 2.2): flip, crop, colour jitter, grey, blur, solarisation.

    image (H, W, 3) uint8 -> the same shape, or (size, size, 3); least: share of the picture that a crop keeps.
    """
    picture = _cropped(image, rng, least, image.shape[1::-1] if size is None else (size, size))
    if rng.random() < 0.8:
        brightness, contrast, saturation = rng.uniform(1 - np.array([0.4, 0.4, 0.2]), 1 + np.array([0.4, 0.4, 0.2]))
        picture = colours.adjust_saturation(colours.adjust_contrast(colours.adjust_brightness(picture, brightness), contrast),
                                            saturation)
        picture = colours.adjust_hue(picture, rng.uniform(-0.1, 0.1))
    if rng.random() < 0.2:
        picture = picture.convert("L").convert("RGB")
    if rng.random() < 0.5:
        # published 0.1 to 2 px of 224
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0) * max(picture.size) / 224))
    if rng.random() < 0.1:
        picture = ImageOps.solarize(picture)
    return np.asarray(picture)


def _cropped(image: np.ndarray, rng: np.random.Generator, least: float, size: tuple[int, int]) -> Image.Image:
    """A random part of the picture, at least `least` of it, at the size (width, height), mirrored half of the time."""
    height, width = image.shape[:2]
    area, ratio = rng.uniform(least, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = min(width, width * np.sqrt(area * ratio)), min(height, height * np.sqrt(area / ratio))
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    part = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR, (left, top, left + w, top + h))
    return ImageOps.mirror(part) if rng.random() < 0.5 else part


def views(pictures: list[np.ndarray], rng: np.random.Generator, size: int) -> Tensor:
    """Two strong views of each picture, (2n, 3, size, size) in [-1, 1]: the first of all, then the second of all."""
    found = [strong(picture, rng, least=0.2, size=size) for _ in range(2) for picture in pictures]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 127.5 - 1


# ---- MoCo v3 ---------------------------------------------------------------------------------------------------------
class ConvStem(nn.Module):
    """Pictures (n, 3, S, S) -> patches (n, S / p, S / p, d) by small convolutions of stride 2, as MoCo v3's `vit_conv`: a ViT
    learns sooner with them. It has what timm's VisionTransformer asks of an `embed_layer`."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **other):
        super().__init__()
        halvings = patch_size.bit_length() - 1
        if patch_size != 2**halvings:
            raise ValueError(f"patch: expected a power of 2, found {patch_size}")
        sizes, parts = [in_chans, *(max(1, embed_dim >> (halvings - 1 - i)) for i in range(halvings))], []
        for before, after in zip(sizes, sizes[1:]):
            parts += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.proj = nn.Sequential(*parts, nn.Conv2d(embed_dim, embed_dim, 1))
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.grid_size = (img_size // patch_size,) * 2
        self.num_patches = self.grid_size[0] ** 2

    def feat_ratio(self, as_scalar: bool = True):
        return self.patch_size[0] if as_scalar else self.patch_size

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).permute(0, 2, 3, 1)


def build_vit(config: ViTConfig) -> VisionTransformer:
    """Pictures (n, 3, S, S) in [-1, 1] -> features (n, width), the mean of the patches; S may be any multiple of `patch`."""
    return VisionTransformer(img_size=config.size, patch_size=config.patch, embed_dim=config.width, depth=config.depth,
                             num_heads=config.heads, num_classes=0, class_token=False, global_pool="avg",
                             dynamic_img_size=True, embed_layer=ConvStem)


class MoCo(nn.Module):
    """Student with projection and prediction, and a teacher that follows the student."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.student, self.teacher = (
            nn.Sequential(build_vit(config), head(config.width, config.hidden, config.out, 3)) for _ in range(2))
        self.predict = head(config.out, config.hidden, config.out, 2)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)

    def loss(self, pair: Tensor, temperature: float) -> Tensor:
        """pair (2n, 3, S, S): the student sees one view, the teacher the other, and the other way round."""
        with torch.no_grad():
            keys = self.teacher(pair).chunk(2)
        queries = self.predict(self.student(pair)).chunk(2)
        return infonce(queries[0], keys[1], temperature) + infonce(queries[1], keys[0], temperature)


def infonce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Contrastive loss of (n, d) each: query i belongs to key i; times 2 tau, so that tau does not set the step size."""
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    return 2 * temperature * F.cross_entropy(logits, torch.arange(len(logits)))


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, weight by weight."""
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.mul_(momentum).add_(theirs, alpha=1 - momentum)


def teacher_momentum(step: int, config: ViTConfig) -> float:
    """Half a cosine from `momentum` to 1.

    >>> [round(teacher_momentum(s, ViTConfig(steps=100, momentum=0.9)), 3) for s in (0, 50, 100)]
    [0.9, 0.95, 1.0]
    """
    return 1 - (1 - config.momentum) * (1 + float(np.cos(np.pi * step / config.steps))) / 2


def train_vit(draw: Draw, config: ViTConfig, path: str | Path) -> None:
    """Train on pictures that `draw` makes and write the student's encoder to `path` (safetensors).

    A second call goes on from the checkpoint beside it and ends in the same bytes; the checkpoint is then removed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MoCo(config).train()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, config.learning_rate, weight_decay=config.weight_decay)
    checkpoint = Checkpoint(Path(path).with_suffix(".checkpoint.pt"), asdict(config))
    start = checkpoint.resume(model, optimizer)
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="ViT", mininterval=5)
    for step in bar:
        rng = np.random.default_rng([config.seed, step])
        loss = model.loss(views(draw(rng, config.batch), rng, config.view), config.temperature)
        optimizer.param_groups[0]["lr"] = config.learning_rate * warm_cosine(step, config.steps, config.warmup)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        follow(model.teacher, model.student, teacher_momentum(step, config))
        if step % 10 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
        if (step + 1) % config.checkpoint_every == 0:
            checkpoint.save(model, optimizer, step + 1)
    state = {k: v.detach().contiguous() for k, v in model.student[0].state_dict().items()}
    atomic_write_bytes(path, save(state, metadata={"ard": json.dumps(asdict(config), sort_keys=True)}))
    checkpoint.path.unlink(missing_ok=True)


def load_vit(path: str | Path) -> VisionTransformer:
    """The frozen encoder that `train_vit` wrote."""
    with safe_open(str(path), "pt") as file:
        model = build_vit(ViTConfig(**json.loads(file.metadata()["ard"])))
    model.load_state_dict(load_file(path))
    return freeze(model)
