"""What customisation leaves behind: new tokens and a small change of weights, in one file to put on and take off.

Written by `ard.customize`, read by `ard.generate` (G_i of the paper's section 4.1 is base + delta).
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ard.adapters import layout, layout_hash, merged, split
from ard.files import atomic_write_bytes

BLOCK = 64  # numbers of a delta that share a scale
STEPS = 7  # of the scale on either side of 0: what fits into 4 bits
UNDO = "_ard_undo"  # attribute of a pipeline that wears a delta


class DeltaError(ValueError):
    """A delta file that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Delta:
    """Token rows (n, width) and all changes of weights as one flat vector, laid out by `layout(pipe, ...)`.

    One vector, because a safetensors header of a hundred names would be larger than the numbers of a rank-1 change. On
    disk its numbers have 4 bits, each `BLOCK` of them a scale of its own in float16, off by a fourteenth of the block's
    largest at most while that is above 1e-3: a finer number buys less likeness than a higher rank at the same size.
    """

    rows: Tensor
    vector: Tensor
    meta: dict = field(default_factory=dict)  # tokens, words, mode, modules, rank, layout (hash) ...


def save_delta(delta: Delta, path: str | Path, max_bytes: int = 60_000) -> None:
    """Write one safetensors file (metadata as a JSON string) atomically. Raises DeltaError above `max_bytes`."""
    packed, scale = _quantised(delta.vector)
    tensors = {"tokens": delta.rows.half().contiguous(), "delta": packed, "scale": scale}
    meta = {**delta.meta, "length": len(delta.vector)}
    data = save(tensors, metadata={"ard": json.dumps(meta, sort_keys=True)})
    if len(data) > max_bytes:
        raise DeltaError(f"{path}: delta of {len(data)} bytes, allowed are {max_bytes}; "
                         f"lower the rank ({delta.meta['rank']}) or choose fewer modules")
    atomic_write_bytes(path, data)


def load_delta(path: str | Path) -> Delta:
    """Read a delta file; raises DeltaError naming the file when it is missing or broken."""
    try:
        with safe_open(str(path), "pt") as file:
            meta = json.loads(file.metadata()["ard"])
            vector = _expanded(file.get_tensor("delta"), file.get_tensor("scale"), meta.pop("length"))
            return Delta(file.get_tensor("tokens"), vector, meta)
    except FileNotFoundError:
        raise DeltaError(f"{path}: no such delta; run the customise stage first") from None
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DeltaError(f"{path}: not a delta file ({error})") from None


def rounded(vector: Tensor) -> Tensor:
    """(n,) numbers as they come back from a file; rounding them again changes no step."""
    return _expanded(*_quantised(vector), len(vector))


def _quantised(vector: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) numbers as steps of -7 to 7, two in each of n / 2 bytes, and a float16 scale for each block of BLOCK."""
    blocks = F.pad(vector.detach().cpu().float(), (0, -len(vector) % BLOCK)).view(-1, BLOCK)
    scale = (blocks.abs().amax(1) / STEPS).half()
    steps = (blocks / scale.float().clamp(min=1e-30)[:, None]).round().clamp(-STEPS, STEPS).flatten()[: len(vector) + len(vector) % 2]
    low, high = (steps + STEPS).to(torch.uint8).view(-1, 2).unbind(1)
    return low | high << 4, scale


def _expanded(packed: Tensor, scale: Tensor, length: int) -> Tensor:
    """The inverse of `_quantised`, float32 (length,)."""
    steps = torch.stack([packed & 15, packed >> 4], 1).flatten()[:length].float() - STEPS
    return steps * scale.float().repeat_interleave(BLOCK)[:length]


@contextmanager
def installed_tokens(pipe, tokens: Sequence[str], rows: Tensor) -> Iterator[list[int]]:
    """Within the block the pipeline knows the new `tokens` with embeddings `rows` (n, width); yields their ids."""
    undo = _install_tokens(pipe, tokens, rows)
    try:
        yield [pipe.tokenizer.convert_tokens_to_ids(token) for token in tokens]
    finally:
        undo()


def apply_delta(pipe, delta: Delta | str | Path):
    """Put a delta on a pipeline, in place, and return the pipeline. `remove_delta` gives back the very same bytes."""
    where = "delta" if isinstance(delta, Delta) else str(delta)
    delta = delta if isinstance(delta, Delta) else load_delta(delta)
    if getattr(pipe, UNDO, None) is not None:
        raise DeltaError(f"{where}: this pipeline already wears a delta; remove_delta first")
    meta = delta.meta
    parts = layout(pipe, meta["mode"], meta["modules"], meta["rank"])
    if layout_hash(parts) != meta["layout"] or sum(torch.Size(s).numel() for _, s in parts) != delta.vector.numel():
        raise DeltaError(f"{where}: made for another base model; {meta['modules']!r} at rank {meta['rank']} does not fit")
    undo_tokens = _install_tokens(pipe, meta["tokens"], delta.rows)
    values, kept = split(delta.vector, parts), []
    setattr(pipe, UNDO, (undo_tokens, kept))  # first, so that what fails half way can be taken off
    with torch.no_grad():
        for name in dict.fromkeys(re.sub(r"\.(down|core|up)$", ".weight", name) for name in values):
            weight = _parameter(pipe, name)
            base = name.removesuffix(".weight")
            factors = [values.get(f"{base}.{part}") for part in ("down", "core", "up")]
            change = values[name] if factors[0] is None else merged(*factors)
            kept.append((weight, weight.detach().clone()))
            weight += change.to(weight.device, weight.dtype).view_as(weight)
    return pipe


def remove_delta(pipe) -> None:
    """Take the delta off again: every weight, the token table and the tokenizer are what they were, bit for bit."""
    undo_tokens, kept = getattr(pipe, UNDO, None) or (lambda: None, [])
    with torch.no_grad():
        for weight, before in kept:
            weight.copy_(before)
    undo_tokens()
    setattr(pipe, UNDO, None)


def _parameter(pipe, name: str) -> Tensor:
    prefix, rest = name.split(".", 1)
    return getattr(pipe, prefix).get_parameter(rest)


def _install_tokens(pipe, tokens: Sequence[str], rows: Tensor):
    """Swap in a tokenizer and an embedding table with the new tokens; returns the function that swaps them back."""
    tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
    table = encoder.get_input_embeddings()
    larger = copy.deepcopy(tokenizer)
    if set(tokens) & larger.get_vocab().keys() or larger.add_tokens(list(tokens)) != len(tokens):
        raise DeltaError(f"tokens {list(tokens)}: the tokenizer already knows one of them, or one stands there twice")
    ids = larger.convert_tokens_to_ids(list(tokens))
    new = nn.Embedding(max(table.num_embeddings, len(larger), *(i + 1 for i in ids)), table.embedding_dim)
    new = new.to(table.weight.device, table.weight.dtype).requires_grad_(False)
    new.weight[: table.num_embeddings] = table.weight.detach()
    new.weight[ids] = rows.to(new.weight)
    pipe.tokenizer = larger
    encoder.set_input_embeddings(new)

    def undo() -> None:
        pipe.tokenizer = tokenizer
        encoder.set_input_embeddings(table)

    return undo
