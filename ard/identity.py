"""A small encoder that tells individuals of a class apart, for one question: did the generator keep the individual?

Trained contrastively on pairs of renderings of base individuals; it judges generated images, in no table row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.ops import roi_align
from tqdm import tqdm

from ard.checkpoints import Checkpoint, warm_cosine
from ard.files import atomic_write_bytes, atomic_write_json, read_json
from ard.generator import Blemish



@dataclass(frozen=True)
class IdentityConfig:
    """Sizes and training of the identity encoder."""

    crop: int = 40  # px; the square around the box is resampled to this
    margin: float = 0.1  # added around the box, as a share of its longer side
    width: int = 24
    dim: int = 64
    steps: int = 1500
    classes: int = 4  # per batch
    individuals: int = 8  # of each class per batch, two views of each
    lr: float = 2e-3
    warmup: int = 100
    temperature: float = 0.1
    jitter: float = 0.05  # box noise, as a share of the side
    checkpoint_every: int = 250


class IdentityEncoder(nn.Module):
    """Residual-free convolutions, pooled by mean and maximum; crops (n, 3, s, s) in 0..1 to unit vectors (n, dim)."""

    def __init__(self, config: IdentityConfig):
        super().__init__()
        self.config = config
        sizes = [3, config.width, 2 * config.width, 4 * config.width, 4 * config.width]
        layers = []
        for n, (before, after) in enumerate(zip(sizes, sizes[1:])):
            layers += [nn.Conv2d(before, after, 3, 2 if n else 1, 1), nn.GroupNorm(8, after), nn.GELU(),
                       nn.Conv2d(after, after, 3, 1, 1, groups=after if n == 0 else 1), nn.GroupNorm(8, after), nn.GELU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(2 * sizes[-1], 256), nn.GELU(), nn.Linear(256, config.dim))

    def forward(self, crops: Tensor) -> Tensor:
        x = self.body(crops * 4 - 2)
        return F.normalize(self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)), dim=1)

    @torch.inference_mode()
    def embed(self, images: np.ndarray, boxes: np.ndarray, batch: int = 256) -> np.ndarray:
        """Unit vectors (n, dim) of one box (xyxy px) in each image (n, H, W, 3) uint8; mean of the crop and its mirror."""
        out = []
        for start in range(0, len(images), batch):
            crops = square_crops(images[start:start + batch], boxes[start:start + batch], self.config)
            out.append(F.normalize(self(crops) + self(crops.flip(-1)), dim=1))
        return torch.cat(out).numpy()

    def save(self, folder: str | Path) -> None:
        state = {k: v.detach().cpu().half().contiguous() for k, v in self.state_dict().items()}
        atomic_write_bytes(Path(folder) / "model.safetensors", save(state))
        atomic_write_json(Path(folder) / "config.json", asdict(self.config))

    @classmethod
    def load(cls, folder: str | Path) -> IdentityEncoder:
        model = cls(IdentityConfig(**read_json(Path(folder) / "config.json")))
        model.load_state_dict({k: v.float() for k, v in load_file(Path(folder) / "model.safetensors").items()})
        return model.eval()


def square_crops(images: np.ndarray, boxes: np.ndarray, config: IdentityConfig) -> Tensor:
    """The square around each box, so that proportions stay: (n, 3, crop, crop) in 0..1, black outside the image."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    b = torch.as_tensor(np.asarray(boxes), dtype=torch.float32).reshape(-1, 4)
    centre = (b[:, :2] + b[:, 2:]) / 2
    half = (b[:, 2:] - b[:, :2]).amax(1, keepdim=True) * (0.5 + config.margin)
    rois = torch.cat([torch.arange(len(b), dtype=torch.float32)[:, None], centre - half, centre + half], 1)
    return roi_align(x, rois, config.crop, sampling_ratio=2, aligned=True)


def contrastive_loss(a: Tensor, b: Tensor, keys: Sequence[str], temperature: float) -> Tensor:
    """Symmetric NT-Xent of two views (n, dim); pairs of the same key elsewhere in the batch are not negatives."""
    index = {k: i for i, k in enumerate(dict.fromkeys(keys))}
    label = torch.tensor([index[k] for k in keys])
    twin = (label[:, None] == label[None]) & ~torch.eye(len(label), dtype=torch.bool)
    logits = (a @ b.T / temperature).masked_fill(twin, float("-inf"))
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def draw_pairs(world, rng: np.random.Generator, config: IdentityConfig, split: str = "base",
               blemish: Blemish | None = None) -> tuple[Tensor, Tensor, list[str]]:
    """Crops of a photo and of any other rendering of the same individuals, each in its own scene; and their ids.

    blemish: gives scenes the flaws of generated pictures; every second of the other renderings goes through it.
    """
    views, scenes, keys = ([], []), [], []
    for name in rng.choice(world.classes, config.classes, replace=False):
        for _ in range(config.individuals):
            individual = world.individual(str(name), split, rng)
            keys.append(individual.individual_id)
            for view, medium in zip(views, ("photo", None)):
                scene = world.scene(rng, individuals=[individual], medium=medium)
                box = np.array(scene.objects[0].box)
                side = np.tile(box[2:] - box[:2], 2)
                view.append((_soften(scene.image, rng), box + rng.normal(size=4) * side * config.jitter))
            scenes.append(scene)
    (photos, photo_boxes), (others, other_boxes) = (tuple(map(np.stack, zip(*view))) for view in views)
    if blemish is not None:
        others[1::2] = blemish(scenes[1::2], int(rng.integers(2**31)))
    first, second = square_crops(photos, photo_boxes, config), square_crops(others, other_boxes, config)
    mirror = torch.from_numpy(rng.random(len(keys)) < 0.5)[:, None, None, None]
    return first, torch.where(mirror, second.flip(-1), second), keys


def train_identity(world, folder: str | Path, config: IdentityConfig, seed: int = 0, blemish: Blemish | None = None
                   ) -> IdentityEncoder:
    """Train and save into `folder`; a second call goes on from the checkpoint and ends in the same bytes.

    blemish: see `draw_pairs`. Without it a judge mistakes the flaws of a generated picture for another individual.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = IdentityEncoder(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.05)
    checkpoint = Checkpoint(Path(folder) / "checkpoint.pt", [asdict(config), seed])
    start = checkpoint.resume(model, optimizer)
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc="identity", mininterval=5)
    for step in bar:
        first, second, keys = draw_pairs(world, np.random.default_rng([seed, step]), config, blemish=blemish)
        loss = contrastive_loss(model(first), model(second), keys, config.temperature)
        optimizer.param_groups[0]["lr"] = config.lr * warm_cosine(step, config.steps, config.warmup)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            checkpoint.save(model, optimizer, step + 1)
    model.save(folder)
    return model.eval()


def nearest_individual(encoder, world, images: np.ndarray, boxes: np.ndarray, truths: Sequence,
                       pools: Sequence[Sequence], settings: Sequence[tuple[str, str]], seed: int = 0,
                       renders: int = 4) -> np.ndarray:
    """For each query, which individual of its pool looks nearest when rendered in the query's own setting.

    images (n, H, W, 3) uint8, boxes (n, 4) xyxy px; truths: individuals; pools: the individuals of the class to choose
    from (the truth among them); settings: (context, medium). Returns (n,) bool: the nearest is the truth (ties: no).
    """
    queries, right = encoder.embed(images, boxes), []
    for n, (truth, pool, (context, medium)) in enumerate(zip(truths, pools, settings)):
        ids = [i.individual_id for i in pool]
        if truth.individual_id not in ids:
            raise ValueError(f"query {n}: its individual {truth.individual_id} is not among the {len(ids)} of its pool")
        rng = np.random.default_rng([seed, n])
        scenes = [world.scene(rng, individuals=[i], context=context, medium=medium, fillers=0) for i in pool
                  for _ in range(renders)]
        vectors = encoder.embed(np.stack([s.image for s in scenes]), np.array([s.objects[0].box for s in scenes]))
        score = (vectors @ queries[n]).reshape(len(pool), renders).mean(1)
        own = score[ids.index(truth.individual_id)]
        right.append(bool((score >= own).sum() == 1))
    return np.array(right)


def rendered_trials(world, count: int, seed: int = 0, split: str = "test", size: int = 10) -> tuple:
    """`count` questions for `nearest_individual`: images, boxes, truths, pools of `size`, settings.

    A pool holds individuals of one class, any two apart in at least two of drawing, palette, marking and warp; the
    question is a fresh rendering of one of them in a random place and medium. Classes take turns.
    """
    rng, trials = np.random.default_rng([seed, count]), []
    for n in range(count):
        name, pool = world.classes[n % len(world.classes)], []
        candidates = (world.individual(name, split, rng) for _ in range(200 * size))
        while len(pool) < size and (candidate := next(candidates, None)):
            if all(candidate.differs(other) >= 2 for other in pool):
                pool.append(candidate)
        if len(pool) < size:
            raise ValueError(f"only {len(pool)} of {size} individuals of class {name!r} in split {split!r} are apart")
        scene = world.scene(rng, individuals=[pool[0]], fillers=0)
        trials.append((scene.image, scene.objects[0].box, pool[0], pool, (scene.context, scene.medium)))
    images, boxes, truths, pools, settings = zip(*trials)
    return np.stack(images), np.array(boxes), truths, pools, settings


def _soften(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sometimes blur a little, as a VAE does, so that sharpness alone tells nothing."""
    if rng.random() < 0.5:
        return image
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    size = int(rng.integers(28, 64))
    x = F.interpolate(F.interpolate(x, (size, size), mode="area"), image.shape[:2], mode="bilinear", align_corners=False)
    return x[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
