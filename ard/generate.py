"""Query images: one per (concept, template) from the customised generator, the concept found again in each as R_Q.

The paper's section 4.3. Gates are the paper's only: the class is found, and the box is not too small. Whatever else is
measured (likeness to the exemplar, near copies) is a column of the record and never drops a sample.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from tqdm import tqdm

from ard.customize import item_seed
from ard.deltas import DeltaError, apply_delta, remove_delta
from ard.exemplars import Detect, Exemplar, best_box
from ard.files import (
    Ledger, atomic_write_bytes, atomic_write_json, read_json, read_jsonl, sha256_bytes, write_jsonl)
from ard.records import RecordError, read_image
from ard.templates import fill


@dataclass(frozen=True)
class GenerateConfig:
    """How queries are drawn and gated."""

    steps: int = 25  # DDIM steps; Break-a-Scene samples 50
    guidance: float = 3.0  # classifier-free guidance; Break-a-Scene 7.5
    min_side: float = 12.0  # px, short side of R_Q
    negative_prompt: str = ""
    batch: int = 0  # pictures drawn at once; 0: all of a concept


@dataclass(frozen=True)
class Drawn:
    """One generated image. `reason` is '' for a kept one, else 'not found' or 'too small'; box and score may be None."""

    sample_id: str
    exemplar_id: str
    class_name: str
    template: int
    prompt: str
    seed: int
    file: str
    box: tuple[float, float, float, float] | None
    score: float | None
    reason: str
    copy_similarity: float
    likeness: float | None = None


def sample_images(pipe, prompts: Sequence[str], seeds: Sequence[int], config: GenerateConfig) -> np.ndarray:
    """Images (n, H, W, 3) uint8 for n prompts, each from its own seed, in one batch, by DDIM."""
    scheduler, bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", {})
    pipe.scheduler = DDIMScheduler.from_config(scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    try:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        negative = [config.negative_prompt] * len(prompts) if config.negative_prompt else None
        size = pipe.unet.config.sample_size * pipe.vae_scale_factor
        with torch.inference_mode():
            out = pipe(list(prompts), negative_prompt=negative, num_inference_steps=config.steps, output_type="np",
                       guidance_scale=config.guidance, generator=generators, height=size, width=size)
    finally:
        pipe.scheduler = scheduler
        pipe.set_progress_bar_config(**bar)
    return (out.images * 255 + 0.5).astype(np.uint8)


def gate(found: tuple | None, min_side: float) -> str:
    """'' when R_Q is there and large enough, else the reason to reject it.

    >>> gate(None, 12), gate(((0, 0, 30, 8), .9), 12), gate(((0, 0, 30, 20), .9), 12)
    ('not found', 'too small', '')
    """
    if found is None:
        return "not found"
    box = found[0]
    return "too small" if min(box[2] - box[0], box[3] - box[1]) < min_side else ""


def generate_concept(pipe, exemplar: Exemplar, token: str, image: np.ndarray, templates: Sequence[str], detect: Detect,
                     config: GenerateConfig, seed: int = 0, likeness: Callable | None = None
                     ) -> tuple[list[Drawn], list[bytes]]:
    """All templates of one concept from a pipeline that wears its delta; image is X. Nothing is written.

    likeness: (Q, R_Q, X, R_X) -> float, a recorded column. Returns the records and each Q as JPEG; boxes and all that is
    measured are of the picture as it comes out of the JPEG again.
    """
    prompts = [fill(t, f"{token} {exemplar.class_name}") for t in templates]
    seeds = [item_seed("generate", seed, exemplar.exemplar_id, t) for t in range(len(templates))]
    parts = [slice(i, i + (config.batch or len(prompts))) for i in range(0, len(prompts), config.batch or len(prompts))]
    pictures, drawn = [jpeg_bytes(q) for part in parts for q in sample_images(pipe, prompts[part], seeds[part], config)], []
    for number, (prompt, own, picture) in enumerate(zip(prompts, seeds, pictures)):
        query = read_image(io.BytesIO(picture))
        found = best_box(*detect(query, exemplar.class_name))
        box, score = found or (None, None)
        alike = None if likeness is None or box is None else round(float(likeness(query, box, image, exemplar.box)), 4)
        name = f"{exemplar.exemplar_id}_{number:02d}"
        drawn.append(Drawn(name, exemplar.exemplar_id, exemplar.class_name, number, prompt, own, f"{name}.jpg", box,
                           score, gate(found, config.min_side), round(copy_similarity(query, image), 4), alike))
    return drawn, pictures


def generate_all(pipe, exemplars: Sequence[Exemplar], learned: Sequence[dict], root: str | Path, deltas: str | Path,
                 out: str | Path, templates: Sequence[str] | Callable[[str], Sequence[str]], detect: Detect,
                 config: GenerateConfig, ledger: Ledger, seed: int = 0, likeness: Callable | None = None
                 ) -> tuple[list[Drawn], list[Drawn], list[dict]]:
    """Queries of every learned concept into `out`; returns kept and rejected images, and concepts that failed.

    learned: rows of `customize_all` (exemplar_id, token, delta). Files of exemplars are relative to `root`. A concept
    whose row stands in `ledger` is read back, not drawn again; its records lie beside the ledger. Writes `queries.jsonl`,
    `rejected.jsonl`, `failed.jsonl`.
    """
    by_id, out = {e.exemplar_id: e for e in exemplars}, Path(out)
    drawn, failed = [], []
    for row in tqdm(learned, desc="generate", mininterval=5):
        key = row["exemplar_id"]
        try:
            if key not in by_id:
                raise RecordError(f"{key}: learned, but no exemplar of this name is known")
            listed = templates(by_id[key].class_name) if callable(templates) else templates
            recipe = _recipe(config, seed, listed, Path(deltas) / row["delta"])
            part = ledger.path.with_suffix("") / f"{key}.json"
            if key in ledger and part.is_file():
                if ledger[key].get("recipe") != recipe:
                    raise ValueError(f"{part} was made with other settings; delete {ledger.path} and {out}")
                mine = [_drawn(r) for r in read_json(part)]
                if all((out / record.file).is_file() for record in mine):
                    drawn += mine
                    continue
            image = read_image(Path(root) / by_id[key].file)
            apply_delta(pipe, Path(deltas) / row["delta"])
            try:
                mine, pictures = generate_concept(pipe, by_id[key], row["token"], image, listed, detect, config, seed,
                                                likeness)
            finally:
                remove_delta(pipe)
        except (DeltaError, RecordError) as error:
            failed.append({"exemplar_id": key, "reason": str(error)})
            continue
        for record, picture in zip(mine, pictures):
            atomic_write_bytes(out / record.file, picture)
        atomic_write_json(part, [asdict(d) for d in mine])
        ledger.add(key, recipe=recipe)
        drawn += mine
    kept, rejected = [d for d in drawn if not d.reason], [d for d in drawn if d.reason]
    for name, rows in (("queries", kept), ("rejected", rejected)):
        write_jsonl(out / f"{name}.jsonl", [asdict(d) for d in rows])
    write_jsonl(out / "failed.jsonl", failed)
    return kept, rejected, failed


def load_drawn(path: str | Path) -> tuple[tuple[Drawn, ...], list[str]]:
    """Records of `queries.jsonl` or `rejected.jsonl`, and one message for each line that was left out."""
    rows, bad = read_jsonl(path)
    good = []
    for row in rows:
        try:
            good.append(_drawn(row))
        except (TypeError, KeyError) as error:
            bad.append(f"{path}: {row.get('sample_id', 'row without sample_id')}: not a generated image ({error})")
    return tuple(good), bad


def copy_similarity(query: np.ndarray, exemplar: np.ndarray, size: int = 32, shift: int = 4) -> float:
    """How much Q as a whole is X again: the largest correlation of their colours over mirroring and small shifts.

    Both (H, W, 3) uint8; compared at `size` px, moved by up to `shift` of those px. 1 is a copy, about 0 is unrelated.
    """
    small = [np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BOX), np.float64)
             for i in (query, exemplar)]
    best = -1.0
    inner = slice(shift, size - shift)
    target = small[1][inner, inner].ravel()
    target = target - target.mean()
    for picture in (small[0], small[0][:, ::-1]):
        for dy in range(-shift, shift + 1):
            for dx in range(-shift, shift + 1):
                moved = picture[shift + dy:size - shift + dy, shift + dx:size - shift + dx].ravel()
                moved = moved - moved.mean()
                norm = np.linalg.norm(moved) * np.linalg.norm(target)
                best = max(best, float(moved @ target / norm) if norm > 1e-9 else -1.0)
    return best


def jpeg_bytes(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as JPEG at quality 85 with whole colour: 1.8 kB and about 37 dB at 64 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85, subsampling=0, optimize=True)
    return buffer.getvalue()


def _recipe(config: GenerateConfig, seed: int, templates: Sequence[str], delta: Path) -> str:
    if not delta.is_file():
        raise DeltaError(f"{delta}: no such delta; run the customise stage first")
    settings = json.dumps([asdict(config), seed, list(templates)], sort_keys=True).encode()
    return sha256_bytes(settings + delta.read_bytes())[:16]


def _drawn(row: dict) -> Drawn:
    return Drawn(**{**row, "box": tuple(row["box"]) if row["box"] else None})
