"""VFA and ICPE as two ways to turn supports into gates: vectors that RoI features are multiplied with (FACTS 7).

Between `ard.baselines.fsod.blocks`, the mechanisms, and `ard.baselines.fsod.model`, the detector around them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from ard.baselines.fsod.blocks import (
    InformationCoupling, PrototypeAggregation, VariationalEncoder, any_class, own_class, variational_loss)

Describe = Callable[[Tensor], Tensor]  # support maps (n, W, h, w) -> positions (n, D, p) in (0, 1): the shared head


class Gates(NamedTuple):
    gates: Tensor  # (B, C, D): for each query picture and class, what its RoI vectors are multiplied with
    described: Tensor  # (..., C, D): what the meta classifier must tell the classes by
    loss: Tensor | float  # of the aggregation itself


class VFA(nn.Module):
    """Variational feature aggregation: gates are the same for every picture."""

    stops_rpn_gradient = True  # the proposal network does not shape the features
    box_on_raw = True  # boxes are refined from the raw RoI vector, classes read from the aggregated one
    picks = staticmethod(any_class)

    def __init__(self, width: int, vector: int, kl_weight: float):
        super().__init__()
        self.encoder, self.kl_weight = VariationalEncoder(vector), kl_weight

    def forward(self, describe: Describe, supports: Tensor, maps: Tensor) -> Gates:
        """Supports (C, k, W, h, w), query maps (B, W, H, V); the shots of a class are averaged before they are encoded."""
        vectors = describe(supports.flatten(0, 1)).mean(-1).unflatten(0, supports.shape[:2]).mean(1)
        code = self.encoder(vectors)
        gates = code.invariant.sigmoid().expand(len(maps), -1, -1)
        return Gates(gates, code.reconstruction, variational_loss(code, vectors, self.kl_weight))


class ICPE(nn.Module):
    """Information-coupled prototype elaboration: gates depend on the query picture."""

    stops_rpn_gradient = False
    box_on_raw = False
    picks = staticmethod(own_class)

    def __init__(self, width: int, vector: int, kl_weight: float):
        super().__init__()
        self.coupling, self.prototypes = InformationCoupling(width), PrototypeAggregation(vector)

    def forward(self, describe: Describe, supports: Tensor, maps: Tensor) -> Gates:
        """As VFA's. The prototype itself is the gate: the dot-product aggregator multiplies element by element."""
        coupled = self.coupling(supports.flatten(0, 1), maps)
        positions = describe(coupled.flatten(0, 1)).unflatten(0, (len(maps), *supports.shape[:2]))
        return Gates(self.prototypes(positions), positions.mean((2, -1)), 0.0)


AGGREGATIONS = {"vfa": VFA, "icpe": ICPE}
