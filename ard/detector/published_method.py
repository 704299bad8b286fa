"""The detector at its published sizes as stages ask it: opened from wherever its weights are, to find a class, and as a method.

For a generator and pictures of one's own (notebooks 50 and 51); what `finder` and `method` are for the mini world.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ard.config import ConfigError
from ard.detector.attribute import Attributor, Index
from ard.detector.convert import from_grounding_dino, from_official, read_official
from ard.detector.finder import finder
from ard.detector.operating import FILE
from ard.detector.processor import AttributionProcessor
from ard.detector.prompts import Phrase
from ard.detector.published import AttributionDetector, AttributionDetectorConfig, published_config
from ard.detector.score import detect_features
from ard.files import FileError, read_json
from ard.records import Attribution, Gallery, Query

WIDTHS = {"backbone.0.patch_embed.proj.weight": {96: "T", 128: "B"}, "bert.embeddings.word_embeddings.weight": {768: "B", 1024: "L"}}


def open_detector(source: str | Path | Mapping[str, Any], seed: int = 0) -> AttributionDetector:
    """A detector of published form, by what `source` is:

    - a file `*.pth`: an official checkpoint of GroundingDINO or CountGD;
    - a folder of ours, or a folder or hub name of transformers' Grounding DINO, as "IDEA-Research/grounding-dino-base";
    - changes of `AttributionDetectorConfig`: random weights of that size.

    seed: of all weights that the source does not have, as GroundingDINO no projection of exemplars. Raises FileError for a
    checkpoint of another shape, ConfigError for an unknown change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of what a source does not have
        return _opened(source).eval()


def _opened(source: str | Path | Mapping[str, Any]) -> AttributionDetector:
    if isinstance(source, Mapping):
        unknown = sorted(set(source) - set(AttributionDetectorConfig().to_dict()))
        if unknown:
            raise ConfigError(f"detector: no setting {unknown[0]!r} of AttributionDetectorConfig")
        return AttributionDetector(AttributionDetectorConfig(**source))
    if str(source).endswith(".pth"):
        state = read_official(source)
        return from_official(state, published_config(_size(state, source))).detector
    settings = Path(source, "config.json")
    if settings.is_file() and read_json(settings).get("model_type") == AttributionDetectorConfig.model_type:
        return AttributionDetector.from_pretrained(source, local_files_only=True)
    return from_grounding_dino(source).detector


def _size(state: Mapping[str, Tensor], source: str | Path) -> str:
    """"B-B" and the like, from the widths of an official checkpoint."""
    try:
        kinds = [known[int(state[name].shape[axis])] for (name, known), axis in zip(WIDTHS.items(), (0, 1))]
    except (KeyError, IndexError):
        raise FileError(f"{source}: neither Swin-T or Swin-B with BERT-base or BERT-large; expected {', '.join(WIDTHS)}") from None
    return "-".join(kinds)


def class_finder(source: str | Path, threshold: float, processor: AttributionProcessor, device: str = "cpu") -> Callable:
    """`find(image, class_name)`, as of `finder.finder`, by an open-set detector of the mini world or of published form."""
    if Path(source, FILE).is_file():
        return finder(source, threshold)
    model = open_detector(source).to(device)

    @torch.no_grad()
    def find(image: np.ndarray, class_name: str) -> tuple[np.ndarray, np.ndarray]:
        ready = processor(image)
        features = model.encode_image(processor.collate([ready]).to(device))
        found = detect_features(model, features, model.prompt([[Phrase(class_name)]]), threshold)[0]
        return ready.back(found.boxes), found.scores

    return find


class PublishedMethod:
    """`DetectorMethod` for detectors of published form: ARD- and ARD from one pass, the gallery encoded once."""

    def __init__(self, model: AttributionDetector, processor: AttributionProcessor, batch: int = 4):
        self.attributor = Attributor(model, processor, batch)
        self._gallery: tuple[Gallery | None, Index | None] = (None, None)

    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        """By ARD when the model's adapters are set, else by ARD-."""
        return self._read(query, gallery, (self.attributor.detector.config.adapters,))[0]

    def rank_both(self, query: Query, gallery: Gallery) -> dict[str, list[Attribution]]:
        """{"ARD-": ..., "ARD": ...}."""
        return dict(zip(("ARD-", "ARD"), self._read(query, gallery, (False, True))))

    def _read(self, query: Query, gallery: Gallery, variants: tuple[bool, ...]) -> list[list[Attribution]]:
        if gallery is not self._gallery[0]:
            self._gallery = gallery, self.attributor.index({image.image_id: gallery.pixels(image) for image in gallery})
        sample = query.sample
        return self.attributor.answers(query.image, sample.query_box, sample.class_name, self._gallery[1], variants)
