"""What only ablations change about how the detector is asked and trained: the released code's behaviour, and roads not
taken (FACTS 1.7; README, "Beyond the paper").

Nothing of the main job is a variant: there is no way to ask the product for a wrong box by a setting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ard.detector.features import REGION_MAPS, FeatureCache, region_vectors
from ard.detector.method import DetectorMethod
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.negatives import NEGATIVES
from ard.detector.objectives import OBJECTIVES
from ard.detector.phases import LIT, PhaseData, moved_boxes, query_vectors
from ard.detector.prompts import TEXT, Phrase, Prompt, build_prompt
from ard.geometry import Transform
from ard.records import Dataset, Query

ENLARGED = 800 / 512  # the released code resizes 512-pixel queries to 800 and leaves their boxes (FACTS 1.7 a)
CHOICES = {"query_box": ("right", "released"), "parts": ("both", "text", "exemplar"), "negatives": tuple(NEGATIVES),
           "objective": OBJECTIVES}


@dataclass(frozen=True)
class Variant:
    """The defaults are what the main job does."""

    query_box: str = "right"  # "released": R_Q stays where it was while Q is mirrored and enlarged (a)
    parts: str = "both"  # of a phrase, or its "text" or "exemplar" alone
    pooled: bool = False  # the exemplar is one cell of each map, as published; no likeness can be read from it
    exemplar_target: bool = True  # False: the exemplar token is trained as background (b)
    negatives: str = "mixed"  # a key of `negatives.NEGATIVES`; "constant" is (d)
    objective: str = "focal"  # of phase 2, one of `objectives.OBJECTIVES`
    fused_layers: int = 0  # of the encoder's layers only so many, the last ones, mix image and query; 0: all

    def __post_init__(self):
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, found {getattr(self, name)!r}")

    @property
    def lit(self) -> tuple[int, ...]:
        """Kinds of tokens whose target is 1 on R_X."""
        return LIT if self.exemplar_target else (TEXT,)

    def boxes(self, transform: Transform, boxes: np.ndarray) -> np.ndarray:
        """Where the exemplar is read, xyxy pixels of the moved query (N, 4), from R_Q in the query as it came."""
        return moved_boxes(transform, boxes) if self.query_box == "right" else np.asarray(boxes, float) / ENLARGED

    def vectors(self, vectors: Tensor) -> Tensor:
        """Region vectors (..., REGION) as the variant reads them."""
        return pool_grids(vectors) if self.pooled else vectors

    def phrase(self, name: str, exemplar: Tensor) -> Phrase:
        """What the detector is told of a query."""
        return Phrase(None if self.parts == "exemplar" else name, None if self.parts == "text" else exemplar)

    @property
    def told(self) -> dict:
        """What the batches of both phases are made with."""
        return {"phrase": self.phrase, "lit": self.lit}

    def data(self, data: PhaseData, queries: Callable[[], Tensor] | None = None) -> PhaseData:
        """AD+ with its queries read as the variant reads them; `queries` gives them (2, S, REGION) where boxes are wrong."""
        read = data.queries if self.query_box == "right" else queries()
        return replace(data, queries=self.vectors(read))


AS_USED = Variant()


def pool_grids(vectors: Tensor) -> Tensor:
    """Region vectors (..., REGION) whose grid cells all hold the mean of their map, as one cell would."""
    parts = vectors.split([channels * grid * grid for channels, grid in REGION_MAPS], -1)
    cells = [part.unflatten(-1, (channels, grid * grid)) for part, (channels, grid) in zip(parts, REGION_MAPS)]
    return torch.cat([c.float().mean(-1, keepdim=True).expand_as(c).flatten(-2).to(c.dtype) for c in cells], -1)


def variant_queries(dataset: Dataset, split: str, cache: FeatureCache, variant: Variant) -> Tensor:
    """(2, S, REGION) region vectors of a split's queries in both mirrorings, read where the variant reads them."""
    return query_vectors(dataset, dataset.samples[split], cache, variant.boxes)


class VariantMethod(DetectorMethod):
    """`DetectorMethod` that tells the detector what the variant tells it."""

    def __init__(self, model: AttributionGroundingDinoForObjectDetection, variant: Variant, cache: FeatureCache | None = None):
        super().__init__(model, cache)
        self.variant = variant

    def prompt(self, query: Query) -> Prompt:
        height, width = query.image.shape[:2]
        boxes = self.variant.boxes(Transform(width, height), np.array([query.sample.query_box]))
        vector = self.variant.vectors(region_vectors(self.cache(query.image[None]), torch.from_numpy(boxes)))[0]
        return build_prompt([[self.variant.phrase(query.sample.class_name, vector)]])


class NoFusion(nn.Module):
    """In place of a fusion layer: image and query pass each other by."""

    def forward(self, vision_features, text_features, attention_mask_vision=None, attention_mask_text=None):
        return (vision_features, None), (text_features, None)


def fuse_late(model: AttributionGroundingDinoForObjectDetection, layers: int) -> None:
    """Let only the last `layers` encoder layers mix image and query (DESIGN 10 b); what is before them could be kept for
    each gallery image. 0 leaves all."""
    before = len(model.model.encoder.layers) - layers
    if not 0 <= before:
        raise ValueError(f"fused layers: expected at most {len(model.model.encoder.layers)}, found {layers}")
    for layer in model.model.encoder.layers[: before if layers else 0]:
        layer.fusion_layer = NoFusion()
