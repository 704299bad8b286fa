"""The detection loss: Hungarian matching, focal loss on token logits, L1 and GIoU, for every decoder layer and the
encoder.

Published settings by name (FACTS 1.3, 2); transformers' built-in loss leaves the proposal head untrained, so it is
not used.
"""

from dataclasses import dataclass
from typing import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ard.detector.joint import Match

ALPHA, GAMMA = 0.25, 2.0


@dataclass(frozen=True)
class Weights:
    """Matching costs and loss weights of class, L1 and GIoU."""

    cost: tuple[float, float, float]
    loss: tuple[float, float, float]


SETTINGS = {
    "groundingdino": Weights(cost=(1.0, 5.0, 2.0), loss=(2.0, 5.0, 2.0)),
    "countgd": Weights(cost=(5.0, 1.0, 0.0), loss=(5.0, 1.0, 0.0)),
}


@dataclass(frozen=True, eq=False)
class Targets:
    """Per image, M padded: true boxes cxcywh in [0, 1], the tokens each should light (target map), which rows count."""

    boxes: Tensor  # (B, M, 4)
    tokens: Tensor  # (B, M, T) 1 on the phrase's text tokens and its exemplar token
    real: Tensor  # (B, M) bool

    def take(self, rows: Tensor) -> "Targets":
        """Chosen images of the batch."""
        return Targets(self.boxes[rows], self.tokens[rows], self.real[rows])


def make_targets(boxes: Sequence[np.ndarray | Tensor], labels: Sequence[Sequence[int]], phrase_map: Tensor) -> Targets:
    """Per image boxes (n, 4) cxcywh in [0, 1] and n phrase indices; `phrase_map` (B, P, T) from
    `prompts.phrase_map`."""
    most = max((len(b) for b in boxes), default=0)
    where = phrase_map.device
    out = Targets(
        torch.zeros(len(boxes), most, 4, device=where),
        torch.zeros(len(boxes), most, phrase_map.shape[-1], device=where),
        torch.zeros(len(boxes), most, dtype=torch.bool, device=where),
    )
    for i, (box, label) in enumerate(zip(boxes, labels)):
        if len(box) != len(label):
            raise ValueError(f"image {i}: {len(box)} boxes but {len(label)} labels")
        if len(box):
            n = len(box)
            out.boxes[i, :n] = torch.as_tensor(np.asarray(box), dtype=torch.float32)
            out.tokens[i, :n] = phrase_map[i, list(label)]
            out.real[i, :n] = True
    return out


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Element-wise sigmoid focal loss (Lin et al. 2017, eq. 5), alpha .25, gamma 2."""
    p = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_true = p * target + (1 - p) * (1 - target)
    return (ALPHA * target + (1 - ALPHA) * (1 - target)) * (1 - p_true) ** GAMMA * ce


def corners(boxes: Tensor) -> Tensor:
    """cxcywh -> xyxy in the same unit, with gradient."""
    centre, size = boxes.split(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1] of xyxy boxes of broadcastable shapes (..., 4) (Rezatofighi et al. 2019)."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inter
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return inter / union.clamp(min=1e-7) - (hull - union) / hull.clamp(min=1e-7)


@torch.no_grad()
def matching_cost(logits: Tensor, boxes: Tensor, targets: Targets, weights: Weights) -> Tensor:
    """(B, N, M) cost of giving region n to true object m; the class cost is the mean over the object's tokens."""
    positive, negative = focal_loss(logits, torch.ones_like(logits)), focal_loss(logits, torch.zeros_like(logits))
    share = targets.tokens / targets.tokens.sum(-1, keepdim=True).clamp(min=1)
    by_class = (positive - negative) @ share.transpose(1, 2)
    by_box = (boxes[:, :, None] - targets.boxes[:, None]).abs().sum(-1)
    by_giou = -giou(corners(boxes)[:, :, None], corners(targets.boxes)[:, None])
    return weights.cost[0] * by_class + weights.cost[1] * by_box + weights.cost[2] * by_giou


def hungarian(cost: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Best one-to-one assignment per image: (image, region, object) index vectors of equal length."""
    images, regions, objects = [], [], []
    for i, (table, count) in enumerate(zip(cost.cpu().numpy(), real.sum(1).tolist())):
        rows, columns = linear_sum_assignment(table[:, :count])
        images += [i] * len(rows)
        regions += rows.tolist()
        objects += columns.tolist()
    return (
        torch.tensor(images, dtype=torch.long),
        torch.tensor(regions, dtype=torch.long),
        torch.tensor(objects, dtype=torch.long),
    )


def set_loss(logits: Tensor, boxes: Tensor, targets: Targets, weights: Weights, normaliser: float) -> dict[str, Tensor]:
    """Loss of one set of regions, logits (B, N, T) and boxes (B, N, 4), summed and divided by the number of objects."""
    i, n, m = hungarian(matching_cost(logits.detach(), boxes.detach(), targets, weights), targets.real)
    wanted = torch.zeros_like(logits)
    wanted[i, n] = targets.tokens[i, m]
    found, true = boxes[i, n], targets.boxes[i, m]
    return {
        "class": focal_loss(logits, wanted).sum() / normaliser,
        "box": (found - true).abs().sum() / normaliser,
        "giou": (1 - giou(corners(found), corners(true))).sum() / normaliser,
    }


def detection_loss(
    match: Match, targets: Targets, setting: str = "groundingdino", top: int = 60
) -> tuple[Tensor, dict[str, float]]:
    """Total loss over decoder layers (auxiliary losses) and the `top` first-stage positions, and its parts for the
    log."""
    weights = SETTINGS[setting]
    objects = float(targets.real.sum().clamp(min=1))
    layers = match.layer_logits.shape[1]
    repeated = Targets(*(t.repeat_interleave(layers, 0) for t in (targets.boxes, targets.tokens, targets.real)))
    decoder = set_loss(match.layer_logits.flatten(0, 1), match.layer_boxes.flatten(0, 1), repeated, weights, objects)
    best = (
        match.encoder_logits.detach().max(-1).values.topk(min(top, match.encoder_logits.shape[1]), 1).indices[..., None]
    )
    encoder = set_loss(
        match.encoder_logits.gather(1, best.expand(-1, -1, match.encoder_logits.shape[-1])),
        match.encoder_boxes.gather(1, best.expand(-1, -1, 4)),
        targets,
        weights,
        objects,
    )
    total = sum(w * (decoder[k] + encoder[k]) for w, k in zip(weights.loss, ("class", "box", "giou")))
    log = {k: float(v.detach()) / layers for k, v in decoder.items()}
    return total, {
        "loss": float(total.detach()),
        **log,
        **{f"encoder_{k}": float(v.detach()) for k, v in encoder.items()},
    }
