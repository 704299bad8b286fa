"""What methods are built from: dataset, base models, customised generators and a folder to keep things in, each opened
when first asked for.

Between `ard.arena`, which makes one, and the methods' `build` functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ard.baselines.cosine import Encode, Proposals
from ard.baselines.encoders import efficientnet_encoder
from ard.deltas import apply_delta, remove_delta
from ard.detector.features import FeatureCache
from ard.detector.model import AttributionGroundingDinoForObjectDetection, load_detector
from ard.detector.operating import load_threshold
from ard.evaluation import class_proposals
from ard.files import sha256_bytes, sha256_tree
from ard.generator import load_pipeline
from ard.records import Dataset, Sample


@dataclass(frozen=True, eq=False)
class Kit:
    """`data`: the folder data/ with models, deltas and drawings. `work`: what a method trains or precomputes goes here,
    below its own name. `settings`: the method's part of params.yaml, by method family."""

    dataset: Dataset
    split: str = "test"
    data: Path = Path("data")
    work: Path = Path(".run/hand/arena")
    settings: Mapping[str, Any] = field(default_factory=dict)

    def told(self, settings: Mapping[str, Any]) -> Kit:
        """A kit with other settings, which shares what this one has opened."""
        other = copy(self)
        object.__setattr__(other, "settings", settings)
        vars(other).pop("proposals", None)  # nothing else that is opened depends on settings
        return other

    @cached_property
    def ad_train(self) -> Dataset:
        """The dataset with its train split alone: all that a method may learn from."""
        return replace(self.dataset, samples={"train": self.dataset.samples["train"]},
                       gallery={"train": self.dataset.gallery["train"]})

    @cached_property
    def content(self) -> str:
        """Hash of all pictures of the dataset, of what its galleries show, and of the pairs that may be learned from."""
        names = {image.file for images in self.dataset.gallery.values() for image in images}
        names |= {sample.query_file for samples in self.dataset.samples.values() for sample in samples}
        pictures = [f"{n} {sha256_tree(self.dataset.root / n)}" for n in sorted(names)]
        pairs = [asdict(sample) for sample in self.dataset.samples.get("train", ())]
        shown = {split: [asdict(image) for image in images] for split, images in self.dataset.gallery.items()}
        return sha256_bytes(json.dumps([pictures, pairs, shown], sort_keys=True).encode())

    @cached_property
    def generator(self):
        """The base generator, a StableDiffusionPipeline in float32."""
        return load_pipeline(self.data / "models/generator")

    @contextmanager
    def customised(self, sample: Sample) -> Iterator[Any]:
        """Within the block the generator is G_i, which drew the sample's Q; afterwards it is the base again, bit by bit."""
        try:
            yield apply_delta(self.generator, self.data / "deltas" / f"{sample.concept_id}.safetensors")
        finally:
            remove_delta(self.generator)

    @cached_property
    def features(self) -> FeatureCache:
        """Frozen vision features of pictures, for detectors."""
        return FeatureCache()

    @cached_property
    def finder(self) -> AttributionGroundingDinoForObjectDetection:
        """The open-set detector, which finds boxes of a class."""
        return load_detector(self.data / "models/open_set")

    @cached_property
    def proposals(self) -> Proposals:
        """(image_id, class name) -> boxes (n, 4) of the class in a gallery image of the split, for all classes asked about;
        from the score on that the setting class_filter.threshold names, else from the detector's own."""
        least = self.settings.get("class_filter", {}).get("threshold") or load_threshold(self.data / "models/open_set")
        return self.proposals_at(least)

    def proposals_at(self, threshold: float) -> Proposals:
        """`proposals` from another score on."""
        names = {sample.class_name for sample in self.dataset.samples[self.split]}
        return class_proposals(self.finder, self.dataset, self.split, sorted(names), threshold, self.features)

    @cached_property
    def efficientnet(self) -> Encode:
        """Pooled features of the packaged EfficientNet-lite0."""
        return efficientnet_encoder()

    def kept(self, name: str, make: Callable[[Path], Any]) -> Path:
        """The path `work`/name, made by `make(path)` where it is not there yet."""
        path = self.work / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)
        return path
