"""Independent judges of generated images: linear probes for class, context and medium on frozen features.

Fitted on rendered base scenes, checked on held-out real scenes, then applied to what the generator makes. They appear in
no table row; a judge below 90% on real scenes does not count.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.numpy import save
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from ard.files import atomic_write_bytes, kept_arrays
from ard.generator import Blemish

ASPECTS = ("class", "context", "medium")
CHUNK = 500  # scenes rendered, encoded and written at once
Features = Callable[[np.ndarray], np.ndarray]  # (n, H, W, 3) uint8 -> (n, d) float32


@torch.inference_mode()
def image_features(images: np.ndarray, size: int = 256, batch: int = 32) -> np.ndarray:
    """What frozen EfficientNet-lite0 sees, and colour statistics: (n, d) float32.

    Mean and maximum of every stage over the picture; of the three coarse ones also the spread and the strongest window,
    because an object is a fifth of its picture.
    """
    from ard.backbones import efficientnet_lite0

    model, out = efficientnet_lite0(), []
    for start in range(0, len(images), batch):
        part = np.ascontiguousarray(images[start:start + batch])
        x = torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        stages = model.forward_intermediates(x, intermediates_only=True)
        pooled = [v for s in stages for v in (s.mean((2, 3)), s.amax((2, 3)))]
        windows = [F.avg_pool2d(s, 3, 1) for s in stages[-3:]]
        pooled += [v for s, w in zip(stages[-3:], windows) for v in (w.amax((2, 3)), s.std((2, 3)))]
        out.append(np.concatenate([torch.cat(pooled, 1).numpy(), colour_statistics(part)], axis=1))
    return np.concatenate(out).astype(np.float32)


def colour_statistics(images: np.ndarray) -> np.ndarray:
    """(n, H, W, 3) uint8 -> (n, 68): colours of a 4 x 4 grid, spread, saturation, steps between pixels."""
    x = images.astype(np.float32) / 255
    n, height, width, _ = x.shape
    whole = x[:, :height // 4 * 4, :width // 4 * 4].reshape(n, 4, height // 4, 4, width // 4, 3)
    grid = whole.mean((2, 4)).reshape(n, -1)
    saturation = x.max(-1) - x.min(-1)
    grey = x.mean(-1)
    steps = np.abs(np.diff(grey, axis=2)).reshape(n, -1)
    tail = np.quantile(steps, np.linspace(0.1, 0.99, 15), axis=1).T
    spread = np.stack([saturation.mean((1, 2)), saturation.std((1, 2))], axis=1)
    return np.concatenate([grid, x.std((1, 2)), spread, tail], 1)


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Standardise, then a linear map to classes: names (c,), mean and scale (d,), weight (c, d), bias (c,)."""

    names: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Names (n,) for features (n, d)."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"probe was fitted on {len(self.mean)} features, got an array {features.shape}")
        logits = (features - self.mean) / self.scale @ self.weight.T + self.bias
        return np.array(self.names)[logits.argmax(1)]

    def accuracy(self, features: np.ndarray, labels: Sequence[str]) -> float:
        return float((self.predict(features) == np.asarray(labels)).mean())


def fit_probe(features: np.ndarray, labels: Sequence[str], strength: float = 0.03) -> LinearProbe:
    """Multinomial logistic regression (scikit-learn's L-BFGS, deterministic); `strength` is its C after standardising."""
    names = tuple(sorted(set(labels)))
    if len(names) < 2 or len(labels) != len(features):
        raise ValueError(f"a probe wants one label per row and two classes, got {len(features)} rows, "
                         f"{len(labels)} labels, classes {names}")
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64) + 1e-6
    model = LogisticRegression(C=strength, max_iter=300)
    model.fit((features - mean) / scale, np.asarray(labels))
    weight, bias = model.coef_, model.intercept_
    if len(names) == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return LinearProbe(names, *(v.astype(np.float32) for v in (mean, scale, weight, bias)))


def world_scenes(world, count: int, seed: int | list[int], split: str = "base") -> tuple[list, dict[str, list[str]]]:
    """`count` one-object scenes of the mini world, classes in turn, and their labels by aspect."""
    rng = np.random.default_rng(seed)
    names = [world.classes[k % len(world.classes)] for k in range(count)]
    scenes = [world.scene(rng, individuals=[world.individual(name, split, rng)]) for name in names]
    return scenes, {"class": names, "context": [s.context for s in scenes], "medium": [s.medium for s in scenes]}


@dataclass(frozen=True, eq=False)
class Probes:
    """One probe per aspect over one kind of features."""

    probes: dict[str, LinearProbe]
    features: Features = image_features

    def predict(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Names by aspect for images (n, H, W, 3) uint8."""
        features = self.features(images)
        return {aspect: probe.predict(features) for aspect, probe in self.probes.items()}

    def accuracy(self, images: np.ndarray, labels: dict[str, Sequence[str]]) -> dict[str, float]:
        """Share recognised, by aspect; labels may hold some of the aspects only."""
        found = self.predict(images)
        return {a: round(float((found[a] == np.asarray(wanted)).mean()), 4) for a, wanted in labels.items()}

    def save(self, path: str | Path) -> None:
        """One safetensors file, atomically; the features are named by the caller, not stored."""
        arrays = {f"{a}.{k}": np.ascontiguousarray(getattr(p, k))  # safetensors stores the memory, not the view
                  for a, p in self.probes.items() for k in ("mean", "scale", "weight", "bias")}
        names = json.dumps({a: p.names for a, p in self.probes.items()}, sort_keys=True)
        atomic_write_bytes(path, save(arrays, metadata={"names": names}))

    @classmethod
    def load(cls, path: str | Path, features: Features = image_features) -> Probes:
        if not Path(path).is_file():
            raise FileNotFoundError(f"probes missing: {path}; the probe notebook fits them")
        with safe_open(str(path), "np") as file:
            names = json.loads(file.metadata()["names"])
            return cls({a: LinearProbe(tuple(n), *(file.get_tensor(f"{a}.{k}") for k in ("mean", "scale", "weight", "bias")))
                        for a, n in names.items()}, features)


def fit_probes(world, count: int = 4000, held_out: int = 1000, seed: int = 0, features: Features = image_features,
               blemish: Blemish | None = None, folder: str | Path | None = None
               ) -> tuple[Probes, dict[str, dict[str, float]]]:
    """Fit on base scenes; also returns accuracy by aspect on held-out 'base' scenes and on unseen drawings ('test').

    blemish: gives scenes the flaws of generated pictures; every other scene that is fitted on goes through it.
    folder: keeps the features of finished chunks, so that a killed run goes on.
    """
    parts = []
    for start in tqdm(range(0, count, CHUNK), desc="scenes of the probes", mininterval=5, disable=count < 2 * CHUNK):
        path = None if folder is None else Path(folder) / f"scenes-{seed}-{start}.npz"
        parts.append(kept_arrays(path, partial(_chunk, world, min(CHUNK, count - start), [seed, start], features, blemish)))
    x = np.concatenate([part["features"] for part in parts])
    probes = Probes({a: fit_probe(x, np.concatenate([part[a] for part in parts])) for a in ASPECTS}, features)
    checks = {}
    for n, split in enumerate(("base", "test")):
        scenes, labels = world_scenes(world, held_out, seed + 1 + n, split)
        checks[split] = probes.accuracy(np.stack([s.image for s in scenes]), labels)
    return probes, checks


def _chunk(world, count: int, seed: list[int], features: Features, blemish: Blemish | None) -> dict[str, np.ndarray]:
    """Features and labels of `count` scenes."""
    scenes, labels = world_scenes(world, count, seed)
    images = np.stack([s.image for s in scenes])
    if blemish is not None:
        # examples take turns by class, so every second *round* of classes keeps classes balanced
        chosen = np.flatnonzero(np.arange(count) // len(world.classes) % 2 == 1)
        if len(chosen):
            images[chosen] = blemish([scenes[k] for k in chosen], sum(seed))
    return {"features": features(images), **{aspect: np.array(labels[aspect]) for aspect in ASPECTS}}
