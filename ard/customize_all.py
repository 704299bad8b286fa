"""Every exemplar of a list customised, a few side by side on each core; killed at any moment, it goes on.

Between `ard.customize`, which learns one, and notebook 03.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import groupby
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ard.adapters import delta_bytes, layout
from ard.customize import Concept, CustomizeConfig, Lesson, check_lesson, customize_together, item_seed
from ard.deltas import Delta, save_delta
from ard.exemplars import Exemplar, read_mask
from ard.files import Ledger, sha256_bytes, sha256_file, write_jsonl
from ard.generator import load_pipeline
from ard.geometry import Transform
from ard.records import RecordError, read_image

Job = list[tuple[Exemplar, str]]  # exemplars learned together, each with its token
_worker: dict = {}  # the pipeline of a worker process


def groups(exemplars: Sequence[Exemplar], share_images: bool) -> list[list[Exemplar]]:
    """Exemplars learned together: each alone (the paper), or all of one image as in Break-a-Scene."""
    if not share_images:
        return [[e] for e in exemplars]
    together: dict[str, list[Exemplar]] = {}
    for exemplar in exemplars:
        together.setdefault(exemplar.file, []).append(exemplar)
    return list(together.values())


def customize_all(pipe, exemplars: Sequence[Exemplar], root: str | Path, out: str | Path, config: CustomizeConfig,
                  ledger: Ledger, seed: int = 0, share_images: bool = False, max_bytes: int = 60_000,
                  prior=None, workers: int = 1, together: int = 1) -> tuple[list[dict], list[dict]]:
    """One delta file per exemplar (or per image) in `out`; returns rows of finished concepts and rows of failures.

    Files of exemplars are relative to `root`. Finished items stand in `ledger` and are not learned again; killed at any
    moment, the next call redoes the items in work and ends in the same bytes. With `workers` above 1, `pipe` is the
    folder of a generator, which each process loads for itself. `together`: items that share the passes through the
    frozen model, always the same ones. Writes `deltas.jsonl` and `failed.jsonl`.
    """
    if workers > 1 and not isinstance(pipe, (str, Path)):
        raise ValueError("customize: several workers need the folder of the generator, not the pipeline itself")
    folder, pipe = (pipe, load_pipeline(pipe)) if isinstance(pipe, (str, Path)) else (None, pipe)
    jobs = [[(e, f"<v{n}>") for n, e in enumerate(job, start=1)] for job in groups(exemplars, share_images)]
    out, rows, failed = Path(out), [], []
    if not jobs:
        raise ValueError("no exemplars to customise; look at the counts of the exemplar stage")
    _check_size(pipe, config, max(map(len, jobs)), max_bytes)
    recipe = sha256_bytes(json.dumps([asdict(config), seed, share_images, together], sort_keys=True).encode())[:16]
    todo = [batch for batch in batches(jobs, together) if not all(_done(job, out, ledger, recipe) for job in batch)]
    learn = partial(_learn, root=Path(root), out=out, config=config, seed=seed, prior=prior, max_bytes=max_bytes)
    reasons = {}
    results = tqdm(_results(learn, todo, pipe, folder, workers), "customize", len(todo), mininterval=5)
    for job, reason in (pair for batch, found in zip(todo, results) for pair in zip(batch, found)):
        key = job[0][0].exemplar_id
        if reason:
            reasons[key] = reason
        elif not _done(job, out, ledger, recipe):
            ledger.add(key, sha256=sha256_file(_file(job, out)), recipe=recipe)
    for job in jobs:
        reason = reasons.get(job[0][0].exemplar_id)
        for e, token in job:
            if reason:
                failed.append({"exemplar_id": e.exemplar_id, "file": e.file, "reason": reason})
            else:
                rows.append({"exemplar_id": e.exemplar_id, "class_name": e.class_name, "token": token,
                             "delta": _file(job, out).name})
    write_jsonl(out / "deltas.jsonl", rows)
    write_jsonl(out / "failed.jsonl", failed)
    return rows, failed


def batches(jobs: Sequence[Job], together: int) -> list[list[Job]]:
    """Jobs learned side by side, at most `together`: neighbours with equally many exemplars."""
    alike = (list(group) for _, group in groupby(jobs, key=len))
    return [group[i : i + together] for group in alike for i in range(0, len(group), together)]


def _results(learn, todo: list[list[Job]], pipe, folder, workers: int) -> Iterable[list[str]]:
    """The reason of failure, or "", of each job of each batch in order."""
    if workers <= 1:
        return (learn(batch, pipe=pipe) for batch in todo)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (str(folder),))
    return _closing(pool, pool.map(partial(_learn_in_worker, learn), todo))


def _closing(pool: ProcessPoolExecutor, results: Iterable) -> Iterable:
    try:
        yield from results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(folder: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # one process a core is twice as fast as one process on two
    _worker["pipe"] = load_pipeline(folder)


def _end_with_parent() -> None:
    """A parent that is killed cannot shut its pool down; without this its workers would learn on, for nobody."""
    wait([parent_process().sentinel])
    os._exit(1)


def _learn_in_worker(learn, batch: list[Job]) -> list[str]:
    return learn(batch, pipe=_worker["pipe"])


def _learn(batch: list[Job], pipe, root: Path, out: Path, config: CustomizeConfig, seed: int, prior, max_bytes: int) -> list[str]:
    """Customise the jobs of a batch and save their deltas; for each "" or the reason why it cannot be learned."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in the same order on any machine, with any number of workers
    reasons, lessons = [""] * len(batch), {}
    try:
        for n, job in enumerate(batch):
            try:
                lessons[n] = _lesson(job, root, seed, pipe.unet.config.sample_size * pipe.vae_scale_factor)
                check_lesson(lessons[n], config, prior)
            except (RecordError, ValueError) as error:
                reasons[n] = str(error)
                lessons.pop(n, None)
        for n, learned in _taught(pipe, lessons, config, prior):
            if isinstance(learned, ValueError):
                reasons[n] = str(learned)
            else:
                save_delta(learned, _file(batch[n], out), max_bytes)
    finally:
        torch.set_num_threads(threads)
    return reasons


def _lesson(job: Job, root: Path, seed: int, side: int) -> Lesson:
    image, masks = squared(read_image(root / job[0][0].file), [read_mask(root / e.mask_file) for e, _ in job], side)
    concepts = [Concept(token, e.class_name, mask) for (e, token), mask in zip(job, masks)]
    return Lesson(image, concepts, item_seed(seed, job[0][0].exemplar_id))


def squared(image: np.ndarray, masks: Sequence[np.ndarray], side: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The largest square of a picture (H, W, 3) uint8 that has the middle of its masks (H, W) bool, or comes nearest to it, in its own
    middle, brought to the `side` in pixels that a generator draws; the masks with it. What is so already stays as it is."""
    height, width = image.shape[:2]
    if height == width == side or any(mask.shape != (height, width) for mask in masks) or not np.any(masks):
        return image, list(masks)  # `check_lesson` says what is wrong with it
    short, (ys, xs) = min(height, width), np.nonzero(np.any(masks, 0))
    left, top = (int(np.clip(round((at.min() + at.max() + 1 - short) / 2), 0, size - short)) for at, size in ((xs, width), (ys, height)))
    moved = Transform(width, height).crop(left, top, short, short).resize(side, side)
    return moved.image(image), [moved.image(np.where(mask, 255, 0).astype(np.uint8)) > 127 for mask in masks]


def _taught(pipe, lessons: dict[int, Lesson], config: CustomizeConfig, prior) -> list[tuple[int, Delta | ValueError]]:
    """The delta of each lesson, or why there is none; when one spoils a batch, each is learned alone."""
    if not lessons:
        return []
    try:
        return list(zip(lessons, customize_together(pipe, list(lessons.values()), config, prior)))
    except ValueError as error:
        if len(lessons) == 1:
            return [(next(iter(lessons)), error)]
        return [found for n, lesson in lessons.items() for found in _taught(pipe, {n: lesson}, config, prior)]


def _file(job: Job, out: Path) -> Path:
    return out / f"{job[0][0].exemplar_id}.safetensors"


def _done(job: Job, out: Path, ledger: Ledger, recipe: str) -> bool:
    key, path = job[0][0].exemplar_id, _file(job, out)
    done = key in ledger and path.is_file() and ledger[key].get("sha256") == sha256_file(path)
    if done and ledger[key].get("recipe") != recipe:
        raise ValueError(f"{path} was made with other settings; delete {ledger.path} and its folder to start again")
    return done


def _check_size(pipe, config: CustomizeConfig, concepts: int, max_bytes: int) -> None:
    parts = layout(pipe, config.mode, config.modules, config.rank)
    size = delta_bytes(parts, concepts, pipe.text_encoder.get_input_embeddings().embedding_dim)
    if size > max_bytes:
        raise ValueError(f"customize: mode {config.mode}, rank {config.rank}, modules {config.modules!r} would make "
                         f"deltas of {size} bytes, allowed are {max_bytes}; lower the rank or choose fewer modules")
