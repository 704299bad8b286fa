"""The one training loop of the detector: AdamW, schedule, clipping, moving average, and checkpoints that resume bit
by bit.

Batches are a pure function of (seed, step), so a checkpoint needs no generator state: model, optimizer, average,
step, log.
"""

import dataclasses
import io
import json
import math
import pickle
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Callable, Mapping, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from ard.detector.criterion import Targets, detection_loss
from ard.detector.prompts import Prompt
from ard.files import FileError, atomic_write_bytes, sha256_bytes, write_jsonl


class Batch(NamedTuple):
    """Packed features (B, PACKED), a prompt for each and what should be found."""

    features: Tensor
    prompt: Prompt
    targets: Targets


@dataclass(frozen=True)
class TrainSettings:
    """Optimisation; the defaults are for training from scratch (fine-tuning wants a learning rate of 1e-4)."""

    steps: int
    batch_size: int = 32
    learning_rate: float = 4e-4
    schedule: str = "cosine"  # or "step": a tenth of the rate after `drop_at` of the steps, as published
    drop_at: float = 0.333  # share of the steps; published: epoch 10 of 30
    warmup: int = 100  # steps
    weight_decay: float = 1e-4
    clip: float = 0.1  # gradient norm, as in Grounding DINO
    losses: str = "groundingdino"  # key of criterion.SETTINGS
    ema: float = 0.0  # decay of the averaged weights that are kept at the end; 0 keeps the last ones
    autocast: bool = False  # bfloat16 where the machine is faster with it
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 200

    def __post_init__(self):
        if self.schedule not in ("cosine", "step"):
            raise ValueError(f"schedule: expected 'cosine' or 'step', found {self.schedule!r}")


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Rate of step 0, 1, ...: linear warm-up, then cosine to zero or one drop.

    >>> s = TrainSettings(steps=100, learning_rate=1.0, schedule="step", drop_at=0.5, warmup=4)
    >>> [learning_rate(s, t) for t in (0, 3, 49, 50)]
    [0.25, 1.0, 1.0, 0.1]
    """
    warm = min(1.0, (step + 1) / max(settings.warmup, 1))
    if settings.schedule == "step":
        return settings.learning_rate * warm * (0.1 if step >= settings.drop_at * settings.steps else 1.0)
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def supervised_loss(settings: TrainSettings) -> Callable[[nn.Module, Batch], tuple[Tensor, dict[str, float]]]:
    """The detection loss of a batch under the published setting that `settings.losses` names."""
    return lambda model, batch: detection_loss(model.match(batch.features, batch.prompt), batch.targets, settings.losses)


def train(model: nn.Module, make_batch: Callable[[np.random.Generator], Batch], settings: TrainSettings, folder: str | Path,
          loss_of: Callable | None = None, name: str = "train", recipe: Mapping[str, object] = MappingProxyType({})) -> list[dict]:
    """Train the parameters that require gradients; returns the log rows, also in `folder`/log.jsonl.

    `make_batch(rng)` draws a batch from the generator of its step. Kill it at any moment: the next call goes on from
    the last checkpoint and ends in the same bytes. recipe: what decides batches and losses beside the settings, as JSON
    values. Raises FileError when the checkpoint is torn, or was made with other settings, another recipe or other frozen
    weights.
    """
    folder, loss_of = Path(folder), loss_of or supervised_loss(settings)
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    average = {n: p.detach().clone() for n, p in weights.items()} if settings.ema else {}
    told = {"settings": dataclasses.asdict(settings), "recipe": json.loads(json.dumps(dict(recipe))), "frozen weights": _digest(model)}
    step, rows = _restore(folder / "checkpoint.pt", told, weights, optimizer, average)
    model.train()
    sums: dict[str, float] = {}
    with tqdm(total=settings.steps, initial=step, desc=name, mininterval=2) as bar:
        while step < settings.steps:
            log = _one_step(model, make_batch, settings, loss_of, optimizer, weights, step)
            for key, value in average.items():
                value.lerp_(weights[key].detach(), 1 - min(settings.ema, (1 + step) / (10 + step)))
            sums = {k: sums.get(k, 0.0) + v for k, v in log.items()}
            step += 1
            bar.update()
            if step % settings.log_every == 0 or step == settings.steps:
                count = (step - 1) % settings.log_every + 1
                rows.append({"step": step, **{k: round(v / count, 6) for k, v in sums.items()}})
                bar.set_postfix(loss=f"{rows[-1]['loss']:.3f}")
                sums = {}
            if step % (settings.log_every * max(settings.checkpoint_every // settings.log_every, 1)) == 0 or step == settings.steps:
                _save(folder, told, step, rows, weights, optimizer, average)
    write_jsonl(folder / "log.jsonl", rows)
    with torch.no_grad():
        for key, value in average.items():
            weights[key].copy_(value)
    model.eval()
    return rows


def _one_step(model, make_batch, settings, loss_of, optimizer, weights, step) -> dict[str, float]:
    torch.manual_seed(settings.seed * 1_000_003 + step)
    batch = make_batch(np.random.default_rng([settings.seed, step]))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, step)
    device = next(iter(weights.values())).device.type
    with torch.autocast(device, torch.bfloat16) if settings.autocast else nullcontext():
        loss, log = loss_of(model, batch)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"loss is {float(loss)} at step {step}; lower the learning rate")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(weights.values(), settings.clip)
    optimizer.step()
    return log


def _digest(model: nn.Module) -> str:
    """Hash of what training leaves as it is."""
    frozen = {name: p.detach().contiguous() for name, p in model.named_parameters() if not p.requires_grad}
    return sha256_bytes("".join(name + sha256_bytes(save({"": p})) for name, p in frozen.items()).encode())


def _save(folder: Path, told: dict, step: int, rows: list[dict], weights, optimizer, average) -> None:
    """One file holds everything, so that it can never be half new and half old; the readable log follows it."""
    buffer = io.BytesIO()
    torch.save({**told, "step": step, "rows": rows, "optimizer": optimizer.state_dict(),
                "weights": {n: p.detach() for n, p in weights.items()}, "average": average}, buffer)
    atomic_write_bytes(folder / "checkpoint.pt", buffer.getvalue())
    write_jsonl(folder / "log.jsonl", rows)


def _restore(path: Path, told: dict, weights, optimizer, average) -> tuple[int, list[dict]]:
    if not path.is_file():
        return 0, []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise FileError(f"{path}: no checkpoint ({error}); delete it to train anew") from None
    other = [key for key in told if state.get(key) != told[key]] + ["weights"] * (state["weights"].keys() != weights.keys())
    if other:
        raise FileError(f"{path}: made with other {' and '.join(other)}; delete it to train anew")
    with torch.no_grad():
        for key, value in state["weights"].items():
            weights[key].copy_(value)
        for key, value in state["average"].items():
            average[key].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["rows"]
