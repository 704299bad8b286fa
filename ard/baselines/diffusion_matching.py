"""`DiffSim-style` and `class filter + DiffSim-style`: R_Q against regions of gallery pictures, in the self-attention of the base
generator, which sees each picture once, under a little noise and an empty prompt.

DiffSim (Song et al. 2024) compares whole pictures in Stable Diffusion; here both sides are regions and the features are those of
`pipe`. Where a gallery picture's region lies is read from the last self-attention, as in PDM (Samuel et al. 2024): its cells are
those that look at R_Q when they may look anywhere in Q. Mirrored or turned copies are not looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ard.baselines.cosine import Proposals
from ard.baselines.denoising import text_states
from ard.baselines.kit import Kit
from ard.baselines.registry import Entry
from ard.config import from_dict
from ard.customize import encode
from ard.geometry import as_boxes
from ard.records import Attribution, Box, Gallery, GalleryImage, Query


@dataclass(frozen=True)
class MatchingConfig:
    score_layer: str = "up_blocks.1.attentions.0"  # block whose self-attention compares regions; published: chosen by task
    box_layer: str = "up_blocks.1.attentions.1"  # block whose self-attention finds the region; published (PDM): the last one
    time: int = 150  # of the noise, of 1000; published 600 (DiffSim); above 450 a small generator's features say little
    batch: int = 20  # pictures of a pass; changes the last digits
    seed: int = 0  # of the noise, the same for all pictures


@dataclass(frozen=True, eq=False)
class Heads:
    """One self-attention layer's view of pictures: each (..., heads, cells, width). Cells are row by row."""

    query: Tensor
    key: Tensor
    value: Tensor

    def __getitem__(self, index) -> Heads:
        return Heads(self.query[index], self.key[index], self.value[index])

    @staticmethod
    def stack(several: Sequence[Heads]) -> Heads:
        return Heads(*(torch.stack(parts) for parts in zip(*((h.query, h.key, h.value) for h in several), strict=True)))


class DiffSim:
    """Ranks gallery pictures by R_Q's likeness to a region of theirs: the one that looks at R_Q, or, with `proposals`, the most
    alike of the class's. A picture without a proposal gets box None and score -inf."""

    def __init__(self, pipe, config: MatchingConfig, proposals: Proposals | None = None):
        self.pipe, self.config, self.proposals = pipe, config, proposals
        self._stored: dict[str, dict[str, Heads]] = {}  # by image_id, layer

    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        new = [image for image in gallery if image.image_id not in self._stored]
        found = self._features([gallery.pixels(image) for image in new])
        self._stored |= {image.image_id: one for image, one in zip(new, found, strict=True)}
        [asked] = self._features([query.image])
        height, width = query.image.shape[:2]
        region = covered(query.sample.query_box, width, height, len(asked[self.config.score_layer].key[0]))
        owners, boxes = self._regions(query, gallery, asked, region)
        answers = {image.image_id: Attribution(image.image_id, None, float("-inf")) for image in gallery}
        if owners:
            scores = self._scores(asked, region, [gallery[i] for i in owners], boxes)
            for i, box, score in zip(owners, boxes, scores.tolist(), strict=True):
                if score > answers[gallery[i].image_id].score:
                    answers[gallery[i].image_id] = Attribution(gallery[i].image_id, box, score)
        return list(answers.values())

    def _regions(self, query: Query, gallery: Gallery, asked: dict, region: Tensor) -> tuple[list[int], list[Box]]:
        """Regions to compare: the index of each one's picture in the gallery, and its box."""
        if self.proposals is not None:
            found = [as_boxes(self.proposals(image.image_id, query.sample.class_name)) for image in gallery]
            return [i for i, boxes in enumerate(found) for _ in boxes], [tuple(b) for boxes in found for b in boxes.tolist()]
        layer = self.config.box_layer
        maps = looks_at(self._stack(gallery, layer), asked[layer], region)
        boxes = [densest_box(square(m), im.width, im.height) for m, im in zip(maps.double().numpy(), gallery, strict=True)]
        return list(range(len(boxes))), boxes

    def _scores(self, asked: dict, region: Tensor, images: Sequence[GalleryImage], boxes: Sequence[Box]) -> Tensor:
        """Likeness of R_Q to each box of its picture, (n,): DiffSim's mean of both directions."""
        layer = self.config.score_layer
        mine, theirs = asked[layer], self._stack(images, layer)
        shares = torch.stack([covered(box, im.width, im.height, len(region)) for box, im in zip(boxes, images, strict=True)])
        return (aligned(mine, region, theirs) + aligned(theirs, shares, mine, region)) / 2

    def _stack(self, images: Sequence[GalleryImage], layer: str) -> Heads:
        return Heads.stack([self._stored[image.image_id][layer] for image in images])

    def _features(self, pictures: Sequence[np.ndarray]) -> list[dict[str, Heads]]:
        config, found = self.config, []
        for i in range(0, len(pictures), config.batch):
            latents = encode(self.pipe, np.stack(pictures[i : i + config.batch]))
            found += self_attention(self.pipe, latents, (config.score_layer, config.box_layer), config.time, config.seed)
        return found


@torch.no_grad()
def self_attention(pipe, latents: Tensor, layers: Sequence[str], time: int, seed: int) -> list[dict[str, Heads]]:
    """What self-attention of the blocks `layers` holds of each of `latents` (n, C, h, w) at the noise of `time`."""
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=latents.dtype).to(latents.device)
    times = torch.full((len(latents),), time, device=latents.device)
    noisy = pipe.scheduler.add_noise(latents, noise.expand_as(latents), times)
    with ExitStack() as stack:
        seen = {layer: stack.enter_context(watched(self_attention_of(pipe.unet, layer))) for layer in layers}
        pipe.unet(noisy, times, text_states(pipe, "").expand(len(latents), -1, -1))
    held = {layer: Heads(*(parts[name].float().cpu() for name in ("to_q", "to_k", "to_v"))) for layer, parts in seen.items()}
    return [{layer: heads[i] for layer, heads in held.items()} for i in range(len(latents))]


def self_attention_of(unet, layer: str):
    """The self-attention module of the last transformer of a block; ValueError names those that there are."""
    known = [name for name, module in unet.named_modules() if hasattr(module, "transformer_blocks")]
    if layer not in known:
        raise ValueError(f"layer {layer!r}: this UNet's blocks with attention are {', '.join(known)}")
    return unet.get_submodule(layer).transformer_blocks[-1].attn1


@contextmanager
def watched(attention) -> Iterator[dict[str, Tensor]]:
    """Within the block every pass leaves queries, keys and values (n, heads, cells, width) in the yielded dict."""
    seen: dict[str, Tensor] = {}

    def keeper(name):
        def keep(module, inputs, output):
            seen[name] = output.detach().unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        return keep

    handles = [getattr(attention, name).register_forward_hook(keeper(name)) for name in ("to_q", "to_k", "to_v")]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def weights(query: Tensor, key: Tensor, share: Tensor | None = None) -> Tensor:
    """Attention (..., cells, cells) of queries to keys; `share` (..., cells) is how much of each key's cell may be looked at."""
    logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (logits if share is None else logits + share.log()[..., None, None, :]).softmax(-1)


def aligned(mine: Heads, region: Tensor, theirs: Heads, other: Tensor | None = None) -> Tensor:
    """How well a region of one picture is told from another picture, in [-1, 1]: the cosine of what the region's cells take from
    the region itself and of what they take from the other picture (DiffSim's aligned score), (...).

    region, other (..., cells): shares of the cells inside; other None: the whole picture.
    """
    own = weights(mine.query, mine.key, region) @ mine.value
    taken = weights(mine.query, theirs.key, other) @ theirs.value
    inside = region.sqrt()[..., None, :, None]
    own, taken = torch.broadcast_tensors(own * inside, taken * inside)
    return cosine_similarity(own.flatten(-3), taken.flatten(-3), dim=-1)


def looks_at(theirs: Heads, mine: Heads, region: Tensor) -> Tensor:
    """Share (..., cells) of its attention to my picture that each of their cells pays to my region (cells,), mean over heads."""
    return weights(theirs.query, mine.key).mean(-3) @ region


def square(cells) -> np.ndarray:
    """(n * n,) cells as a map (n, n)."""
    side = round(len(cells) ** 0.5)
    return np.asarray(cells).reshape(side, side)


def covered(box, width: float, height: float, cells: int) -> Tensor:
    """Share of each of n * n `cells` of a `width` x `height` picture that lies in `box` (xyxy pixels), (cells,), row by row.

    ValueError: the box lies outside the picture.

    >>> covered((0, 8, 12, 16), 16, 16, 4).tolist()
    [0.0, 0.0, 1.0, 0.5]
    """
    side = round(cells**0.5)
    x0, y0, x1, y1 = as_boxes(box)[0] * side / [width, height, width, height]
    edges = np.arange(side)
    columns = np.clip(np.minimum(edges + 1, x1) - np.maximum(edges, x0), 0, 1)
    rows = np.clip(np.minimum(edges + 1, y1) - np.maximum(edges, y0), 0, 1)
    share = np.outer(rows, columns)
    if not share.any():
        raise ValueError(f"box {list(box)} lies outside its picture of {width} x {height}")
    return torch.from_numpy(share.ravel()).float()


def densest_box(cells: np.ndarray, width: float, height: float) -> Box:
    """The rectangle of cells with the largest sum above the mean of a map (h, w), in pixels of a `width` x `height` picture; the
    largest one of equals, so a flat map gives the whole picture.

    >>> densest_box(np.array([[0, 0, 0], [0, 5, 4], [0, 0, 0]]), 24, 24)
    (8.0, 8.0, 24.0, 16.0)
    """
    rows, columns = cells.shape
    above = np.zeros((rows + 1, columns + 1))
    above[1:, 1:] = (cells - cells.mean()).cumsum(0).cumsum(1)
    (y0, y1), (x0, x1) = (np.triu_indices(n + 1, 1) for n in (rows, columns))
    bands = above[y1] - above[y0]
    sums, area = bands[:, x1] - bands[:, x0], np.outer(y1 - y0, x1 - x0)
    level = np.abs(cells - cells.mean()).sum()
    i, j = np.unravel_index(np.where(sums >= sums.max() - 1e-9 * level, area, 0).argmax(), area.shape)
    return (float(x0[j] * width / columns), float(y0[i] * height / rows),
            float(x1[j] * width / columns), float(y1[i] * height / rows))


def matching(kit: Kit, classes: bool = False) -> DiffSim:
    """`classes`: compare the boxes that the open-set detector finds of the query's class, and no other regions."""
    where = "params.yaml:arena.methods.diffusion_matching"
    config = from_dict(MatchingConfig, dict(kit.settings.get("diffusion_matching", {})), where)
    return DiffSim(kit.generator, config, kit.proposals if classes else None)


SOURCE = "DiffSim (Song et al. 2024), aligned cosine of self-attention; PDM (Samuel et al. 2024), where the region is"
ENTRIES = [
    Entry("DiffSim-style", matching, ("box", "generator"), SOURCE, ("models/generator",)),
    Entry("class filter + DiffSim-style", partial(matching, classes=True), ("text", "box", "generator"), SOURCE,
          ("models/generator", "models/open_set")),
]
