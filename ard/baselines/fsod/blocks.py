"""The mechanisms that VFA and ICPE are named after, each a small module or function on tensors (FACTS 7).

VFA (Han et al. 2023): `VariationalEncoder`, `any_class`. ICPE (Lu et al. 2023): `InformationCoupling`,
`PrototypeAggregation`, `own_class`. `ard.baselines.fsod.aggregation` puts them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn


class Code(NamedTuple):
    """What the variational encoder says of support vectors (n, d)."""

    mu: Tensor  # (n, d)
    logvar: Tensor  # (n, d)
    invariant: Tensor  # (n, d): mu + std, not a sample; it weighs RoI features (VFA's code; its paper says z)
    reconstruction: Tensor  # (n, d) in (0, 1), decoded from a sample


class VariationalEncoder(nn.Module):
    """VFA's VAE on support vectors in (0, 1): Linear-BN-LeakyReLU to mu and log variance, Linear-Linear-BN-sigmoid back."""

    def __init__(self, width: int):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.LeakyReLU())
        self.mu, self.logvar = nn.Linear(width, width), nn.Linear(width, width)
        self.decoder = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width), nn.BatchNorm1d(width), nn.Sigmoid())

    def forward(self, vectors: Tensor) -> Code:
        """(n, d) -> Code; in training n must be at least 2, as for any batch normalisation."""
        hidden = self.encoder(vectors)
        mu, logvar = self.mu(hidden), self.logvar(hidden)
        std = (0.5 * logvar).exp()
        return Code(mu, logvar, mu + std, self.decoder(mu + std * torch.randn_like(std)))


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) summed over features, mean over rows.

    >>> round(float(kl_divergence(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))), 3)
    0.5
    """
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(-1).mean()


def variational_loss(code: Code, vectors: Tensor, kl_weight: float) -> Tensor:
    """Reconstruction error plus the weighed divergence; the published weight is 2.5e-4."""
    return F.mse_loss(code.reconstruction, vectors) + kl_weight * kl_divergence(code.mu, code.logvar)


def any_class(labels: Sequence[Tensor], classes: int, generator: Generator | None = None) -> Tensor:
    """VFA's class-agnostic aggregation: each picture's support is of a random class 0 .. classes - 1, mostly of another
    than its `labels`. (B,) for B pictures."""
    return torch.randint(classes, (len(labels),), generator=generator)


def own_class(labels: Sequence[Tensor], classes: int, generator: Generator | None = None) -> Tensor:
    """Meta R-CNN's and ICPE's aggregation: each picture's support is of a class that it shows, a random one of `labels`."""
    return torch.stack([one[torch.randint(len(one), (), generator=generator)] for one in labels])


class InformationCoupling(nn.Module):
    """ICPE's conditional information coupling: a support looks for what the query picture has of it.

    Non-local attention with q from the support, k and v from the query, then a 1x1 convolution and a normalisation that
    starts at zero, times the cosine of each support position with the query's mean, added to the support.
    """

    def __init__(self, width: int):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))
        self.norm = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def attention(self, supports: Tensor, queries: Tensor) -> Tensor:
        """Supports (S, W, h, w), queries (B, W, H, V) -> weights (B, S, h * w, H * V) that sum to 1 over the query."""
        q, k = self.q(supports).flatten(2), self.k(queries).flatten(2)
        return torch.einsum("swp,bwr->bspr", q, k).softmax(-1)

    def forward(self, supports: Tensor, queries: Tensor) -> Tensor:
        """Supports (S, W, h, w), queries (B, W, H, V) -> supports as each query sees them (B, S, W, h, w)."""
        seen = torch.einsum("bspr,bwr->bswp", self.attention(supports, queries), self.v(queries).flatten(2))
        change = self.norm(self.out(seen.flatten(0, 1).unflatten(-1, supports.shape[2:]))).unflatten(0, seen.shape[:2])
        gate = F.cosine_similarity(supports[None], queries.mean((2, 3))[:, None, :, None, None], dim=2)
        return supports + change * gate[:, :, None]


def intra_image_aggregation(positions: Tensor, alpha: float = 1.0) -> Tensor:
    """ICPE: positions (..., d, p) of a support -> (..., d): the mean plus `alpha` times the mean of positions weighed by
    their cosine to it."""
    mean = positions.mean(-1)
    weight = F.cosine_similarity(positions, mean[..., None], dim=-2)
    return mean + alpha * (positions * weight[..., None, :]).mean(-1)


class PrototypeAggregation(nn.Module):
    """ICPE's prototype dynamic aggregation: positions within an image, then the shots of a class, each weighed."""

    def __init__(self, width: int, alpha: float = 1.0):
        super().__init__()
        self.alpha, self.weight = alpha, nn.Linear(width, 1)

    def forward(self, positions: Tensor) -> Tensor:
        """(..., k shots, d, p positions) -> prototypes (..., d); each shot weighs sigmoid(fc(shot)) / k."""
        shots = intra_image_aggregation(positions, self.alpha)
        return (shots * self.weight(shots).sigmoid()).mean(-2)
