"""VFA and ICPE as attribution methods, and the four rows they give: each with the authors' head and with a binary one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ard.baselines.fsod.model import FewShotDetector, Regions
from ard.baselines.fsod.settings import FewShotSettings
from ard.baselines.fsod.train import load_detector, pool_supports, save_detector, shots_of, targets_of, train_base
from ard.baselines.fsod.tune import Lesson, find_novel, fine_tune, joined, make_lesson
from ard.baselines.kit import Kit
from ard.baselines.registry import Entry
from ard.config import from_dict
from ard.detector.features import IMAGE_SIZE, FeatureCache
from ard.detector.pool import CHUNK, ScenePool, build_pool
from ard.records import Attribution, Gallery, Query
from ard.world import World


class FewShotMethod:
    """Learns R_Q as a new class from (Q, R_Q) and one shot of each base class, then looks for it in every gallery image.

    The gallery goes through the detector once for all queries.
    """

    def __init__(self, model: FewShotDetector, pool: ScenePool, names: tuple[str, ...], settings: FewShotSettings,
                 binary: bool, cache: FeatureCache | None = None):
        self.model, self.settings, self.binary, self.cache = model, settings, binary, cache or FeatureCache()
        shots = shots_of(pool, names, settings.base_shots)
        self.supports = pool_supports(model, pool, shots)
        scenes = np.unique(pool.scene[shots])
        self.base = make_lesson(model, pool.features[torch.from_numpy(scenes)], targets_of(pool, scenes), settings.seed)
        self.base_gates = model.fixed_gates(self.supports, self.base.regions.maps)
        self._gallery: tuple[Gallery, Regions, Tensor] | None = None

    def query_lesson(self, query: Query) -> tuple[Lesson, Tensor]:
        """Q and its mirror image as pictures of V*, and V*'s support map (1, 1, W, h, w)."""
        x0, y0, x1, y1 = query.sample.query_box
        boxes = torch.tensor([[x0, y0, x1, y1], [IMAGE_SIZE - x1, y0, IMAGE_SIZE - x0, y1]])
        features = self.cache(np.stack([query.image, query.image[:, ::-1]]))
        novel = torch.tensor([self.model.classes + 1])
        lesson = make_lesson(self.model, features, [{"boxes": box[None], "labels": novel} for box in boxes], self.settings.seed)
        with torch.no_grad():
            support = self.model.support_maps(features[:1], boxes[:1])[None]
        return lesson, support

    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        """V*'s strongest detection in each image; box None and -inf where it is weaker than the threshold."""
        regions, base_gates = self._seen(gallery)
        own, support = self.query_lesson(query)
        lesson = joined(own, self.base)
        known = torch.cat([self.model.fixed_gates(self.supports, own.regions.maps), self.base_gates])
        gates = torch.cat([known, self.model.fixed_gates(support, lesson.regions.maps)], 1)
        heads = fine_tune(self.model, lesson, gates, self.binary, self.settings)
        asked = torch.cat([base_gates, self.model.fixed_gates(support, regions.maps)], 1)
        found, answers = find_novel(self.model, heads, regions, asked), []
        for image, one in zip(gallery, found, strict=True):
            none = one is None or one[1] < self.settings.threshold
            box, score = (None, float("-inf")) if none else (tuple(one[0].tolist()), one[1])
            answers.append(Attribution(image.image_id, box, score))
        return answers

    def _seen(self, gallery: Gallery) -> tuple[Regions, Tensor]:
        if self._gallery is None or self._gallery[0] is not gallery:
            regions = self.model.regions(self.cache(np.stack([gallery.pixels(image) for image in gallery])))
            self._gallery = gallery, regions, self.model.fixed_gates(self.supports, regions.maps)
        return self._gallery[1:]


def build(kit: Kit, name: str, binary: bool) -> FewShotMethod:
    """The method after base training, which is done once and kept."""
    settings = from_dict(FewShotSettings, dict(kit.settings.get("fsod", {})), "settings of fsod")
    world, folder = World.load(kit.data / "world"), kit.work / "fsod/pool"

    def make(path: Path) -> None:
        pool = build_pool(world, settings.scenes, settings.seed, folder)
        save_detector(train_base(name, settings, pool, world.classes, path.with_suffix(".pt")), name, path)

    path = kit.kept(f"fsod/{name}.safetensors", make)
    model = load_detector(path, name, settings, len(world.classes))
    few = build_pool(world, min(CHUNK, settings.scenes), settings.seed, folder)  # the first of the scenes trained on
    return FewShotMethod(model, few, world.classes, settings, binary, kit.features)


def _entry(row: str, name: str, binary: bool, source: str) -> Entry:
    return Entry(row, partial(build, name=name, binary=binary), ("box", "training"), source, ("world",), per_query=True)


VFA_SOURCE = "Han et al. 2023, Few-Shot Object Detection via Variational Feature Aggregation; paper, section 5"
ICPE_SOURCE = "Lu et al. 2023, Information-Coupled Prototype Elaboration for Few-Shot Object Detection; paper, section 5"
ENTRIES = [
    _entry("VFA", "vfa", False, VFA_SOURCE),
    _entry("VFA (binary)", "vfa", True, VFA_SOURCE + "; a head of V* against the rest"),
    _entry("ICPE", "icpe", False, ICPE_SOURCE),
    _entry("ICPE (binary)", "icpe", True, ICPE_SOURCE + "; a head of V* against the rest"),
]
