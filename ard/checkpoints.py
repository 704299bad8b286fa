"""Training that survives a kill: model and optimiser in one file, refused when the settings have changed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch

from ard.files import atomic_write_bytes


class Checkpoint:
    """`resume` before the loop, `save` within it. A step must draw its randomness from (seed, step) alone.

    recipe: JSON-able settings of the run; loading under others raises ValueError naming the file.
    """

    def __init__(self, path: str | Path, recipe: object):
        self.path, self.recipe = Path(path), json.dumps(recipe, sort_keys=True)

    def resume(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: str = "cpu") -> int:
        """Load what is there; returns the number of finished steps (0 without a file)."""
        if not self.path.is_file():
            return 0
        try:
            saved = torch.load(self.path, weights_only=True, map_location=device)
            same = saved["recipe"] == self.recipe
        except Exception as error:
            raise ValueError(f"{self.path}: not a checkpoint of this project ({error}); delete it to start again") from error
        if not same:
            raise ValueError(f"{self.path} was made with other settings; delete it to start again")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        return saved["step"]

    def save(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        buffer = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "recipe": self.recipe},
                   buffer)
        atomic_write_bytes(self.path, buffer.getvalue())


def warm_cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Share of the learning rate at a step: linear rise over `warmup` steps, then half a cosine down to `floor`.

    >>> warm_cosine(0, 100, 10), round(warm_cosine(50, 100, 10), 2), warm_cosine(99, 100, 10)
    (0.1, 0.5, 0.02)
    """
    cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item())
    return min(1.0, (step + 1) / max(warmup, 1)) * max(cosine, floor)
