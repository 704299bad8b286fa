"""What a region's token could be made of, and the projection it is compared in: tried in closed form, without a detector.

Beside `ard.ablated`, which trains whole detectors. Both regions are given, R_Q and R_X as the dataset has them, so nothing but
the token counts; its projection is fitted on AD+ train as the likeness head's is (`ard.detector.whitening`). The test split is
never read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align
from tqdm import trange

from ard.baselines.diffusion_matching import self_attention
from ard.baselines.mappers import nt_xent
from ard.baselines.methods import pick_queries
from ard.customize import encode
from ard.detector.features import IMAGE_SIZE, REGION_MAPS, image_features, region_vectors, unpack
from ard.detector.phases import PhaseData
from ard.detector.whitening import whitener
from ard.geometry import to_xyxy
from ard.intervals import bootstrap_mean, paired_difference
from ard.records import Dataset

GREY = (124, 116, 104)  # ImageNet's mean colour, which a backbone sees as nothing
LEAST_MASK = 20  # pixels; a smaller one is no mask, and the whole box counts
LEAST_SHARE = 0.08  # of a cell that the mask must cover; other cells hold the mean of the whole mask
BATCH = 64  # pictures of a pass


@dataclass(frozen=True, eq=False)
class Regions:
    """One region in each of N pictures."""

    pictures: np.ndarray  # (N, 64, 64, 3) uint8
    boxes: Tensor  # (N, 4) xyxy pixels

    @cached_property
    def features(self) -> Tensor:
        """(N, PACKED), see `image_features`."""
        return image_features(self.pictures)


@dataclass(frozen=True, eq=False)
class Asked:
    """Queries of a split, and the exemplars that they are ranked against."""

    exemplars: Regions
    queries: Regions
    owner: np.ndarray  # (Q,) index of each query's exemplar
    names: tuple[str, ...]  # class of each exemplar


Token = Callable[[Regions], Tensor]  # (N, K, D): K vectors of a region
Projection = Callable[[Tensor], Tensor]  # (N, K, D) -> (N, K, D')


def asked_of(dataset: Dataset, split: str, per_exemplar: int = 0) -> Asked:
    """`per_exemplar` queries of each exemplar of a split (0: all). ValueError for the test split."""
    if split == "test":
        raise ValueError("tokens: the test split is for ard.evaluation only; looking at it here would choose by it")
    samples = pick_queries(dataset.samples[split], per_exemplar or None)
    first = {}
    for sample in samples:
        first.setdefault(sample.exemplar_file, sample)
    files = list(first)
    exemplars, queries = ([dataset.pixels(file) for file in files], [dataset.pixels(s.query_file) for s in samples])
    return Asked(Regions(np.stack(exemplars), torch.tensor([first[file].exemplar_box for file in files])),
                 Regions(np.stack(queries), torch.tensor([s.query_box for s in samples])),
                 np.array([files.index(s.exemplar_file) for s in samples]), tuple(s.class_name for s in first.values()))


# ---- tokens ----------------------------------------------------------------------------------------------------------
def one(regions: Regions) -> Tensor:
    """The token in use: one RoIAligned vector (N, 1, REGION) of the box."""
    return region_vectors(regions.features, regions.boxes)[:, None]


def grid(side: int) -> Token:
    """A token for each of `side` x `side` equal parts of the box, row by row."""
    return lambda regions: region_vectors(regions.features, parts(regions.boxes, side))


def parts(boxes: Tensor, side: int) -> Tensor:
    """(N, 4) xyxy -> (N, side * side, 4), row by row.

    >>> parts(torch.tensor([[0., 0., 8., 4.]]), 2)[0].tolist()
    [[0.0, 0.0, 4.0, 2.0], [4.0, 0.0, 8.0, 2.0], [0.0, 2.0, 4.0, 4.0], [4.0, 2.0, 8.0, 4.0]]
    """
    row, column = (cells.flatten().to(boxes) for cells in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    low, size = boxes[:, None, :2], (boxes[:, None, 2:] - boxes[:, None, :2]) / side
    corner = low + torch.stack([column, row], -1) * size
    return torch.cat([corner, corner + size], -1)


def masks_of(regions: Regions, segment: Callable[[np.ndarray, Sequence[float]], np.ndarray]) -> np.ndarray:
    """(N, H, W) bool: what `segment(picture, box)` finds, or the whole box where that is next to nothing."""
    found = np.stack([segment(picture, box) for picture, box in zip(regions.pictures, regions.boxes.tolist(), strict=True)])
    for mask, (x0, y0, x1, y1) in zip(found, regions.boxes.round().int().tolist(), strict=True):
        if mask.sum() < LEAST_MASK:
            mask[y0:y1, x0:x1] = True
    return found


def painted(regions: Regions, masks: np.ndarray) -> Regions:
    """The same regions with all but the masks (N, H, W) painted grey."""
    return Regions(np.where(masks[..., None], regions.pictures, np.uint8(GREY)), regions.boxes)


def pooled(regions: Regions, masks: np.ndarray) -> Tensor:
    """`one` with only what lies under the masks (N, H, W) counting: each cell's mean is weighted by how much of it they cover."""
    fine, middle, coarse = unpack(regions.features)  # maps as in `region_vectors`
    maps = (F.pixel_shuffle(fine[:, 40:], 2), fine[:, :40], middle, coarse)
    rois = torch.cat([torch.arange(len(masks))[:, None].float(), regions.boxes], 1)
    vectors = []
    for seen, (_, cells) in zip(maps, REGION_MAPS, strict=True):
        scale = seen.shape[-1] / IMAGE_SIZE
        share = F.interpolate(torch.from_numpy(masks).float()[:, None], size=seen.shape[-1], mode="area")

        def mean(side: int) -> tuple[Tensor, Tensor]:
            covered = roi_align(share, rois, side, scale, aligned=True)
            return roi_align(seen * share, rois, side, scale, aligned=True) / covered.clamp(min=1e-3), covered

        (each, covered), (whole, _) = mean(cells), mean(1)
        vectors.append(torch.where(covered > LEAST_SHARE, each, whole).flatten(1))
    return torch.cat(vectors, 1)[:, None]


def unet_token(pipe, layer: str, time: int, seed: int = 0, cells: int = 3) -> Token:
    """What self-attention of a UNet's block holds of the box (its values) under the noise of `time`, as DiffSim reads it
    (`ard.baselines.diffusion_matching`), on `cells` x `cells` places: (N, 1, D)."""
    def token(regions: Regions) -> Tensor:
        held = []
        for i in range(0, len(regions.pictures), BATCH):
            held += self_attention(pipe, encode(pipe, regions.pictures[i : i + BATCH]), (layer,), time, seed)
        values = torch.stack([picture[layer].value for picture in held])  # (N, heads, places, width)
        side = round(values.shape[2] ** 0.5)
        maps = values.permute(0, 1, 3, 2).flatten(1, 2).unflatten(-1, (side, side))
        rois = torch.cat([torch.arange(len(maps))[:, None].float(), regions.boxes], 1)
        return roi_align(maps, rois, cells, side / regions.pictures.shape[1], aligned=True).flatten(1)[:, None]
    return token


def beside(mine: Tensor, other: Tensor) -> Tensor:
    """Two tokens (N, K, D) and (N, K, E) of the same regions as one (N, K, D + E)."""
    return torch.cat([mine, other], -1)


# ---- projections -----------------------------------------------------------------------------------------------------
def standardised(exemplars: Tensor) -> Projection:
    """Each number by its mean and deviation over exemplar tokens (E, K, D)."""
    known = exemplars.flatten(0, 1)
    mean, deviation = known.mean(0), known.std(0).clamp(min=1e-3)
    return lambda tokens: (tokens - mean) / deviation


def whitened(exemplars: Tensor, queries: Tensor, owner: np.ndarray, shrinkage: float) -> Projection:
    """Standardised, then whitened within individuals (`whitener`), each of the K tokens by itself.

    exemplars (E, K, D), queries (Q, K, D) of individuals `owner` (Q,), an index of exemplars.
    """
    plain = standardised(exemplars)
    both, whose = plain(torch.cat([exemplars, queries])), np.concatenate([np.arange(len(exemplars)), owner])
    matrices = torch.stack([whitener(both[:, k], whose, shrinkage) for k in range(both.shape[1])])
    return lambda tokens: torch.einsum("nkd,kde->nke", plain(tokens), matrices)


def contrastive(exemplars: Tensor, queries: Tensor, owner: np.ndarray, steps: int, learning_rate: float = 1e-3, batch: int = 256,
                temperature: float = 0.07, seed: int = 0) -> Projection:
    """Standardised, then a linear map that tells individuals apart, trained from the identity by NT-Xent on pairs of one
    exemplar (E, 1, D) and one of its queries (Q, 1, D); each individual stands in a batch once."""
    plain, rng = standardised(exemplars), np.random.default_rng(seed)
    sources, others = plain(exemplars)[:, 0], plain(queries)[:, 0]
    of = [np.flatnonzero(owner == i) for i in range(len(exemplars))]
    weight = torch.eye(sources.shape[1]).requires_grad_()
    optimizer = torch.optim.AdamW([weight], lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in trange(steps, desc="contrastive", mininterval=5):
        chosen = rng.permutation(len(exemplars))[:batch]
        queried = [rng.choice(of[i]) for i in chosen]
        loss = nt_xent(sources[chosen] @ weight, others[queried] @ weight, temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    learned = weight.detach()
    return lambda tokens: plain(tokens) @ learned


def rendered_tokens(data: PhaseData) -> tuple[Tensor, Tensor, np.ndarray]:
    """Exemplars (E, 1, D), queries (Q, 1, D) and their owners (Q,) of rendered pairs, as they stand (not mirrored)."""
    individuals, first = np.unique(data.source, return_index=True)
    if not np.array_equal(individuals, np.arange(data.gallery.shape[1])):
        raise ValueError("tokens: every rendered individual must have a picture of its own and a query")
    boxes = torch.from_numpy(to_xyxy(data.boxes[0][first], IMAGE_SIZE, IMAGE_SIZE)).float()
    found = [region_vectors(*part) for part in zip(data.gallery[0].split(BATCH), boxes.split(BATCH))]
    return torch.cat(found)[:, None], data.queries[0].float()[:, None], np.asarray(data.source)


# ---- what they are worth ---------------------------------------------------------------------------------------------
def likeness(queries: Tensor, exemplars: Tensor) -> Tensor:
    """Cosine (Q, E) of queries (Q, K, D) and exemplars (E, K, D); of several tokens each takes its best match on the other
    side, and both sides' means count alike."""
    near = torch.einsum("qkd,eld->qekl", F.normalize(queries, dim=-1), F.normalize(exemplars, dim=-1))
    return (near.amax(3).mean(2) + near.amax(2).mean(2)) / 2


def firsts(scores: Tensor, asked: Asked) -> dict[str, np.ndarray]:
    """1 where a query's own exemplar stands alone at the top of `scores` (Q, E), among all and among its class; (Q,) each."""
    own = scores[torch.arange(len(scores)), torch.from_numpy(asked.owner)]
    names = np.array(asked.names)
    same = torch.from_numpy(names[None] == names[asked.owner][:, None])
    above = scores >= own[:, None]
    return {"recall_1": (above.sum(1) == 1).double().numpy(), "same_class_recall_1": ((above & same).sum(1) == 1).double().numpy()}


def table(found: Mapping[str, Mapping[str, np.ndarray]], owner: np.ndarray) -> list[dict]:
    """A row for each name: shares, the interval of Recall@1, and its paired difference to the first; exemplars are resampled."""
    rows, first = [], next(iter(found.values()))
    for name, mine in found.items():
        mean, gap = bootstrap_mean(mine["recall_1"], owner), paired_difference(mine["recall_1"], first["recall_1"], owner)
        rows.append({"token": name, "recall_1": mean.mean, "ci_low": mean.low, "ci_high": mean.high, "difference": gap.mean,
                     "difference_low": gap.low, "difference_high": gap.high,
                     "same_class_recall_1": float(mine["same_class_recall_1"].mean()),
                     "n_queries": len(owner), "n_exemplars": len(set(owner.tolist()))})
    return rows
