"""Every row of Table 2 asked every query: methods put together, answers kept query by query, so a killed run goes on.

After phase 2, before `ard.report`, which turns answers into tables (paper, section 5; DESIGN 8).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ard.baselines.abc import AbCConfig, Mappers, train
from ard.baselines.cosine import Encode, Proposals
from ard.baselines.methods import Method, pick_queries
from ard.detector.features import FeatureCache
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.prompts import Phrase, build_prompt
from ard.detector.score import detect_features
from ard.files import Ledger, atomic_write_json, atomic_write_text, publish, work_dir, write_jsonl
from ard.metrics import to_csv
from ard.records import Attribution, Dataset, Gallery, Query, Sample

ROWS = ("chance", "class oracle", "drawing oracle", "designer oracle", "colour histogram", "image cosine",
        "crop cosine", "AbC", "CountGD (untrained)", "ARD-", "ARD", "ARD (rendered queries)")
Answers = dict[str, dict[str, list[Attribution]]]  # row of Table 2 -> sample_id -> one attribution per gallery image
Ask = Callable[[Query, Gallery], Mapping[str, Sequence[Attribution]]]


def asked_samples(dataset: Dataset, split: str, per_exemplar: int, max_exemplars: int = 0) -> tuple[Sample, ...]:
    """`per_exemplar` queries of each exemplar (0: all), of the first `max_exemplars` exemplars only (0: all)."""
    samples = pick_queries(dataset.samples[split], per_exemplar or None)
    concepts = list(dict.fromkeys(s.concept_id for s in samples))[: max_exemplars or None]
    return tuple(s for s in samples if s.concept_id in set(concepts))


def alone(name: str, method: Method) -> Ask:
    """Ask one method for the row `name`."""
    return lambda query, gallery: {name: method.rank(query, gallery)}


def collect(ask: Ask, samples: Sequence[Sample], load: Callable[[Sample], Query], gallery: Gallery, file: str | Path,
            name: str) -> tuple[Answers, float]:
    """Answers to every sample and the median milliseconds a pair; a sample that stands in the ledger `file` is not
    asked again.

    load: gives a sample's query (the dataset's own, or a rendered one). One file belongs to one `ask`.
    """
    ledger = Ledger(file)
    for sample in tqdm([s for s in samples if s.sample_id not in ledger], desc=name, mininterval=5):
        query, start = load(sample), time.perf_counter()
        found = {row: [_packed(a) for a in attributions] for row, attributions in ask(query, gallery).items()}
        ledger.add(sample.sample_id, answers=found, seconds=round(time.perf_counter() - start, 6))
    answers: Answers = {}
    for sample in samples:
        for row, found in ledger[sample.sample_id]["answers"].items():
            answers.setdefault(row, {})[sample.sample_id] = [_unpacked(a) for a in found]
    seconds = [ledger[s.sample_id]["seconds"] for s in samples]
    return answers, 1000 * float(np.median(seconds)) / len(gallery)


def collect_all(asks: Mapping[str, Ask], samples: Sequence[Sample], dataset: Dataset, split: str, folder: str | Path) -> Answers:
    """Answers of several methods over a split's gallery, a ledger for each in `folder`."""
    gallery, answers = dataset.open_gallery(split), {}
    for name, ask in asks.items():
        file = Path(folder) / f"{split} {name}.jsonl"
        answers |= collect(ask, samples, dataset.query, gallery, file, f"{split}: {name}")[0]
    return answers


def _packed(answer: Attribution) -> list:
    """A score of -inf ("nothing found") is not JSON."""
    return [answer.image_id, answer.box, None if answer.score == float("-inf") else answer.score]


def _unpacked(row: list) -> Attribution:
    image_id, box, score = row
    return Attribution(image_id, None if box is None else tuple(box), float("-inf") if score is None else score)


def class_proposals(model: AttributionGroundingDinoForObjectDetection, dataset: Dataset, split: str,
                    names: Sequence[str], threshold: float, cache: FeatureCache | None = None) -> Proposals:
    """Boxes of the open-set detector for each class name in each gallery image, all found once, for `CropRanker`."""
    images, cache = dataset.gallery[split], cache or FeatureCache()
    features = cache(np.stack([dataset.pixels(image.file) for image in images]))
    boxes = {}
    for name in sorted(set(names)):
        found = detect_features(model, features, build_prompt([[Phrase(name)]]), threshold)
        boxes |= {(image.image_id, name): d.boxes for image, d in zip(images, found, strict=True)}
    return lambda image_id, class_name: boxes[image_id, class_name]


def train_abc(dataset: Dataset, encode: Encode, config: AbCConfig, file: str | Path) -> Mappers:
    """AbC's two mappers from AD+ train, whole images; from `file` when a killed run has left them there."""
    if not Path(file).is_file():
        samples, images = dataset.samples["train"], dataset.gallery["train"]
        where = {image.file: i for i, image in enumerate(images)}
        real = encode([dataset.pixels(image.file) for image in images])
        synthetic = [encode([dataset.pixels(s.query_file) for s in samples[i : i + 64]])
                     for i in range(0, len(samples), 64)]
        owner = np.array([where[s.exemplar_file] for s in samples])
        train(real, np.concatenate(synthetic), owner, config)[0].save(file)
    return Mappers.load(file)


def write_results(folder: str | Path, tables: Mapping[str, Sequence[Mapping]], queries: Sequence[dict],
                  diagnosis: dict) -> Path:
    """data/results at once: each table as CSV, `queries.jsonl` (rank, box and best answers per query), `diagnosis.json`."""
    work = work_dir("results")
    for name, rows in tables.items():
        atomic_write_text(work / f"{name}.csv", to_csv(rows, list(rows[0]) if rows else ["empty"]))
    write_jsonl(work / "queries.jsonl", queries)
    atomic_write_json(work / "diagnosis.json", diagnosis)
    return publish(work, folder)


def write_timings(file: str | Path, milliseconds: Mapping[str, float]) -> None:
    """Milliseconds a pair by method into a side file, and onto stderr: an executed notebook must not hold times."""
    atomic_write_json(file, {name: round(value, 3) for name, value in milliseconds.items()})
    for name, value in milliseconds.items():
        print(f"{name:32}{value:8.2f} ms a pair", file=sys.stderr)
