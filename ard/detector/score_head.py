"""Token logits F(x) . F~(y) and what F and F~ may be (paper, section 3.1; FACTS 1.2)."""

import torch
from torch import Tensor, nn

ABSENT = -1e4  # logit of padding tokens: finite, so that neither loss nor gradient becomes NaN


class LinearAdapter(nn.Linear):
    """The paper's: a linear map that starts as the identity."""

    def __init__(self, width: int):
        super().__init__(width, width)
        nn.init.eye_(self.weight)
        nn.init.zeros_(self.bias)

    def matrix(self) -> Tensor:
        """(d, d), which eq. 3 keeps near orthogonal."""
        return self.weight


class ScaleAdapter(nn.Module):
    """A factor for each channel, starting at 1."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight

    def matrix(self) -> Tensor:
        """(d, d) diagonal."""
        return torch.diag(self.weight)


class ZeroLinear(nn.Linear):
    """A linear map that starts at zero."""

    def __init__(self, width: int):
        super().__init__(width, width)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class MlpAdapter(nn.Module):
    """x + W2 relu(W1 x), which starts as the identity since W2 starts at 0. It has no matrix to keep orthogonal."""

    def __init__(self, width: int):
        super().__init__()
        self.hidden, self.out = nn.Linear(width, width), ZeroLinear(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.hidden(x).relu())

    def matrix(self) -> None:
        return None


ADAPTERS = {"linear": LinearAdapter, "scale": ScaleAdapter, "mlp": MlpAdapter}


class ScoreHead(nn.Module):
    """Token logits F(x) . F~(y), divided by sqrt(d) and with a bias when `scaled`. F and F~ start as the identity and are
    skipped in phase 1 (paper, section 3.2)."""

    def __init__(self, width: int, scaled: bool = True, adapter: str = "linear"):
        super().__init__()
        if adapter not in ADAPTERS:
            raise ValueError(f"adapter: expected one of {', '.join(ADAPTERS)}, found {adapter!r}")
        self.region = ADAPTERS[adapter](width)  # F
        self.token = ADAPTERS[adapter](width)  # F~
        self.bias = nn.Parameter(torch.zeros(())) if scaled else None

    def forward(self, regions: Tensor, tokens: Tensor, present: Tensor, adapted: bool) -> Tensor:
        """(B, ..., N, d) regions and (B, T, d) tokens -> (B, ..., N, T) logits."""
        if adapted:
            regions, tokens = self.region(regions), self.token(tokens)
        extra = regions.dim() - tokens.dim()
        tokens = tokens[(slice(None), *[None] * extra)]
        logits = token_logits(regions, tokens, self.bias)
        return logits.masked_fill(~present[(slice(None), *[None] * (extra + 1))], ABSENT)


def token_logits(regions: Tensor, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """Products of regions (..., N, d) and tokens (..., T, d): scaled as in MM Grounding DINO, or plain with no bias, as in
    Grounding DINO."""
    logits = regions @ tokens.transpose(-1, -2)
    return logits if bias is None else logits * regions.shape[-1] ** -0.5 + bias
