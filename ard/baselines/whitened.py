"""`class filter + whitened regions`: what ARD's likeness head knows, without a detector around it.

R_Q's crop against the crops that the open-set detector proposes for the class, compared by the cosine of region vectors whitened
within individuals (`ard.detector.whitening`), which are those of AD+ and of as many rendered pairs as ARD sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ard.baselines.abc import Learned, pair_features
from ard.baselines.abc_rows import beside, key
from ard.baselines.cosine import CropRanker, Map
from ard.baselines.encoders import squares
from ard.baselines.kit import Kit
from ard.baselines.registry import Entry
from ard.baselines.rendered_crops import rendered_crops
from ard.config import from_dict
from ard.detector.features import IMAGE_SIZE, image_features, region_vectors
from ard.detector.whitening import whitener
from ard.files import kept_arrays, sha256_tree
from ard.generator import redraws
from ard.records import Dataset
from ard.world import World


@dataclass(frozen=True)
class WhitenedSettings:
    shrinkage: float = 3.0  # as in `whitener`; ARD's
    rendered: int = 1500  # base individuals whose crops join AD+, two queries each; ARD's. 0: AD+ alone
    redraw: tuple[float, float] = (0.2, 0.6)  # shares of the noise's way from which every second query is drawn again; ARD's
    threshold: float = 0.0  # score from which a box of the class counts; 0: as for the other class filters
    seed: int = 0  # of the rendered individuals


def crop_regions(images: Sequence[np.ndarray]) -> np.ndarray:
    """Region vectors (n, REGION) float32 of whole pictures (H, W, 3) uint8 of any sizes, brought to the detector's."""
    whole = torch.tensor([[0.0, 0.0, IMAGE_SIZE, IMAGE_SIZE]]).expand(len(images), -1)
    return region_vectors(image_features(squares(images, IMAGE_SIZE)), whole).numpy()


def whitening(real: np.ndarray, synthetic: np.ndarray, owner: np.ndarray, shrinkage: float) -> Map:
    """The map of region vectors under which pairs look most alike, from what `pair_features` gives of them."""
    centre, spread = real[0].mean(0), real[0].std(0).clip(1e-3)
    vectors = (np.concatenate([real[0], synthetic[0]]) - centre) / spread
    white = whitener(torch.from_numpy(vectors), np.concatenate([np.arange(len(real[0])), owner]), shrinkage).numpy()
    return lambda features: (features - centre) / spread @ white


def build(kit: Kit) -> Learned:
    told = from_dict(WhitenedSettings, dict(kit.settings.get("whitened", {})), "params.yaml:arena.methods.whitened")

    def rendered() -> dict[str, np.ndarray]:
        crops = rendered_crops(World.load(kit.data / "world"), told.rendered, 2, told.seed, redraws(kit.generator, told.redraw))
        return {"real": crop_regions(crops.real)[None], "synthetic": crop_regions(crops.queries)[None], "owner": crops.owner,
                "kind": np.zeros(len(crops.owner), int)}

    def learn(ad_train: Dataset) -> Map:
        pairs = pair_features(ad_train, ad_train.samples["train"], crop_regions, "crops")
        if told.rendered:
            drawn = key(told.rendered, told.seed, told.redraw, *(sha256_tree(kit.data / name) for name in ("world", "models/generator")))
            pairs = beside(pairs, kept_arrays(kit.work / f"whitened-{drawn}.npz", rendered))
        return whitening(pairs["real"], pairs["synthetic"], pairs["owner"], told.shrinkage)

    def ranker(mapped: Map) -> CropRanker:
        proposals = kit.proposals_at(told.threshold) if told.threshold else kit.proposals
        return CropRanker(crop_regions, proposals, mapped, mapped)

    return Learned(learn, ranker)


ENTRIES = [Entry("class filter + whitened regions", build, ("text", "box", "pairs", "rendered"),
                 "Hatch et al. 2006, on individuals; ARD's region vectors", ("models/open_set", "world", "models/generator"))]
