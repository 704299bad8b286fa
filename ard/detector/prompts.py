"""Prompts: phrases of frozen text tokens with an optional exemplar token right after each, and what is derived from
them.

A prompt is the query side of the detector (FACTS 1.2, 2): "cat <exemplar> . dog .", masks block-diagonal by phrase.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, NamedTuple, Sequence

import torch
from torch import Tensor

from ard.backbones import minilm
from ard.detector.features import REGION

TEXT_SIZE = 384
PAD, TEXT, EXEMPLAR, DELIMITER = 0, 1, 2, 3
# how token probabilities become a region's score (`ard.detector.score`); the last is the released code's, for ablations
SCORE_RULES = ("mean", "product", "text", "exemplar", "released")
FIRST, LAST = -2, -3  # "phrases" of the tokens at the ends of a caption


@dataclass(frozen=True, eq=False)
class Phrase:
    """A class name and/or the region vector (REGION,) of an exemplar; at least one of them."""

    name: str | None = None
    exemplar: Tensor | None = None

    def __post_init__(self):
        if self.name is None and self.exemplar is None:
            raise ValueError("a phrase needs a class name, an exemplar or both")


class Prompt(NamedTuple):
    """A batch of prompts of T tokens: frozen text features, frozen region vectors (0 elsewhere), token kind, phrase
    index."""

    text: Tensor  # (B, T, 384)
    exemplar: Tensor  # (B, T, REGION)
    kind: Tensor  # (B, T) PAD, TEXT, EXEMPLAR or DELIMITER
    phrase: Tensor  # (B, T) index of the phrase within its prompt, -1 for padding, FIRST and LAST at the ends

    @property
    def present(self) -> Tensor:
        """(B, T) bool: not padding."""
        return self.kind != PAD

    def expand(self, n: int) -> "Prompt":
        """The same single prompt for n images."""
        return Prompt(*(t.expand(n, *t.shape[1:]) for t in self))

    def take(self, rows: Tensor) -> "Prompt":
        """Chosen rows of the batch."""
        return Prompt(*(t[rows] for t in self))


@lru_cache(maxsize=4096)
@torch.no_grad()
def text_tokens(name: str) -> Tensor:
    """Frozen MiniLM features (n, 384) of a class name's n word pieces and, last, of its delimiter "."; ("" has only
    that).

    Each phrase is read alone: with block-diagonal masks the phrases of a caption never see each other anyway.
    """
    model, tokenizer = minilm()
    ids = tokenizer(f"{name} .", return_tensors="pt")
    return model(**ids).last_hidden_state[0, 1:-1].clone()


def build_prompt(
    prompts: Sequence[Sequence[Phrase]],
    text_of: Callable[[str], Tensor] = text_tokens,
    sizes: tuple[int, int] = (TEXT_SIZE, REGION),
    ends: tuple[Tensor, Tensor] | None = None,
) -> Prompt:
    """Lay out a batch of prompts, padded to the longest.

    text_of: features of a name's word pieces and, last, its delimiter. sizes: of text and of exemplar vectors. ends: text
    features put before the first and behind the last phrase, which see only themselves.
    """
    rows = []
    for phrases in prompts:
        row = [] if ends is None else [(DELIMITER, FIRST, ends[0])]
        for index, phrase in enumerate(phrases):
            *words, delimiter = text_of(phrase.name or "")
            row += [(TEXT, index, word) for word in words]
            row += [(EXEMPLAR, index, phrase.exemplar)] if phrase.exemplar is not None else []
            row += [(DELIMITER, index, delimiter)]
        rows.append(row if ends is None else [*row, (DELIMITER, LAST, ends[1])])
    batch, length = len(rows), max((len(row) for row in rows), default=0)
    device = next((vector.device for row in rows for *_, vector in row), None)
    text, exemplar = (torch.zeros(batch, length, size, device=device) for size in sizes)
    kind = torch.zeros(batch, length, dtype=torch.long, device=device)
    phrase = torch.full((batch, length), -1, device=device)
    for i, row in enumerate(rows):
        for j, (what, index, vector) in enumerate(row):
            kind[i, j], phrase[i, j] = what, index
            (exemplar if what == EXEMPLAR else text)[i, j] = vector
    return Prompt(text, exemplar, kind, phrase)


def phrase_attention(prompt: Prompt) -> Tensor:
    """(B, T, T) bool: tokens of one phrase see each other; padding sees only itself."""
    same = prompt.phrase[:, :, None] == prompt.phrase[:, None, :]
    return same & prompt.present[:, None, :] | torch.eye(prompt.phrase.shape[1], dtype=torch.bool, device=prompt.phrase.device)


def positions(prompt: Prompt) -> Tensor:
    """(B, T) position within the phrase, from 0; an exemplar token stands between the last word and the delimiter."""
    index = torch.arange(prompt.phrase.shape[1], device=prompt.phrase.device).expand_as(prompt.phrase)
    starts = torch.ones_like(prompt.phrase, dtype=torch.bool)
    starts[:, 1:] = prompt.phrase[:, 1:] != prompt.phrase[:, :-1]
    return index - torch.where(starts, index, 0).cummax(1).values


def phrase_map(prompt: Prompt, kinds: tuple[int, ...] = (TEXT, EXEMPLAR)) -> Tensor:
    """(B, P, T) float: 1 on the tokens of these kinds in each phrase: with both kinds it is the target map of the
    loss."""
    count = int(prompt.phrase.max()) + 1 if prompt.phrase.numel() else 0
    chosen = torch.isin(prompt.kind, torch.tensor(kinds, device=prompt.kind.device))
    wanted = torch.arange(count, device=prompt.phrase.device)[None, :, None]
    return ((prompt.phrase[:, None, :] == wanted) & chosen[:, None, :]).float()
