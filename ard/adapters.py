"""Which weights a customisation may change, and how they change while it learns: LoRA, whole K/V, everything, none.

Used by `ard.customize` while it trains and by `ard.deltas` to read and write the result.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODES = ("lora", "kv", "full", "token")


def layout(pipe, mode: str, modules: str, rank: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the parts of a delta's vector, in order.

    'lora': `<module>.down` (rank, inputs) and `<module>.up` (outputs, rank) of each Linear or Conv2d that the pattern
    `modules` finds (searched in names like `unet.mid_block.attentions.0...attn2.to_k`); 'kv' and 'full': whole
    parameters (cross-attention keys and values; everything in the UNet and
    the text encoder but its tokens); 'token': nothing.
    """
    if mode not in MODES:
        raise ValueError(f"customisation mode {mode!r}: expected one of {', '.join(MODES)}")
    parts: list[tuple[str, tuple[int, ...]]] = []
    for prefix in ("unet", "text_encoder"):
        model = getattr(pipe, prefix)
        if mode == "lora":
            for name, module in model.named_modules():
                if isinstance(module, nn.Linear | nn.Conv2d) and re.search(modules, f"{prefix}.{name}"):
                    outputs, inputs = module.weight.flatten(1).shape
                    parts += [(f"{prefix}.{name}.down", (rank, inputs)), (f"{prefix}.{name}.up", (outputs, rank))]
        elif mode in ("kv", "full"):
            for name, value in model.named_parameters():
                wanted = re.search(r"attn2\.to_[kv]\.weight$", name) and prefix == "unet" if mode == "kv" \
                    else value is not pipe.text_encoder.get_input_embeddings().weight
                parts += [(f"{prefix}.{name}", tuple(value.shape))] if wanted else []
    if not parts and mode != "token":
        raise ValueError(f"customisation mode {mode!r}: no module of this pipeline matches {modules!r}")
    return parts


def layout_hash(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def delta_bytes(parts: list, tokens: int, width: int) -> int:
    """Size of a delta's file in bytes, give or take its metadata (1.5 kB are allowed for it)."""
    return int(1.07 * sum(torch.Size(shape).numel() for _, shape in parts)) + 2 * tokens * width + 1500


def split(vector: Tensor, parts: list) -> dict[str, Tensor]:
    """The named parts of a flat vector, as float32 views of their shapes."""
    sizes = [torch.Size(shape).numel() for _, shape in parts]
    pieces = vector.float().split(sizes) if sizes else ()
    return {name: piece.view(shape) for (name, shape), piece in zip(parts, pieces)}


@contextmanager
def learned_rows(text_encoder, ids: list[int], rows: nn.Parameter) -> Iterator[None]:
    """Within the block the embeddings of the tokens `ids` come from `rows` (n, width); no other row can change."""

    def replace(_, inputs, output):
        for row, token in zip(rows, ids):
            output = torch.where((inputs[0] == token)[..., None], row.to(output), output)
        return output

    handle = text_encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def learned_weights(pipe, mode: str, parts: list, generator: torch.Generator) -> Iterator[tuple[list, Callable]]:
    """Within the block the parts of a delta are in use and can be trained; afterwards all is as it was, bit for bit.

    Yields the parameters and a function that gives the delta's flat vector (float32) at the time of its call.
    """
    owner = {name: (getattr(pipe, name.split(".", 1)[0]), name.split(".", 1)[1]) for name, _ in parts}
    if mode == "lora":
        change, handles = {}, []
        for name, shape in parts:
            start = (torch.rand(shape, generator=generator) * 2 - 1) / shape[1] ** 0.5
            start = start if name.endswith(".down") else torch.zeros(shape)
            change[name] = nn.Parameter(start.to(pipe.unet.device))
        for name in change:
            if name.endswith(".down"):
                model, path = owner[name]
                module = model.get_submodule(path.removesuffix(".down"))
                up = change[name.removesuffix("down") + "up"]
                handles.append(module.register_forward_hook(_low_rank(change[name], up)))
        try:
            yield list(change.values()), lambda: _flat(change.values())
        finally:
            for handle in handles:
                handle.remove()
        return
    weights = [model.get_parameter(path) for model, path in owner.values()]
    before = [weight.detach().clone() for weight in weights]
    try:
        yield weights, lambda: _flat(w.float() - b.float() for w, b in zip(weights, before))
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before):
                weight.copy_(value)


def _flat(tensors) -> Tensor:
    pieces = [t.detach().float().cpu().flatten() for t in tensors]
    return torch.cat(pieces) if pieces else torch.zeros(0)


def _low_rank(down: nn.Parameter, up: nn.Parameter) -> Callable:
    """Forward hook that adds up(down(x)) to a Linear's or Conv2d's output (LoRA, Hu et al. 2021, with alpha = rank)."""

    def add(module, inputs, output):
        x = inputs[0]
        if isinstance(module, nn.Linear):
            return output + F.linear(F.linear(x, down.to(x)), up.to(x))
        kernel = down.to(x).view(-1, *module.weight.shape[1:])
        inner = F.conv2d(x, kernel, None, module.stride, module.padding, module.dilation)
        return output + F.conv2d(inner, up.to(x)[..., None, None])

    return add
