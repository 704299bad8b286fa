"""AbC's mappers F and F~ over frozen features, and the losses that fit them (Wang et al. 2023, section 4; supplement 2.2).

`ard.baselines.abc` trains them. The linear and the channel mapper start at the identity, as plain cosine.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional

from ard.config import nearest
from ard.files import atomic_write_bytes

KINDS = ("linear", "channel", "mlp", "none")


class Channel(nn.Module):
    """(n, d) -> (n, d): one factor a channel, 1 at the start."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * self.scale


def identity_linear(width: int) -> nn.Linear:
    """(n, d) -> (n, d): identity weight and zero bias at the start."""
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def head(width: int, hidden: int, out: int, layers: int) -> nn.Sequential:
    """(n, width) -> (n, out): linear layers, each with batch normalisation, the last without scale, ReLU between them, as MoCo
    v3's heads."""
    sizes, parts = [width, *[hidden] * (layers - 1), out], []
    for i, (before, after) in enumerate(zip(sizes, sizes[1:])):
        last = i == layers - 1
        parts += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after, affine=not last), *[nn.ReLU()] * (not last)]
    return nn.Sequential(*parts)


def mapper(kind: str, width: int, hidden: int, out: int) -> nn.Module:
    """One of KINDS over features of `width` channels; ValueError for another word."""
    makers = {"linear": lambda: identity_linear(width), "channel": lambda: Channel(width),
              "mlp": lambda: head(width, hidden, out, 2), "none": nn.Identity}
    if kind not in makers:
        raise ValueError(f"mapper: expected one of {', '.join(KINDS)}, found {kind!r}; {nearest(kind, KINDS)}")
    return makers[kind]()


class Mappers(nn.Module):
    """F (`real`) and F~ (`synthetic`), in float32, over features of length 1."""

    def __init__(self, width: int, kind: str = "linear", hidden: int = 512, out: int = 256):
        super().__init__()
        self.shape = {"width": width, "kind": kind, "hidden": hidden, "out": out}
        self.real, self.synthetic = mapper(kind, width, hidden, out), mapper(kind, width, hidden, out)

    @property
    def matrices(self) -> tuple[torch.Tensor, ...]:
        """What `orthogonality` holds in place: the weights of the linear mappers, of others nothing."""
        return tuple(m.weight for m in (self.real, self.synthetic) if isinstance(m, nn.Linear))

    def map_real(self, features: np.ndarray) -> np.ndarray:
        """(n, d) -> (n, e)."""
        return self._map(self.real, features)

    def map_synthetic(self, features: np.ndarray) -> np.ndarray:
        """(n, d) -> (n, e)."""
        return self._map(self.synthetic, features)

    @staticmethod
    @torch.no_grad()
    def _map(layer: nn.Module, features: np.ndarray) -> np.ndarray:
        return layer(unit(torch.as_tensor(np.asarray(features), dtype=torch.float32))).numpy()

    def save(self, path: str | Path) -> None:
        state = {k: v.contiguous() for k, v in self.state_dict().items()}
        atomic_write_bytes(path, save(state, metadata={"ard": json.dumps(self.shape, sort_keys=True)}))

    @staticmethod
    def load(path: str | Path) -> Mappers:
        """What `save` wrote, ready to map."""
        with safe_open(str(path), "pt") as file:
            mappers = Mappers(**json.loads(file.metadata()["ard"]))
        mappers.load_state_dict(load_file(path))
        return mappers.eval()


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
