"""A fixed pool of rendered base scenes with their frozen features, so that the backbone runs once per scene in
pretraining."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ard.detector.features import PACKED, REGION, VERSION, image_features, region_vectors
from ard.files import kept_arrays
from ard.generator import Blemish
from ard.world import World

CHUNK = 250  # scenes written at once: about 25 MB


@dataclass(frozen=True, eq=False)
class ScenePool:
    """S scenes and their O objects (individuals only; fillers stay unlabelled)."""

    features: Tensor  # (S, PACKED) float16
    regions: Tensor  # (O, REGION) float16: what an exemplar token of the object is made from
    boxes: np.ndarray  # (O, 4) xyxy pixels
    scene: np.ndarray  # (O,) index of the object's scene
    label: np.ndarray  # (O,) index into World.classes
    individual: np.ndarray  # (O,) individual ids

    def __len__(self) -> int:
        return len(self.features)

    def objects_of(self, scene: int) -> np.ndarray:
        """Indices of the objects in a scene; `scene` is sorted."""
        return np.arange(*np.searchsorted(self.scene, [scene, scene + 1]))


def build_pool(
    world: World, scenes: int, seed: int, folder: str | Path | None = None, split: str = "base", blemish: Blemish | None = None
) -> ScenePool:
    """Render and encode `scenes` scenes in chunks, each kept in `folder` (one for each world) when given, so that a killed run goes on.

    blemish: gives every fourth scene the flaws of a generated picture: in those, too, a detector must find its way.
    """
    parts = []
    for start in tqdm(range(0, scenes, CHUNK), desc=f"scene pool ({split})", mininterval=2):
        n = min(CHUNK, scenes - start)
        path = Path(folder) / f"pool-{split}-{seed}-{start}-{n}{'-blemished' * bool(blemish)}-{VERSION}.npz" if folder else None
        parts.append((start, kept_arrays(path, partial(_chunk, world, n, [seed, start], split, blemish))))
    features = torch.empty(scenes, PACKED, dtype=torch.float16)
    for start, part in parts:
        features[start : start + len(part["features"])] = torch.from_numpy(part["features"])
    joined = {key: np.concatenate([p[key] for _, p in parts]) for key in ("regions", "boxes", "label", "individual")}
    scene = np.concatenate([start + p["scene"] for start, p in parts])
    return ScenePool(
        features, torch.from_numpy(joined["regions"]), joined["boxes"], scene, joined["label"], joined["individual"]
    )


def _chunk(world: World, n: int, seed: list[int], split: str, blemish: Blemish | None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    scenes = [world.scene(rng, split=split) for _ in range(n)]
    pictures = np.stack([s.image for s in scenes])
    if blemish is not None:
        pictures[::4] = blemish(scenes[::4], sum(seed))
    features = image_features(pictures)
    objects = [(i, o) for i, s in enumerate(scenes) for o in s.objects]
    where = np.array([i for i, _ in objects])
    boxes = np.array([o.box for _, o in objects], dtype=np.float32)
    regions = torch.cat(
        [
            region_vectors(features[where[i : i + 64]], torch.from_numpy(boxes[i : i + 64]))
            for i in range(0, len(where), 64)
        ]
    )
    return dict(
        features=features.numpy(),
        regions=regions.half().numpy().reshape(-1, REGION),
        boxes=boxes,
        scene=where,
        label=np.array([world.classes.index(o.class_name) for _, o in objects]),
        individual=np.array([o.individual.individual_id for _, o in objects]),
    )
