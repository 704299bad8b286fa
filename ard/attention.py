"""Cross-attention maps of a diffusers UNet, kept while it runs, and the mask losses of Break-a-Scene that use them.

Serves `ard.customize` (the paper's section 4.1; Avrahami et al. 2023, equations 1 and 2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor


class AttentionMaps:
    """Filled by one UNet forward pass: for each number of positions, the maps (B, positions, tokens) of its layers."""

    def __init__(self, resolution: int = 0):
        self.resolution = resolution  # positions a side of the maps to keep; 0 keeps the largest
        self.layers: dict[int, list[Tensor]] = defaultdict(list)

    def add(self, probabilities: Tensor) -> None:
        """probabilities: (B, heads, positions, tokens)."""
        positions = probabilities.shape[2]
        if not self.resolution and self.layers and positions > max(self.layers):
            self.layers.clear()
        if not self.layers or positions in self.layers:
            self.layers[positions].append(probabilities.mean(dim=1))

    def wants(self, positions: int) -> bool:
        if self.resolution:
            return positions == self.resolution**2
        return not self.layers or positions >= max(self.layers)

    def take(self) -> Tensor:
        """Mean over heads and layers, (B, side, side, tokens); empties the store. Raises when nothing was kept."""
        if not self.layers:
            raise ValueError(f"no cross-attention layer has {self.resolution} x {self.resolution} positions")
        positions, layers = next(iter(self.layers.items()))
        side = round(positions**0.5)
        self.layers = defaultdict(list)
        return torch.stack(layers).mean(0).unflatten(1, (side, positions // side))


class StoringProcessor:
    """Attention with explicit probabilities, equal to diffusers' default processor; hands them to an `AttentionMaps`."""

    def __init__(self, maps: AttentionMaps, fallback):
        self.maps, self.fallback = maps, fallback

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs):
        if hidden_states.ndim != 3 or attention_mask is not None or not self.maps.wants(hidden_states.shape[1]):
            return self.fallback(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        probabilities = (query @ key.transpose(-1, -2) * attn.scale).float().softmax(dim=-1)
        self.maps.add(probabilities)
        out = (probabilities.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        out = attn.to_out[1](attn.to_out[0](out))
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


@contextmanager
def stored_attention(unet, resolution: int = 0) -> Iterator[AttentionMaps]:
    """Within the block every forward of `unet` fills the yielded store from its cross-attention (attn2) layers."""
    maps, before = AttentionMaps(resolution), unet.attn_processors
    cross = {k: StoringProcessor(maps, v) if ".attn2." in k else v for k, v in before.items()}
    if not any(".attn2." in k for k in before):
        raise ValueError("this UNet has no cross-attention layer (attn2), so no text can steer it")
    unet.set_attn_processor(cross)
    try:
        yield maps
    finally:
        unet.set_attn_processor(before)


@contextmanager
def plain_attention(unet) -> Iterator[None]:
    """Within the block a UNet on a CPU computes attention as plain products: fused attention is slow backwards there, a
    step of customisation takes 1.4 times as long. Elsewhere nothing changes."""
    before = unet.attn_processors
    if unet.device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        unet.set_attn_processor(before)


def resize_mask(mask: Tensor, size: tuple[int, int], how: str = "area") -> Tensor:
    """(..., H, W) in [0, 1] to (..., *size). 'nearest' is published; 'area' keeps the share covered; 'max' any."""
    flat = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    if how == "nearest":
        out = F.interpolate(flat, size, mode="nearest")
    elif how == "area":
        out = F.adaptive_avg_pool2d(flat, size)
    elif how == "max":
        out = F.adaptive_max_pool2d(flat, size)
    else:
        raise ValueError(f"mask resize {how!r}: expected 'nearest', 'area' or 'max'")
    return out.reshape(*mask.shape[:-2], *size)


def masked_loss(prediction: Tensor, target: Tensor, mask: Tensor, form: str = "area") -> Tensor:
    """Masked diffusion loss of predictions and targets (B, C, h, w) under a mask (B, h, w) in [0, 1].

    'published': both are multiplied by the mask, then MSE over *all* elements, so small things weigh little;
    'area': the same sum divided by the weight under the mask instead, one mean per image.
    """
    squared = ((prediction - target) * mask[:, None]) ** 2
    if form == "published":
        return squared.mean()
    if form == "area":
        weight = (mask**2).sum((1, 2)) * prediction.shape[1]
        return (squared.sum((1, 2, 3)) / weight.clamp(min=1e-6)).mean()
    raise ValueError(f"loss form {form!r}: expected 'published' or 'area'")


def attention_loss(maps: Tensor, positions: Tensor, masks: Tensor, present: Tensor, how: str = "area") -> Tensor:
    """MSE between each concept's mask and its token's map A / max A, summed over concepts, averaged over the batch.

    maps (B, h, w, T); positions (B, n) of the concepts' tokens in the prompt; masks (B, n, H, W); present (B, n) bool.
    """
    index = positions.clamp(min=0)[:, None, None, :].expand(-1, *maps.shape[1:3], -1)
    own = maps.gather(3, index).permute(0, 3, 1, 2)
    own = own / own.amax((2, 3), keepdim=True).clamp(min=1e-12)
    error = (own - resize_mask(masks, tuple(maps.shape[1:3]), how)) ** 2
    return (error.mean((2, 3)) * present).sum(1).mean()
