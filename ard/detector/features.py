"""Frozen vision features: an image once through EfficientNet-lite0, packed into one cacheable vector, and region
vectors.

The only place where pixels enter the detector (DESIGN 7, the part of `encode_image` and `encode_query` worth storing).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from ard.backbones import EFFICIENTNET, efficientnet_lite0
from ard.files import atomic_write_bytes, sha256_bytes

IMAGE_SIZE = 64  # pixels of the mini world's pictures: the unit of every box at the detector's edge
# the backbone sees the picture bilinearly enlarged to this side: by a linear probe of region vectors, classes of unseen
# drawings are right in .52 at 128, .57 at 192. The maps are then averaged to the sides of 128, so no later step costs more
ENLARGED = 192
# (channels, side) of the packed maps: stride 8 beside stride 4 folded 2x2 into channels, stride 16, stride 32.
# Folding keeps the fine map (markings, colour edges) without its 1,024 extra tokens.
LEVELS = ((40 + 4 * 24, 16), (112, 8), (320, 4))
PACKED = sum(channels * side * side for channels, side in LEVELS)
# region vectors are RoIAligned from these maps (channels, grid): markings and shape need the grid, class does not
REGION_MAPS = ((24, 3), (40, 3), (112, 1), (320, 1))
REGION = sum(channels * grid * grid for channels, grid in REGION_MAPS)
VERSION = f"{EFFICIENTNET[3][:12]}-{ENLARGED}-2"


@torch.no_grad()
def image_features(images: np.ndarray, batch: int = 8) -> Tensor:
    """Packed frozen features (B, PACKED) float16 of pictures uint8 (B, 64, 64, 3); larger batches leave the processor's caches, and
    take two to three times as long."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3) or images.dtype != np.uint8:
        raise ValueError(f"expected uint8 images (B, {IMAGE_SIZE}, {IMAGE_SIZE}, 3), found {images.dtype} {images.shape}")
    backbone = efficientnet_lite0()
    out = torch.empty(len(images), PACKED, dtype=torch.float16)
    for start in range(0, len(images), batch):
        pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).permute(0, 3, 1, 2).float() / 127.5 - 1
        pixels = F.interpolate(pixels, size=ENLARGED, mode="bilinear", align_corners=False)
        _, *maps = backbone.forward_intermediates(pixels.contiguous(memory_format=torch.channels_last), intermediates_only=True)
        sides = (2 * LEVELS[0][1], *(side for _, side in LEVELS))
        finest, fine, middle, coarse = (F.interpolate(m, size=side, mode="bilinear", antialias=True) for m, side in zip(maps, sides))
        packed = (torch.cat([fine, F.pixel_unshuffle(finest, 2)], 1), middle, coarse)
        out[start : start + batch] = torch.cat([m.flatten(1) for m in packed], 1).half()
    return out


def unpack(features: Tensor) -> list[Tensor]:
    """(B, PACKED) -> one float32 map (B, channels, side, side) per level."""
    sizes = [channels * side * side for channels, side in LEVELS]
    return [part.float().unflatten(1, (channels, side, side)) for part, (channels, side) in zip(features.split(sizes, 1), LEVELS)]


def region_vectors(features: Tensor, boxes: Tensor) -> Tensor:
    """Frozen part of the exemplar token: RoIAligned features (B, REGION) of one box (B, 4) xyxy pixels per image, or
    (B, N, REGION) of N boxes (B, N, 4).

    The paper concatenates upsampled maps, projects them with a 1x1 convolution and RoIAligns to 1x1 (FACTS 1.2). Both
    steps are linear, so the projection can come after RoIAlign, and what comes before it is cached.
    """
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    if boxes.shape[0] != len(features) or boxes.shape[-1] != 4 or boxes.dim() not in (2, 3):
        raise ValueError(f"expected xyxy boxes ({len(features)}, 4) or ({len(features)}, N, 4), found {tuple(boxes.shape)}")
    fine, middle, coarse = unpack(features)
    maps = (F.pixel_shuffle(fine[:, 40:], 2), fine[:, :40], middle, coarse)
    owner = torch.arange(len(boxes)).repeat_interleave(boxes[0].numel() // 4 if len(boxes) else 1)
    rois = torch.cat([owner[:, None].float(), boxes.reshape(-1, 4)], 1)
    parts = [roi_align(m, rois, grid, m.shape[-1] / IMAGE_SIZE, aligned=True).flatten(1) for m, (_, grid) in zip(maps, REGION_MAPS)]
    return torch.cat(parts, 1).reshape(*boxes.shape[:-1], REGION)


class FeatureCache:
    """Packed features by the content of the picture, in memory and, when a folder is given, on disk."""

    def __init__(self, folder: str | Path | None = None):
        self.folder = Path(folder) if folder else None
        self._memory: dict[str, Tensor] = {}

    def __call__(self, images: np.ndarray) -> Tensor:
        """(B, 64, 64, 3) uint8 -> (B, PACKED) float16; every distinct picture runs through the backbone once."""
        keys = [sha256_bytes(VERSION.encode() + np.ascontiguousarray(image).tobytes()) for image in images]
        missing = {key: i for i, key in enumerate(keys) if not self._find(key)}
        if missing:
            found = image_features(np.stack([images[i] for i in missing.values()]))
            for key, row in zip(missing, found):
                self._memory[key] = row
                if self.folder:
                    atomic_write_bytes(self.folder / f"{key}.f16", row.numpy().tobytes())
        return torch.stack([self._memory[key] for key in keys]) if keys else torch.empty(0, PACKED, dtype=torch.float16)

    def _find(self, key: str) -> bool:
        if key not in self._memory and self.folder and (self.folder / f"{key}.f16").is_file():
            row = np.fromfile(self.folder / f"{key}.f16", dtype=np.float16)
            if len(row) == PACKED:
                self._memory[key] = torch.from_numpy(row)
        return key in self._memory
