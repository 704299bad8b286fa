"""`AbC`: attribution by customisation (Wang et al. 2023), the paper's strongest baseline, trained on AD+ train.

Two linear mappers over frozen features, F for real and F~ for generated images, start at the identity and learn to pull
each exemplar to the images generated from it; an orthogonality term keeps them from forgetting what they start from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional

from ard.baselines.cosine import CropRanker, Encode, ImageRanker, Proposals
from ard.files import atomic_write_bytes


@dataclass(frozen=True)
class AbCConfig:
    epochs: int = 100  # as published; each shows every exemplar once, with one of its queries
    batch: int = 128  # exemplars a step; at most as many as there are
    learning_rate: float = 1e-3  # Adam, cosine to 0, as published
    temperature: float = 0.07
    regularisation: float = 0.05  # without it the mappers are worse than none (their ablation)
    seed: int = 0


class Mappers(nn.Module):
    """F (`real`) and F~ (`synthetic`): linear, identity weight and zero bias at the start, in float32."""

    def __init__(self, width: int):
        super().__init__()
        self.real, self.synthetic = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.real, self.synthetic):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def map_real(self, features: np.ndarray) -> np.ndarray:
        """(n, d) -> (n, d)."""
        return self._map(self.real, features)

    def map_synthetic(self, features: np.ndarray) -> np.ndarray:
        """(n, d) -> (n, d)."""
        return self._map(self.synthetic, features)

    @staticmethod
    @torch.no_grad()
    def _map(layer: nn.Linear, features: np.ndarray) -> np.ndarray:
        return layer(unit(torch.as_tensor(np.asarray(features), dtype=torch.float32))).numpy()

    def save(self, path: str | Path) -> None:
        atomic_write_bytes(path, save({k: v.contiguous() for k, v in self.state_dict().items()}))

    @staticmethod
    def load(path: str | Path) -> Mappers:
        state = load_file(path)
        mappers = Mappers(len(state["real.bias"]))
        mappers.load_state_dict(state)
        return mappers


def unit(features: torch.Tensor) -> torch.Tensor:
    return functional.normalize(features, dim=-1)


def nt_xent(real: torch.Tensor, synthetic: torch.Tensor, temperature: float) -> torch.Tensor:
    """Symmetric contrastive loss of B pairs (B, d) each: exemplar i belongs to query i and to no other."""
    logits = unit(synthetic) @ unit(real).T / temperature
    target = torch.arange(len(real))
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def orthogonality(*weights: torch.Tensor) -> torch.Tensor:
    """1/2 sum ||H^T H - I||_F. The tiny constant makes the gradient 0, not 0/0, where H is orthogonal: at the start."""
    gaps = [h.T @ h - torch.eye(len(h)) for h in weights]
    return sum((gap.square().sum() + 1e-12).sqrt() for gap in gaps) / 2


def train(real: np.ndarray, synthetic: np.ndarray, owner: np.ndarray, config: AbCConfig):
    """Fit the mappers.

    real (E, d): features of the exemplars; synthetic (Q, d): of the queries; owner (Q,): each query's exemplar.
    Returns the Mappers and a list, the mean loss of each epoch. ValueError: fewer than two exemplars with a query.
    """
    queries = {e: np.flatnonzero(owner == e) for e in np.unique(owner)}
    if len(queries) < 2 or len(owner) != len(synthetic) or max(queries) >= len(real):
        raise ValueError(f"AbC needs at least two exemplars with queries, found {len(queries)} of {len(real)} "
                         f"exemplars and {len(owner)} owners for {len(synthetic)} queries")
    real, synthetic = (unit(torch.as_tensor(f, dtype=torch.float32)) for f in (real, synthetic))
    rng = np.random.default_rng(config.seed)
    mappers = Mappers(real.shape[1])
    steps = -(-len(queries) // config.batch)  # batches of equal size: a short last one would have fewer negatives
    optimizer = torch.optim.Adam(mappers.parameters(), config.learning_rate, betas=(0.9, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * steps)
    history = []
    for _ in range(config.epochs):
        total = 0.0
        for chosen in np.array_split(rng.permutation(list(queries)), steps):
            picked = [rng.choice(queries[e]) for e in chosen]
            loss = nt_xent(mappers.real(real[chosen]), mappers.synthetic(synthetic[picked]), config.temperature)
            loss = loss + config.regularisation * orthogonality(mappers.real.weight, mappers.synthetic.weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        history.append(total / steps)
    return mappers.eval(), history


def abc_method(mappers: Mappers, encode: Encode, crop_query: bool = False) -> ImageRanker:
    """The row `AbC`: whole gallery images against the whole query image (or R_Q's crop), no box."""
    return ImageRanker(encode, mappers.map_real, mappers.map_synthetic, crop_query)


def abc_crop_method(mappers: Mappers, encode: Encode, proposals: Proposals) -> CropRanker:
    """The fairer variant: R_Q's crop against proposals' crops, with mappers trained on crops."""
    return CropRanker(encode, proposals, mappers.map_real, mappers.map_synthetic)
