"""Batches and recipes of the two pretrained detectors: open-set by text, then prompted by exemplars (CountGD's place).

Used by notebooks/pretrain/. Only base drawings; an exemplar is another individual in another scene than what it finds.
"""

from pathlib import Path
from typing import Callable, Sequence

import numpy as np
import torch

from ard.detector.criterion import make_targets
from ard.detector.features import IMAGE_SIZE
from ard.detector.model import AttributionConfig, AttributionGroundingDinoForObjectDetection
from ard.detector.pool import ScenePool
from ard.detector.prompts import Phrase, build_prompt, phrase_map
from ard.detector.train import Batch, TrainSettings, train
from ard.geometry import to_cxcywh

# how often a phrase is shown as text and exemplar, exemplar alone, text alone (modality dropout, FACTS 2)
MODALITIES = {"both": 0.45, "exemplar": 0.35, "text": 0.20}


def text_batches(pool: ScenePool, names: Sequence[str], batch_size: int) -> Callable[[np.random.Generator], Batch]:
    """Captions of present and absent class names, shuffled; some scenes are asked only for what they do not show."""

    def make(rng: np.random.Generator) -> Batch:
        scenes = rng.integers(len(pool), size=batch_size)
        captions = [_choose_classes(rng, pool.label[pool.objects_of(s)], len(names), 0.12, (1, 6)) for s in scenes]
        return _batch(pool, scenes, captions, [[Phrase(names[c]) for c in caption] for caption in captions])

    return make


def exemplar_batches(pool: ScenePool, names: Sequence[str], batch_size: int) -> Callable[[np.random.Generator], Batch]:
    """One to three phrases, each a class name and/or the exemplar of that class: boxes of all instances of the
    class."""
    by_class = [np.flatnonzero(pool.label == c) for c in range(len(names))]

    def phrase(rng: np.random.Generator, label: int, scene: int) -> Phrase:
        modality = rng.choice(list(MODALITIES), p=list(MODALITIES.values()))
        chosen = other_individual(rng, pool, by_class[label], scene) if modality != "text" else None
        exemplar = None if chosen is None else pool.regions[chosen].float()
        return Phrase(names[label] if modality != "exemplar" or exemplar is None else None, exemplar)

    def make(rng: np.random.Generator) -> Batch:
        scenes = rng.integers(len(pool), size=batch_size)
        captions = [_choose_classes(rng, pool.label[pool.objects_of(s)], len(names), 0.2, (0, 2)) for s in scenes]
        phrases = [[phrase(rng, c, s) for c in caption] for caption, s in zip(captions, scenes)]
        return _batch(pool, scenes, captions, phrases)

    return make


def other_individual(rng: np.random.Generator, pool: ScenePool, candidates: np.ndarray, scene: int) -> int | None:
    """An object among `candidates` in another scene, and no individual that stands in `scene`; None when there is
    none (twenty draws are tried)."""
    here = set(pool.individual[pool.objects_of(scene)])
    for _ in range(20 if len(candidates) else 0):
        chosen = int(rng.choice(candidates))
        if pool.scene[chosen] != scene and pool.individual[chosen] not in here:
            return chosen
    return None


def _choose_classes(rng, present: np.ndarray, n_classes: int, drop: float, extra: tuple[int, int]) -> list[int]:
    """Present classes, each left out with probability `drop`, and a random number of absent ones; never empty,
    shuffled."""
    present = sorted(set(present.tolist()))
    absent = [c for c in range(n_classes) if c not in present]
    chosen = [c for c in present if rng.random() >= drop]
    count = min(int(rng.integers(extra[0], extra[1] + 1)), len(absent))
    chosen += rng.choice(absent, max(count, 0 if chosen else 1), replace=False).tolist()
    return [int(c) for c in rng.permutation(chosen)]


def _batch(pool: ScenePool, scenes: np.ndarray, captions: list[list[int]], phrases: list[list[Phrase]]) -> Batch:
    prompt = build_prompt(phrases)
    boxes, labels = [], []
    for scene, caption in zip(scenes, captions):
        objects = [o for o in pool.objects_of(scene) if pool.label[o] in caption]
        boxes.append(to_cxcywh(pool.boxes[objects].reshape(-1, 4), IMAGE_SIZE, IMAGE_SIZE))
        labels.append([caption.index(pool.label[o]) for o in objects])
    return Batch(pool.features[torch.from_numpy(scenes)], prompt, make_targets(boxes, labels, phrase_map(prompt)))


def new_detector(pool: ScenePool, seed: int, **config) -> AttributionGroundingDinoForObjectDetection:
    """Random weights; region vectors are standardised by the pool's statistics, which are saved with the model."""
    torch.manual_seed(seed)
    model = AttributionGroundingDinoForObjectDetection(AttributionConfig(**config))
    regions = pool.regions.float()
    model.set_region_statistics(regions.mean(0), regions.std(0))
    return model


def train_open_set(
    pool: ScenePool, names: Sequence[str], settings: TrainSettings, folder: str | Path, **config
) -> tuple[AttributionGroundingDinoForObjectDetection, list[dict]]:
    """The open-set detector (GroundingDINO's place), from random weights."""
    model = new_detector(pool, settings.seed, **config)
    return model, train(
        model, text_batches(pool, names, settings.batch_size), settings, folder, name="open-set detector"
    )


def train_exemplar_prompted(
    start: AttributionGroundingDinoForObjectDetection,
    pool: ScenePool,
    names: Sequence[str],
    settings: TrainSettings,
    folder: str | Path,
) -> list[dict]:
    """The exemplar-prompted detector, trained further in place from the open-set one."""
    return train(
        start, exemplar_batches(pool, names, settings.batch_size), settings, folder, name="exemplar-prompted detector"
    )
