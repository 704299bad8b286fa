"""Which weights a customisation may change, and how they change while it learns: LoRA, whole K/V, everything, none.

Used by `ard.customize` while it trains and by `ard.deltas` to read and write the result.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODES = ("lora", "kv", "full", "token")


def layout(pipe, mode: str, modules: str, rank: int) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the parts of a delta's vector, in order.

    'lora': `<module>.down` (rank, inputs) and `<module>.up` (outputs, rank) of each Linear or Conv2d that the pattern
    `modules` finds (searched in names like `unet.mid_block.attentions.0...attn2.to_k`), and between them `<module>.core`
    (rank, rank, height, width) of a Conv2d with a kernel: a Tucker decomposition, so that the kernel's places do not
    multiply the inputs (LoCon of LyCORIS; Yeh et al. 2024). 'kv' and 'full': whole parameters (cross-attention keys and
    values; everything in the UNet and the text encoder but its tokens); 'token': nothing.
    """
    if mode not in MODES:
        raise ValueError(f"customisation mode {mode!r}: expected one of {', '.join(MODES)}")
    parts: list[tuple[str, tuple[int, ...]]] = []
    for prefix in ("unet", "text_encoder"):
        model = getattr(pipe, prefix)
        if mode == "lora":
            for name, module in model.named_modules():
                if isinstance(module, nn.Linear | nn.Conv2d) and re.search(modules, f"{prefix}.{name}"):
                    outputs, inputs, *kernel = module.weight.shape
                    if math.prod(kernel) > 1:
                        parts.append((f"{prefix}.{name}.core", (rank, rank, *kernel)))
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
    return int(0.57 * sum(torch.Size(shape).numel() for _, shape in parts)) + 2 * tokens * width + 1500


def split(vector: Tensor, parts: list) -> dict[str, Tensor]:
    """The named parts of a flat vector, as float32 views of their shapes."""
    sizes = [torch.Size(shape).numel() for _, shape in parts]
    pieces = vector.float().split(sizes) if sizes else ()
    return {name: piece.view(shape) for (name, shape), piece in zip(parts, pieces)}


@contextmanager
def learned_rows(text_encoder, ids: list[int], rows: nn.Parameter) -> Iterator[None]:
    """Within the block the embeddings of the tokens `ids` come from `rows` (G, n, width); no other row can change.

    A batch holds the sequences of G lessons one lesson after the other, equally many of each.
    """

    def replace(_, inputs, output):
        mine = rows.to(output).repeat_interleave(len(output) // len(rows), 0)
        for n, token in enumerate(ids):
            output = torch.where((inputs[0] == token)[..., None], mine[:, n, None], output)
        return output

    handle = text_encoder.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def learned_weights(pipe, mode: str, parts: list, generators: Sequence[torch.Generator]) -> Iterator[tuple[list, Callable]]:
    """Within the block the parts of G deltas are in use and can be trained; afterwards all is as it was, bit for bit.

    G is the number of `generators`; a batch holds the samples of G lessons one lesson after the other, equally many of
    each. Yields the parameters, (G, *shape) each for LoRA, and a function that gives the deltas' flat vectors (G, numbers)
    float32 at the time of its call. Raises ValueError for several lessons in a mode that changes the weights themselves.
    """
    owner = {name: (getattr(pipe, name.split(".", 1)[0]), name.split(".", 1)[1]) for name, _ in parts}
    if mode in ("kv", "full") and len(generators) > 1:
        raise ValueError(f"customisation mode {mode!r} changes the weights themselves: one lesson at a time")
    if mode in ("lora", "token"):
        change, handles = {}, []
        for name, shape in parts:
            starts = [(torch.rand(shape, generator=g) * 2 - 1) / math.prod(shape[1:]) ** 0.5 for g in generators]
            start = torch.zeros(len(generators), *shape) if name.endswith(".up") else torch.stack(starts)
            change[name] = nn.Parameter(start.to(pipe.unet.device))
        for name in change:
            if name.endswith(".down"):
                model, path = owner[name]
                module = model.get_submodule(path.removesuffix(".down"))
                core, up = (change.get(name.removesuffix("down") + part) for part in ("core", "up"))
                handles.append(module.register_forward_hook(_low_rank(change[name], core, up)))
        try:
            yield list(change.values()), lambda: _flat(change.values(), len(generators))
        finally:
            for handle in handles:
                handle.remove()
        return
    weights = [model.get_parameter(path) for model, path in owner.values()]
    before = [weight.detach().clone() for weight in weights]
    try:
        yield weights, lambda: _flat([(w.float() - b.float())[None] for w, b in zip(weights, before)], 1)
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before):
                weight.copy_(value)


def _flat(tensors, lessons: int) -> Tensor:
    """Tensors (G, ...) as one (G, numbers)."""
    pieces = [t.detach().float().cpu().flatten(1) for t in tensors]
    return torch.cat(pieces, 1) if pieces else torch.zeros(lessons, 0)


def merged(down: Tensor, core: Tensor | None, up: Tensor) -> Tensor:
    """What the factors add to a weight: (outputs, inputs), or (outputs, inputs, height, width) with a core."""
    return up @ down if core is None else torch.einsum("or,rshw,si->oihw", up, core, down)


def _low_rank(down: nn.Parameter, core: nn.Parameter | None, up: nn.Parameter) -> Callable:
    """Forward hook that adds up(core(down(x))) to the output of a Linear or Conv2d (LoRA, Hu et al. 2021, alpha = rank),
    for each of G lessons with its own factors (G, *shape)."""
    lessons, rank, inputs = down.shape

    def linear(x):
        grouped = x.reshape(lessons, -1, inputs)
        return (grouped @ down.to(x).mT @ up.to(x).mT).reshape(*x.shape[:-1], -1)

    def convolution(x, module):
        batch, size = len(x) // lessons, x.shape[-2:]
        inner = down.to(x)[:, None] @ x.reshape(lessons, batch, inputs, -1)
        if core is not None:  # the lessons as groups of channels
            inner = inner.transpose(0, 1).reshape(batch, lessons * rank, *size)
            kernel = core.to(x).flatten(0, 1)
            inner = F.conv2d(inner, kernel, None, module.stride, module.padding, module.dilation, groups=lessons)
            size = inner.shape[-2:]
            inner = inner.reshape(batch, lessons, rank, -1).transpose(0, 1)
        return (up.to(x)[:, None] @ inner).reshape(len(x), -1, *size)

    def add(module, given, output):
        return output + (linear(given[0]) if isinstance(module, nn.Linear) else convolution(given[0], module))

    return add
