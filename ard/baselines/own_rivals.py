"""Rivals for a generator and pictures of one's own: crops that a class filter proposes, through whatever encoder there is.

What `whitened` and `abc_rows` are for the mini world, without its rendered pairs (notebook 51).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ard.baselines.abc import AbCConfig, abc_method, pair_features, train
from ard.baselines.cosine import CropRanker, Encode, Map, Proposals
from ard.baselines.encoders import batched
from ard.baselines.mappers import Mappers
from ard.baselines.methods import Method
from ard.detector.published import AttributionDetector, Pictures
from ard.detector.whitening import whitener
from ard.evaluation import train_abc
from ard.files import kept_arrays
from ard.records import Dataset

CELLS = (3, 2, 1)  # a side, that a region has of each map of the backbone, the finest first


def rivals(dataset: Dataset, encode: Encode, regions: Encode, boxes: Proposals, learning: AbCConfig, shrinkage: float,
           work: Path) -> dict[str, Method]:
    """By name, each fitted to AD+ train; features of pairs and mappers are kept in `work`.

    encode: of whole pictures and of crops. regions: of crops, as `region_encoder` gives it.
    """
    seen = {name: kept_arrays(work / f"{name}.npz", lambda: pair_features(dataset, dataset.samples["train"], encoder, "crops"))
            for name, encoder in (("crops", encode), ("regions", regions))}
    whole, cut = train_abc(dataset, encode, learning, work / "abc.safetensors"), work / "crops.safetensors"
    if not cut.is_file():
        train(*(seen["crops"][name] for name in ("real", "synthetic", "owner")), learning)[0].save(cut)
    mappers, white = Mappers.load(cut), {name: whitening(pairs, shrinkage) for name, pairs in seen.items()}
    return {"crop cosine": CropRanker(encode, boxes), "AbC": abc_method(whole, encode),
            "class filter + AbC": CropRanker(encode, boxes, mappers.map_real, mappers.map_synthetic),
            "class filter + whitened": CropRanker(encode, boxes, white["crops"], white["crops"]),
            "class filter + whitened regions": CropRanker(regions, boxes, white["regions"], white["regions"])}


def whitening(pairs: dict[str, np.ndarray], shrinkage: float) -> Map:
    """The map under which pictures of one individual look most alike (`ard.detector.whitening`), from what `pair_features` gives.

    Standardised by real and generated pictures together: by the real ones alone, a feature that these hardly show and the generated
    ones do counts without bound, and an encoder's features find less than as they are.
    """
    both = np.concatenate([pairs["real"][0], pairs["synthetic"][0]]).astype(np.float32)
    centre, spread = both.mean(0), both.std(0).clip(1e-3)
    owner = np.concatenate([np.arange(pairs["real"].shape[1]), pairs["owner"]])
    white = whitener(torch.from_numpy((both - centre) / spread), owner, shrinkage).numpy()
    return lambda features: (features - centre) / spread @ white


def region_encoder(model: AttributionDetector, mean: Sequence[float], std: Sequence[float], side: int, batch: int = 16) -> Encode:
    """Crops through the frozen backbone of a detector, brought to `side` px: its maps on `CELLS` places a side, one after the other."""

    def features(pixels: Tensor) -> Tensor:
        count, _, height, width = pixels.shape
        sizes = torch.tensor([[width, height]], device=pixels.device).expand(count, 2).float()
        maps = model.encode_image(Pictures(pixels, pixels.new_ones(count, height, width, dtype=torch.bool), sizes))
        return torch.cat([F.adaptive_avg_pool2d(level, cells).flatten(1) for level, cells in zip(maps.levels, CELLS, strict=True)], 1)

    return batched(features, side, (mean, std), batch=batch, device=model.device)
