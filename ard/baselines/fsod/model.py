"""A Meta R-CNN on frozen EfficientNet maps: proposals, RoI vectors, and supports with a mask channel that gate them.

Parts are torchvision's; what VFA and ICPE differ in is `ard.baselines.fsod.aggregation`. Boxes are xyxy pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import clip_boxes_to_image, roi_align

from ard.baselines.fsod.aggregation import AGGREGATIONS, Gates
from ard.baselines.fsod.settings import FewShotSettings
from ard.detector.features import IMAGE_SIZE, LEVELS, unpack

SIDE = LEVELS[0][1]  # cells a side of the one map: stride 4, as C4's 16 is to a picture of 256
ANCHOR_SIDES, ANCHOR_RATIOS = (12, 22, 36, 54), (0.6, 1.0, 1.6)  # px; objects of base scenes are 10 to 60 px wide
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of box deltas; as published (standard deviations .1 .1 .2 .2)
CHUNK = 32  # pictures that go through the network at once


class Regions(NamedTuple):
    """RoIs of P pictures, N in all."""

    maps: Tensor  # (P, W, SIDE, SIDE)
    boxes: Tensor  # (N, 4)
    owner: Tensor  # (N,) index of each RoI's picture
    vectors: Tensor  # (N, D)


class Neck(nn.Module):
    """The frozen levels as one map of stride 4, linearly. For a support its box is one more channel of the input (published:
    the fourth of a first convolution of its own), so what it adds is added to the same sum."""

    def __init__(self, width: int):
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels, _ in LEVELS)
        self.mask = nn.Conv2d(1, width, 3, padding=1, bias=False)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Packed features (B, PACKED) and, for supports, masks (B, 1, SIDE, SIDE) -> (B, W, SIDE, SIDE)."""
        maps = [F.interpolate(conv(m), size=SIDE, mode="bilinear") for conv, m in zip(self.levels, unpack(features))]
        return sum(maps) if mask is None else sum(maps) + self.mask(mask)


def box_mask(boxes: Tensor, side: int = SIDE) -> Tensor:
    """(n, 4) -> (n, 1, side, side): the share of each cell that the box covers.

    >>> box_mask(torch.tensor([[0.0, 0.0, 48.0, 64.0]]), 2).tolist()
    [[[[1.0, 0.5], [1.0, 0.5]]]]
    """
    cell = IMAGE_SIZE / side
    left = torch.arange(side) * cell
    inside = (torch.minimum(boxes[:, None, 2:], (left + cell)[:, None]) - torch.maximum(boxes[:, None, :2], left[:, None]))
    x, y = (inside.clamp(min=0) / cell).unbind(-1)
    return (y[:, :, None] * x[:, None, :])[:, None]


def shared_head(width: int, vector: int) -> nn.Sequential:
    """What RoIs and supports share; published the last stage of ResNet-101.

    With a linear neck, one layer here learns faster from few scenes than two normalised ones after a normalised neck: the
    class of .55 against .44 of unseen scenes' objects is right after 150 steps on 1,000 scenes.
    """
    return nn.Sequential(nn.Conv2d(width, vector, 3), nn.ReLU())


class FewShotDetector(nn.Module):
    """`name` is a key of AGGREGATIONS; classes are 1 .. `classes`, 0 is the background."""

    def __init__(self, name: str, settings: FewShotSettings, classes: int):
        super().__init__()
        s, self.classes, self.settings = settings, classes, settings
        self.neck, self.head = Neck(s.width), shared_head(s.width, s.vector)
        anchors = AnchorGenerator((ANCHOR_SIDES,), (ANCHOR_RATIOS,))
        self.rpn = RegionProposalNetwork(
            anchors, RPNHead(s.width, anchors.num_anchors_per_location()[0]), 0.7, 0.3, 64, 0.5,
            {"training": 400, "testing": 400}, {"training": 2 * s.proposals, "testing": s.proposals}, 0.7)
        self.sampler = RoIHeads(None, None, None, 0.5, 0.5, s.rois, s.positive_share, BOX_WEIGHTS, 0.0, 0.5, 100)
        self.aggregation = AGGREGATIONS[name](s.width, s.vector, s.kl_weight)
        self.cls, self.box = nn.Linear(s.vector, classes + 1), nn.Linear(s.vector, 4)
        self.meta = nn.Linear(s.vector, classes)

    def support_maps(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Packed features (n, PACKED) and the box (n, 4) of the object in each -> (n, W, SIDE / 2, SIDE / 2)."""
        return F.max_pool2d(self.neck(features, box_mask(boxes)), 2)

    def propose(self, maps: Tensor, targets: list[dict[str, Tensor]] | None = None):
        """Proposals, a list of (n, 4), and the losses of the proposal network (empty in evaluation mode)."""
        images = ImageList(maps.new_empty(len(maps), 1, IMAGE_SIZE, IMAGE_SIZE), [(IMAGE_SIZE, IMAGE_SIZE)] * len(maps))
        return self.rpn(images, {"0": maps}, targets)

    def vectors(self, maps: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """RoI vectors (N, D) of the boxes of each map."""
        cut = roi_align(maps, list(boxes), self.settings.roi_side, SIDE / IMAGE_SIZE, 2, aligned=True)
        return self.head(cut).mean((2, 3))

    def gates(self, supports: Tensor, maps: Tensor) -> Gates:
        """Support maps (C, k, W, h, w) of k shots of C classes, query maps (B, W, SIDE, SIDE)."""
        return self.aggregation(lambda m: self.head(m).sigmoid().flatten(2), supports, maps)

    @torch.no_grad()
    def fixed_gates(self, supports: Tensor, maps: Tensor) -> Tensor:
        """(B, C, D) without gradients, a chunk of pictures at a time."""
        return torch.cat([self.gates(supports, part).gates for part in maps.split(CHUNK)])

    @torch.no_grad()
    def regions(self, features: Tensor) -> Regions:
        """Proposals and their vectors for pictures (P, PACKED), nothing else asked."""
        maps = torch.cat([self.neck(part) for part in features.split(CHUNK)])
        boxes = [box for part in maps.split(CHUNK) for box in self.propose(part)[0]]
        return self.regions_of(maps, boxes)

    @torch.no_grad()
    def regions_of(self, maps: Tensor, boxes: Sequence[Tensor]) -> Regions:
        """The same for given boxes, a list of (n, 4) for each of P maps."""
        parts = [self.vectors(maps[i:i + CHUNK], boxes[i:i + CHUNK]) for i in range(0, len(maps), CHUNK)]
        owner = torch.arange(len(maps)).repeat_interleave(torch.tensor([len(b) for b in boxes]))
        return Regions(maps, torch.cat(list(boxes)), owner, torch.cat(parts))

    def refine(self, box: nn.Linear, inputs: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) moved by what `box` says of inputs (N, D), and cut at the picture's edge."""
        moved = self.sampler.box_coder.decode(box(inputs), [boxes]).reshape(-1, 4)
        return clip_boxes_to_image(moved, (IMAGE_SIZE, IMAGE_SIZE))


def class_logits(cls: nn.Linear, vectors: Tensor, gates: Tensor) -> Tensor:
    """RoI vectors (N, D) under gates (N, C, D) -> logits (N, C + 1), background first.

    A class is read from the vector under its own gate; the background is the mean over all gates, as published.
    """
    own = torch.einsum("nd,ncd,cd->nc", vectors, gates, cls.weight[1:]) + cls.bias[1:]
    background = (vectors * gates.mean(1)) @ cls.weight[0] + cls.bias[0]
    return torch.cat([background[:, None], own], 1)
