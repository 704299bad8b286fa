"""Both training phases with the validation split looked at along the way; features of AD+ kept, so that a killed run
goes on.

Between `ard.detector.phases` and the notebooks 06 and 07 (paper, section 3.2). The test split is never read here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save

from ard.baselines.methods import pick_queries, run_method
from ard.detector import phases
from ard.detector.features import FeatureCache
from ard.detector.method import DetectorMethod
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.phases import PhaseData
from ard.detector.train import TrainSettings
from ard.files import atomic_write_bytes, read_jsonl, write_jsonl
from ard.metrics import evaluate, table2_row, to_csv
from ard.records import Dataset

COLUMNS = ("box_acc", "recall_1", "recall_1_ungated", "same_class_recall_1", "same_class_chance")


class Validation:
    """Recall@1 of a detector on a few queries of a split against its whole gallery."""

    def __init__(self, dataset: Dataset, n_queries: int, split: str = "val"):
        if split == "test":
            raise ValueError("the test split is for ard.evaluation only: looking at it here would choose by it")
        samples = dataset.samples[split]
        chosen = {s.sample_id for s in pick_queries(samples, -(-n_queries // len({s.concept_id for s in samples})))}
        self.dataset, self.split, self.cache = dataset, split, FeatureCache()
        self.samples = [s for s in samples if s.sample_id in chosen][:n_queries]

    def __call__(self, model: AttributionGroundingDinoForObjectDetection) -> dict[str, float]:
        """`COLUMNS` of Table 2 for the model as it is now; its mode (training or not) is put back."""
        training = model.training
        method = DetectorMethod(model, self.cache)  # a new one: projected features change as the model learns
        answers = run_method(method, self.dataset, self.split, self.samples, "validation")
        model.train(training)
        row = table2_row("", "", evaluate(answers, self.dataset, self.split))
        return {name: row[name] for name in COLUMNS}


@dataclass(frozen=True)
class Watch:
    """Ask `check(model)` before step 0, every `every` steps, and keep its rows in `folder`/validation.jsonl."""

    check: Callable
    every: int
    folder: Path

    @property
    def file(self) -> Path:
        return Path(self.folder) / "validation.jsonl"

    def rows(self) -> list[dict]:
        return read_jsonl(self.file)[0] if self.file.is_file() else []

    def ask(self, model, step: int) -> None:
        """Add the row of `step`, unless a run that was killed has left it."""
        rows = self.rows()
        if step not in {row["step"] for row in rows}:
            # called from within a training step: what is measured must not be in its reduced precision
            with torch.no_grad(), torch.random.fork_rng(), torch.autocast("cpu", enabled=False):
                row = {"step": step, **self.check(model)}
            write_jsonl(self.file, [*rows, row])

    def wrap(self, loss_of: Callable, steps: int) -> Callable:
        """`loss_of` that asks first whenever its step is due; a resumed run counts on from its checkpoint."""
        step = resumed_at(self.folder)

        def loss(model, batch):
            nonlocal step
            if step % self.every == 0 and step < steps:
                self.ask(model, step)
            step += 1
            return loss_of(model, batch)

        return loss


def resumed_at(folder: str | Path) -> int:
    """The step that the training loop will go on from in `folder`: that of its checkpoint, else 0."""
    file = Path(folder) / "checkpoint.pt"
    return int(torch.load(file, map_location="cpu", weights_only=True)["step"]) if file.is_file() else 0


def watched_phase1(model, data: PhaseData, names: Sequence[str], settings: TrainSettings, watch: Watch,
                   other_names: int = 4, rivals: int = 0, absent: float = 0.0, **told) -> tuple[list[dict], list[dict]]:
    """`phases.train_phase1` with a watch: ARD- in place; returns rows of the loss and rows of the validation."""
    log = phases.train_phase1(model, data, names, settings, watch.folder, other_names, rivals, absent,
                              partial(watch.wrap, steps=settings.steps), **told)
    watch.ask(model, settings.steps)
    return log, watch.rows()


def watched_phase2(model, data: PhaseData, settings: TrainSettings, watch: Watch, k: int = 4, lambda_cls: float = 1.0,
                   lambda_reg: float = 0.5, adapter: str = "linear", **told) -> tuple[list[dict], list[dict]]:
    """`phases.train_phase2` with a watch: ARD in place, F and F~ alone; returns the rows of loss and validation."""
    log = phases.train_phase2(model, data, settings, watch.folder, k, lambda_cls, lambda_reg, adapter,
                              partial(watch.wrap, steps=settings.steps), **told)
    watch.ask(model, settings.steps)
    return log, watch.rows()


def stored_phase_data(dataset: Dataset, split: str, file: str | Path, n_samples: int = 0) -> PhaseData:
    """`phases.load_phase_data` of the split's first `n_samples` samples (0: all), from `file` when a run left it there.

    `file` must lie in a work folder, which is dropped when dataset or code change.
    """
    samples = dataset.samples[split][: n_samples or None]
    file = Path(file)
    if not file.is_file():
        data = phases.load_phase_data(dataset, split, FeatureCache(), samples)
        tensors = {"gallery": data.gallery, "queries": data.queries, "boxes": torch.from_numpy(data.boxes),
                   "source": torch.from_numpy(data.source)}
        atomic_write_bytes(file, save({name: t.contiguous() for name, t in tensors.items()}))
    stored = load(file.read_bytes())
    shown = tuple(frozenset(o.class_name for o in image.objects) for image in dataset.gallery[split])
    return PhaseData(stored["gallery"], stored["queries"], stored["boxes"].numpy(),
                     np.asarray(stored["source"]), tuple(s.class_name for s in samples), shown)


def changed(before: torch.nn.Module, after: torch.nn.Module) -> set[str]:
    """Names of the parameters in which two models differ, those that only one of them has among them."""
    old, new = (dict(model.named_parameters()) for model in (before, after))
    return {name for name in old.keys() | new.keys() if name not in old or name not in new or not torch.equal(old[name], new[name])}


def csv_of(rows: Sequence[dict]) -> str:
    """Rows of one form as CSV, columns in their order."""
    return to_csv(rows, list(rows[0]))


def model_card(name: str, what: str, numbers: dict[str, float]) -> str:
    """A card of a saved detector, Markdown: what it is, what it reads, how it did on validation."""
    lines = [f"# {name}", "", f"{name} is {what}.", "", "Load it with `ard.detector.model.load_detector`. It is a small MM "
             "Grounding DINO for pictures of 64 x 64", "pixels of the mini world, not for photographs. The frozen image and "
             "text encoders come from their packages.", "", "| on validation | |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {key} | {value:.4f} |" for key, value in numbers.items()), ""])
