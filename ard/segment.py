"""Masks from boxes: a small SAM built from `segment_anything`'s own modules, its training loop and its predictor.

Stands between the detected box R_X and customisation: the mask M_i of the paper's section 4.1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from tqdm import tqdm

from ard.checkpoints import Checkpoint, warm_cosine
from ard.files import atomic_write_bytes, atomic_write_text

Scenes = Callable[[np.random.Generator], Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class SamConfig:
    """Sizes of the small SAM; masks come out at 4 * image_size / patch pixels a side, before enlargement."""

    image_size: int = 128  # px; world images of 64 px are enlarged twice, so a patch covers 4 world pixels
    patch: int = 8
    width: int = 96
    depth: int = 6
    heads: int = 4
    prompt_width: int = 96
    mlp_width: int = 192


@dataclass(frozen=True)
class SamTraining:
    """How the small SAM is trained; losses and box noise follow the SAM paper, appendix A."""

    steps: int = 3000
    batch: int = 32  # masks per step, at least; a step ends its batch with a whole scene
    lr: float = 8e-4
    warmup: int = 200
    weight_decay: float = 0.05
    jitter: float = 0.1  # standard deviation of the box noise, as a share of the box side
    max_jitter: float = 8.0  # px of the image
    checkpoint_every: int = 200
    bf16: bool = False


def build_sam(config: SamConfig) -> Sam:
    """Return a randomly initialised `segment_anything` Sam of the given sizes (about 1.1 M parameters by default)."""
    if config.image_size % config.patch:
        raise ValueError(f"SAM image_size {config.image_size} is not a multiple of its patch {config.patch}")
    grid = config.image_size // config.patch
    sam = Sam(
        ImageEncoderViT(
            img_size=config.image_size, patch_size=config.patch, embed_dim=config.width, depth=config.depth,
            num_heads=config.heads, out_chans=config.prompt_width, use_rel_pos=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), window_size=0,
        ),
        PromptEncoder(config.prompt_width, (grid, grid), (config.image_size, config.image_size), mask_in_chans=16),
        MaskDecoder(
            transformer_dim=config.prompt_width, num_multimask_outputs=3, iou_head_hidden_dim=config.prompt_width,
            transformer=TwoWayTransformer(2, config.prompt_width, num_heads=4, mlp_dim=config.mlp_width),
        ),
        pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375],
    )
    return sam


def save_sam(sam: Sam, config: SamConfig, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors` (fp16) into `folder`, each atomically."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().half().contiguous() for k, v in sam.state_dict().items()}
    atomic_write_bytes(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
    atomic_write_text(folder / "config.json", json.dumps(asdict(config), indent=2, sort_keys=True) + "\n")


def load_sam(path: str | Path) -> Sam:
    """Load a small SAM from its folder, or an official checkpoint file named like `sam_vit_h_4b8939.pth`.

    Raises FileNotFoundError or ValueError that names the file and what is wrong with it.
    """
    path = Path(path)
    if path.is_file():
        kinds = [k for k in ("vit_h", "vit_l", "vit_b") if k in path.name]
        if not kinds:
            raise ValueError(f"{path}: cannot tell the SAM size; the file name must contain vit_h, vit_l or vit_b")
        return sam_model_registry[kinds[0]](checkpoint=str(path)).eval()
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise FileNotFoundError(f"SAM file missing: {path / name}; train it with its pretrain notebook")
    try:
        values = json.loads((path / "config.json").read_text())
        if set(values) != {f.name for f in fields(SamConfig)}:
            raise ValueError(f"keys {sorted(values)}, expected {sorted(f.name for f in fields(SamConfig))}")
        sam = build_sam(SamConfig(**values))
        sam.load_state_dict({k: v.float() for k, v in load_file(path / "model.safetensors").items()})
    except Exception as error:
        raise ValueError(f"{path}: not a small SAM of this project: {error}") from error
    return sam.eval()


class Segmenter:
    """`set_image` once, `predict` many boxes; or `segment(image, box)` in one call (the encoder runs once an image)."""

    def __init__(self, sam: Sam):
        self.predictor = SamPredictor(sam)
        self.score = 0.0  # the model's own IoU estimate of the last mask

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Segmenter:
        return cls(load_sam(path).to(device))

    def set_image(self, image: np.ndarray) -> None:
        """image: (H, W, 3) uint8 RGB."""
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
            raise ValueError(f"SAM expects an (H, W, 3) uint8 image, got {_describe(image)}")
        self.predictor.set_image(image)

    def predict(self, box: Sequence[float]) -> np.ndarray:
        """box: xyxy pixels of the image; returns its mask, (H, W) bool (it may be empty)."""
        height, width = self.predictor.original_size
        box = np.asarray(box, dtype=np.float64)
        if box.shape != (4,) or not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]:
            raise ValueError(f"SAM expects a box (x1, y1, x2, y2) with x1 < x2 and y1 < y2, got {box.tolist()}")
        if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
            raise ValueError(f"box {box.tolist()} lies outside the {width} x {height} image")
        masks, scores, _ = self.predictor.predict(box=box, multimask_output=False)
        self.score = float(scores[0])
        return masks[0].astype(bool)

    def segment(self, image: np.ndarray, box: Sequence[float]) -> np.ndarray:
        """Mask (H, W) bool of the thing in `box` (xyxy pixels) of `image` ((H, W, 3) uint8)."""
        self.set_image(image)
        return self.predict(box)

    __call__ = segment


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two (H, W) bool masks; 1 when both are empty."""
    if a.shape != b.shape:
        raise ValueError(f"masks of different shapes: {a.shape} and {b.shape}")
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def predict_masks(sam: Sam, images: Tensor, boxes: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiable batch: images (n, 3, H, W) in 0..255, boxes (m, 4) xyxy px of them, owner (m,) image of each box.

    Returns logits (m, H, W) and the predicted IoU (m,). The mask decoder wants one image with many prompts; adding the
    images' embeddings to the dense prompt, which it sums with the image anyway, makes it take many images at once.
    """
    size = sam.image_encoder.img_size
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    new = (round(height * scale), round(width * scale))
    enlarged = F.interpolate(images, new, mode="bilinear", antialias=True, align_corners=False)
    embedding = sam.image_encoder(sam.preprocess(enlarged))
    sparse, dense = sam.prompt_encoder(points=None, boxes=(boxes * scale)[:, None], masks=None)
    low, iou = sam.mask_decoder(
        image_embeddings=torch.zeros_like(embedding[:1]), image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense + embedding[owner], multimask_output=False,
    )
    return sam.postprocess_masks(low.float(), new, (height, width))[:, 0], iou[:, 0].float()


def sam_loss(logits: Tensor, iou: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy + dice + MSE of the IoU head; logits and target (m, H, W), iou (m,).

    SAM's appendix A has focal loss first; its small weight on positives held a small model at empty masks for long.
    """
    target = target.float()
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((1, 2)) + 1) / (p.sum((1, 2)) + target.sum((1, 2)) + 1)
    hard = logits > 0
    both, either = (hard & (target > 0)).sum((1, 2)), (hard | (target > 0)).sum((1, 2))
    entropy = F.binary_cross_entropy_with_logits(logits, target)
    return entropy + dice.mean() + F.mse_loss(iou, both / either.clamp(min=1))


def jitter_boxes(boxes: np.ndarray, rng: np.random.Generator, share: float, limit: float, size: tuple) -> np.ndarray:
    """Add Gaussian noise of `share` of each side (at most `limit` px) to boxes (n, 4), clipped to size (H, W)."""
    side = np.concatenate([boxes[:, 2:] - boxes[:, :2]] * 2, axis=1)
    moved = boxes + np.clip(rng.normal(size=boxes.shape) * side * share, -limit, limit)
    moved = np.clip(moved, 0, [size[1], size[0]] * 2)
    good = (moved[:, 2:] - moved[:, :2] >= 2).all(axis=1, keepdims=True)
    return np.where(good, moved, boxes)


def world_scenes(world, split: str = "base", count: int = 16) -> Scenes:
    """Scenes of the mini world for `train_sam`: every object and filler of `count` scenes with its mask and box."""

    def draw(rng: np.random.Generator) -> list:
        scenes = (world.scene(rng, split=split) for _ in range(count))
        placed = [(s.image, [p for p in (*s.objects, *s.fillers) if p.mask.sum() >= 16]) for s in scenes]
        return [(im, np.stack([p.mask for p in ps]), np.array([p.box for p in ps])) for im, ps in placed if ps]

    return draw


def train_sam(folder: str | Path, scenes: Scenes, config: SamConfig, training: SamTraining, seed: int = 0,
              device: str = "cpu") -> Sam:
    """Train a small SAM, checkpointing into `folder`; a second call goes on and ends in the same bytes.

    scenes: rng -> [(image (H, W, 3) uint8, masks (n, H, W) bool, boxes (n, 4) xyxy px)]; all images of one size.
    Step i draws from its own generator (seed, i), so nothing but weights and optimiser has to be stored.
    """
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = build_sam(config).to(device).train()
    optimizer = torch.optim.AdamW(sam.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    checkpoint = Checkpoint(folder / "checkpoint.pt", [asdict(config), asdict(training), seed])
    start = checkpoint.resume(sam, optimizer, device)
    bar = tqdm(range(start, training.steps), initial=start, total=training.steps, desc="sam", mininterval=5)
    for step in bar:
        loss = _step(sam, optimizer, scenes, training, np.random.default_rng([seed, step]), step, device)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")
        if (step + 1) % training.checkpoint_every == 0 or step + 1 == training.steps:
            checkpoint.save(sam, optimizer, step + 1)
    save_sam(sam, config, folder)
    return sam.eval()


def _step(sam, optimizer, scenes, training: SamTraining, rng, step: int, device: str) -> float:
    """One optimiser step on at least `training.batch` masks; returns the loss."""
    images, masks, boxes, owner, count = [], [], [], [], 0
    while count < training.batch:
        for image, these, where in scenes(rng):
            if count >= training.batch:
                break
            boxes.append(jitter_boxes(where, rng, training.jitter, training.max_jitter, image.shape[:2]))
            owner += [len(images)] * len(these)
            images.append(image)
            masks.append(these)
            count += len(these)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().to(device)
    target = torch.from_numpy(np.concatenate(masks)).to(device)
    where = torch.from_numpy(np.concatenate(boxes)).float().to(device)
    optimizer.param_groups[0]["lr"] = training.lr * warm_cosine(step, training.steps, training.warmup)
    with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=training.bf16):
        logits, iou = predict_masks(sam, pixels, where, torch.tensor(owner, device=device))
    loss = sam_loss(logits, iou, target)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _describe(value) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
