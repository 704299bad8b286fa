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
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn
from tqdm import tqdm

from ard.checkpoints import Checkpoint, warm_cosine
from ard.files import atomic_write_bytes, atomic_write_text
from ard.precision import bfloat16

Scenes = Callable[[np.random.Generator], Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class SamConfig:
    """Sizes of the small SAM; masks come out at 4 * image_size / patch pixels a side, before enlargement."""

    image_size: int = 96  # px that a window is enlarged to
    patch: int = 8
    width: int = 96
    depth: int = 6
    heads: int = 4
    prompt_width: int = 96
    mlp_width: int = 192
    context: float = 1.5  # side of the square that is looked at, in longer sides of the box; 0: the whole image, as published


@dataclass(frozen=True)
class SamTraining:
    """How the small SAM is trained; losses and box noise follow the SAM paper, appendix A."""

    steps: int = 3000
    batch: int = 32  # masks per step
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
    """`segment(image, box)`: the mask of the thing in a box. A small object is looked at enlarged, see `window`."""

    def __init__(self, sam: Sam, context: float = 0.0):
        self.predictor, self.context = SamPredictor(sam), context
        self.score = 0.0  # the model's own IoU estimate of the last mask

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Segmenter:
        sam = load_sam(path).to(device)
        settings = Path(path) / "config.json"
        return cls(sam, json.loads(settings.read_text())["context"] if settings.is_file() else 0.0)

    def segment(self, image: np.ndarray, box: Sequence[float]) -> np.ndarray:
        """Mask (H, W) bool of the thing in `box` (xyxy pixels) of `image` ((H, W, 3) uint8); it may be empty."""
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
            raise ValueError(f"SAM expects an (H, W, 3) uint8 image, got {_describe(image)}")
        height, width = image.shape[:2]
        box = np.asarray(box, dtype=np.float64)
        if box.shape != (4,) or not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]:
            raise ValueError(f"SAM expects a box (x1, y1, x2, y2) with x1 < x2 and y1 < y2, got {box.tolist()}")
        if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
            raise ValueError(f"box {box.tolist()} lies outside the {width} x {height} image")
        x0, y0, x1, y1 = window(box, (height, width), self.context)
        self.predictor.set_image(image[y0:y1, x0:x1])
        masks, scores, _ = self.predictor.predict(box=box - [x0, y0, x0, y0], multimask_output=False)
        self.score = float(scores[0])
        whole = np.zeros((height, width), bool)
        whole[y0:y1, x0:x1] = masks[0]
        return whole

    __call__ = segment


def window(box: Sequence[float], size: tuple[int, int], context: float) -> tuple[int, int, int, int]:
    """Whole-pixel xyxy window of an image of `size` (H, W) in which SAM looks for the thing in `box`.

    A square of `context` times the box's longer side around its middle, moved into the image and never larger than it;
    the whole image where context is 0. SAM's grid is coarse for an object that fills a quarter of the picture.

    >>> window((10, 10, 30, 20), (64, 64), 1.5), window((0, 0, 60, 60), (64, 64), 1.5), window((0, 0, 4, 4), (64, 64), 0)
    ((5, 0, 35, 30), (0, 0, 64, 64), (0, 0, 64, 64))
    """
    height, width = size
    if not context:
        return 0, 0, width, height
    longer = max(box[2] - box[0], box[3] - box[1])
    side = int(np.ceil(max(context * longer, longer + 2)))
    x0, y0 = (int(np.clip(np.floor((low + high - side) / 2), 0, max(full - side, 0)))
              for low, high, full in ((box[0], box[2], width), (box[1], box[3], height)))
    return x0, y0, min(x0 + side, width), min(y0 + side, height)


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two (H, W) bool masks; 1 when both are empty."""
    if a.shape != b.shape:
        raise ValueError(f"masks of different shapes: {a.shape} and {b.shape}")
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


def predict_masks(sam: Sam, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiable batch: images (n, 3, S, S) in 0..255 of the model's size S, boxes (n, 4) xyxy px, one an image.

    Returns logits (n, S, S) and the predicted IoU (n,). The mask decoder wants one image with many prompts; adding the
    images' embeddings to the dense prompt, which it sums with the image anyway, makes it take many images at once.
    """
    size = sam.image_encoder.img_size
    embedding = sam.image_encoder(sam.preprocess(images))
    sparse, dense = sam.prompt_encoder(points=None, boxes=boxes[:, None], masks=None)
    low, iou = sam.mask_decoder(
        image_embeddings=torch.zeros_like(embedding[:1]), image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense + embedding, multimask_output=False,
    )
    return sam.postprocess_masks(low.float(), (size, size), (size, size))[:, 0], iou[:, 0].float()


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


def world_scenes(world, split: str = "base", count: int = 9) -> Scenes:
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
        rng = np.random.default_rng([seed, step])
        loss = _step(sam, optimizer, scenes, training, config.context, rng, step, device)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")
        if (step + 1) % training.checkpoint_every == 0 or step + 1 == training.steps:
            checkpoint.save(sam, optimizer, step + 1)
    save_sam(sam, config, folder)
    return sam.eval()


def _step(sam, optimizer, scenes, training: SamTraining, context: float, rng, step: int, device: str) -> float:
    """One optimiser step on `training.batch` masks; returns the loss."""
    seen = []
    while len(seen) < training.batch:
        for image, masks, boxes in scenes(rng):
            shaken = jitter_boxes(boxes, rng, training.jitter, training.max_jitter, image.shape[:2])
            seen += [close_up(image, mask, box, context, sam.image_encoder.img_size)
                     for mask, box in zip(masks, shaken, strict=True)]
    pixels, target, where = (torch.from_numpy(np.stack(parts)).to(device) for parts in zip(*seen[:training.batch]))
    optimizer.param_groups[0]["lr"] = training.lr * warm_cosine(step, training.steps, training.warmup)
    with bfloat16(device, training.bf16):
        logits, iou = predict_masks(sam, pixels.permute(0, 3, 1, 2).float(), where.float())
    loss = sam_loss(logits, iou, target)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def close_up(image: np.ndarray, mask: np.ndarray, box: Sequence[float], context: float, size: int):
    """What SAM is shown of one thing: pixels (size, size, 3) uint8, its mask (size, size) bool and its box in them.

    image (H, W, 3) uint8, mask (H, W) bool, box xyxy px. The window must be square, as it is in a square image.
    """
    x0, y0, x1, y1 = window(box, mask.shape, context)
    if x1 - x0 != y1 - y0:
        raise ValueError(f"SAM is trained on square windows; {mask.shape[1]} x {mask.shape[0]} px gave {(x0, y0, x1, y1)}")
    pixels = ResizeLongestSide(size).apply_image(image[y0:y1, x0:x1])
    near = torch.from_numpy(mask[y0:y1, x0:x1])[None, None].float()
    smooth = F.interpolate(near, (size, size), mode="bilinear", align_corners=False)[0, 0].numpy() > 0.5
    return pixels, smooth, (np.asarray(box) - [x0, y0, x0, y0]) * size / (x1 - x0)


def _describe(value) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
