"""Base training on base scenes of the mini world: episodes, losses, a loop that resumes, and the quality it comes to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import nms
from tqdm import tqdm

from ard.baselines.fsod.model import FewShotDetector, class_logits
from ard.baselines.fsod.settings import FewShotSettings
from ard.checkpoints import Checkpoint, warm_cosine
from ard.detector.evaluate import Answers, ap50
from ard.detector.features import VERSION
from ard.detector.pool import ScenePool
from ard.detector.score import Detections
from ard.files import atomic_write_bytes

# settings that base training ignores
PER_QUERY = ("base_shots", "tune_steps", "tune_rate", "binary_rate", "tune_clip", "threshold")
CHECKPOINT_EVERY = 100  # steps
CLIP = 5.0  # gradient norm; some bound is needed while the proposals are still random
OVERLAP = 0.3  # IoU above which the weaker of two detections of a class goes; as published


class Episode(NamedTuple):
    """Query pictures with their objects, and one support of each class."""

    features: Tensor  # (B, PACKED)
    targets: list[dict[str, Tensor]]  # of each picture: boxes (n, 4), labels (n,) from 1
    support_features: Tensor  # (C, PACKED)
    support_boxes: Tensor  # (C, 4)


def targets_of(pool: ScenePool, scenes: Sequence[int]) -> list[dict[str, Tensor]]:
    """Boxes (n, 4) and labels (n,), counted from 1, of the objects in each scene."""
    objects = [pool.objects_of(scene) for scene in scenes]
    return [{"boxes": torch.from_numpy(pool.boxes[o]), "labels": torch.from_numpy(pool.label[o]) + 1} for o in objects]


def by_class(pool: ScenePool, names: Sequence[str]) -> list[np.ndarray]:
    """Indices of the objects of each class; ValueError names a class without any."""
    found = [np.flatnonzero(pool.label == c) for c in range(len(names))]
    empty = [name for name, objects in zip(names, found) if not len(objects)]
    if empty:
        raise ValueError(f"no {empty[0]} in {len(pool)} base scenes, so it has no support; render more scenes")
    return found


def draw_episode(pool: ScenePool, objects: Sequence[np.ndarray], batch: int, rng: np.random.Generator) -> Episode:
    """`batch` scenes and a random one of each class's `objects` as its support."""
    scenes = rng.choice(np.unique(pool.scene), batch)
    chosen = np.array([rng.choice(one) for one in objects])
    return Episode(pool.features[torch.from_numpy(scenes)], targets_of(pool, scenes),
                   pool.features[torch.from_numpy(pool.scene[chosen])], torch.from_numpy(pool.boxes[chosen]))


def episode_loss(model: FewShotDetector, episode: Episode) -> Tensor:
    """Proposal, class and box losses, the meta classifier's and the aggregation's own."""
    maps = model.neck(episode.features)
    stops = model.aggregation.stops_rpn_gradient
    proposals, rpn_losses = model.propose(maps.detach() if stops else maps, episode.targets)
    boxes, _, labels, deltas = model.sampler.select_training_samples(proposals, episode.targets)
    vectors = model.vectors(maps, boxes)
    supports = model.support_maps(episode.support_features, episode.support_boxes)[:, None]
    gates, described, own = model.gates(supports, maps)
    pick = model.aggregation.picks([t["labels"] - 1 for t in episode.targets], model.classes)
    rows = torch.arange(len(maps)).repeat_interleave(torch.tensor([len(b) for b in boxes]))
    aggregated = vectors * gates[rows, pick[rows]]
    moved = model.box(vectors if model.aggregation.box_on_raw else aggregated)
    losses = fastrcnn_loss(model.cls(aggregated), moved.repeat(1, model.classes + 1), labels, deltas)
    classes = torch.arange(model.classes).expand(described.shape[:-1])
    meta = F.cross_entropy(model.meta(described).flatten(0, -2), classes.flatten())
    return sum(rpn_losses.values()) + sum(losses) + meta + own


def recipe(name: str, settings: FewShotSettings) -> dict:
    """What the trained weights depend on."""
    return {"name": name, "features": VERSION, **{k: v for k, v in dataclasses.asdict(settings).items() if k not in PER_QUERY}}


def train_base(name: str, settings: FewShotSettings, pool: ScenePool, names: Sequence[str], file: str | Path,
               steps: int | None = None) -> FewShotDetector:
    """The detector after `steps` (default: the settings') of base training; `file` is the checkpoint, from which a killed
    run goes on and ends in the same bytes."""
    torch.manual_seed(settings.seed)
    model, objects = FewShotDetector(name, settings, len(names)).train(), by_class(pool, names)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    checkpoint = Checkpoint(file, recipe(name, settings))
    start, end = checkpoint.resume(model, optimizer), settings.steps if steps is None else steps
    bar = tqdm(range(start, end), desc=f"{name}: base training", initial=start, total=end, mininterval=2)
    for step in bar:
        torch.manual_seed(settings.seed * 1_000_003 + step)
        episode = draw_episode(pool, objects, settings.batch, np.random.default_rng([settings.seed, step]))
        optimizer.param_groups[0]["lr"] = settings.learning_rate * warm_cosine(step, settings.steps, settings.warmup)
        loss = episode_loss(model, episode)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: loss is {float(loss.detach())} at step {step}; lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == end:
            checkpoint.save(model, optimizer, step + 1)
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
    return model.requires_grad_(False).eval()


def save_detector(model: FewShotDetector, name: str, file: str | Path) -> None:
    """One safetensors file with its recipe."""
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    atomic_write_bytes(file, save(state, {"recipe": json.dumps(recipe(name, model.settings), sort_keys=True)}))


def load_detector(file: str | Path, name: str, settings: FewShotSettings, classes: int) -> FewShotDetector:
    """The frozen detector of a file; ValueError when it was trained with other settings."""
    with safe_open(str(file), "pt") as opened:
        made_with = (opened.metadata() or {}).get("recipe")
    if made_with != json.dumps(recipe(name, settings), sort_keys=True):
        raise ValueError(f"{file} was trained with other settings; delete it to train anew")
    model = FewShotDetector(name, settings, classes)
    model.load_state_dict(load_file(file))
    return model.requires_grad_(False).eval()


def shots_of(pool: ScenePool, names: Sequence[str], shots: int) -> np.ndarray:
    """Indices (C, shots) of the first objects of each class in a pool; ValueError when a class has fewer."""
    found = by_class(pool, names)
    few = min(found, key=len)
    if len(few) < shots:
        raise ValueError(f"expected {shots} shots of each class, found {len(few)} {names[found.index(few)]}; render more scenes")
    return np.stack([objects[:shots] for objects in found])


def pool_supports(model: FewShotDetector, pool: ScenePool, shots: np.ndarray) -> Tensor:
    """Support maps (C, k, W, h, w) of the objects `shots` (C, k) of a pool."""
    rows = torch.from_numpy(pool.scene[shots.ravel()])
    with torch.no_grad():
        maps = model.support_maps(pool.features[rows], torch.from_numpy(pool.boxes[shots.ravel()]))
    return maps.unflatten(0, shots.shape)


@torch.no_grad()
def base_map50(model: FewShotDetector, pool: ScenePool, supports: Tensor) -> float:
    """Mean average precision at IoU .5 of the base classes in a pool's scenes, with supports (C, k, W, h, w)."""
    regions = model.regions(pool.features)
    gates = model.fixed_gates(supports, regions.maps)[regions.owner]
    scores = class_logits(model.cls, regions.vectors, gates).softmax(-1)
    answers = []
    for c in range(model.classes):
        inputs = regions.vectors if model.aggregation.box_on_raw else regions.vectors * gates[:, c]
        boxes, found, truth = model.refine(model.box, inputs, regions.boxes), [], []
        for picture in range(len(pool)):
            mine = torch.nonzero(regions.owner == picture)[:, 0]
            kept = mine[nms(boxes[mine], scores[mine, c + 1], OVERLAP)]
            found.append(Detections(boxes[kept].numpy(), scores[kept, c + 1].numpy(), np.full(len(kept), c)))
            objects = pool.objects_of(picture)
            truth.append(pool.boxes[objects[pool.label[objects] == c]].reshape(-1, 4))
        answers.append(Answers(c, found, truth))
    return ap50(answers)
