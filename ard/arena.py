"""Every method of the registry is asked the same queries, once; what it answered is kept by a hash of all that it depends on.

After `ard.evaluation`, whose rows `ard.arena_tables` puts beside these (paper, section 5). Adding a method asks that method
alone; a killed run goes on at the query where it was.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ard import metrics
from ard.baselines.kit import Kit
from ard.baselines.methods import pick_queries
from ard.baselines.registry import Entry
from ard.evaluation import alone, collect
from ard.files import Ledger, atomic_write_json, read_json, sha256_bytes, sha256_tree, write_jsonl
from ard.provenance import PLUMBING, ROOT, meaning, reached
from ard.records import Attribution, Dataset, GalleryImage, Sample, positive

WRONG = 5  # most confident wrong answers kept of each method
TOP = 10  # answers kept of the queries that pictures show
FORMAT = 1  # of a record; another number asks all again
FIRST = ("the source", "another of its class", "another class")  # what a method's best answer can be
CLASS_FILTER = "class_filter"  # the part of the settings that all methods with proposals share
# modules that put methods together and know them all: what they import is not followed; the kit's own code counts
KIT = "ard/baselines/kit.py"
JOINTS = tuple(f"ard/baselines/{name}.py" for name in ("kit", "registry", "methods"))
# the code that opens a folder which an entry says it reads
OPENED_BY = {"models/generator": "ard.generator.build", "models/open_set": "ard.evaluation, ard.detector.operating", "deltas": "ard.deltas",
             "models/exemplar_prompted": "ard.detector.method", "world": "ard.world.world"}
Answers = Mapping[str, Sequence[Attribution]]  # by sample_id


# ---- what an answer depends on ---------------------------------------------------------------------------------------
def fingerprint(entry: Entry, kit: Kit, samples: Sequence[Sample], shown: Sequence[str] = (), root: str | Path = ROOT) -> str:
    """Hash of all that decides a method's record: its code and what that reaches, settings, pictures, folders, queries."""
    opened = "\n".join(f"import {OPENED_BY[name]}" for name in entry.reads if name in OPENED_BY)
    source = Path(sys.modules[_home(entry)].__file__).read_text(encoding="utf-8")
    code = [sha256_bytes(meaning(source).encode()), *_code_of(source, root), *_code_of(opened, root), _meaning_of(KIT, root)]
    inputs = {name: sha256_tree(kit.data / name) for name in entry.reads}
    if "models/open_set" in entry.reads and CLASS_FILTER in kit.settings:
        inputs[CLASS_FILTER] = kit.settings[CLASS_FILTER]
    asked = [asdict(s) for s in samples]
    parts = [FORMAT, entry.name, sorted(set(code)), kit.settings.get(family(entry)), inputs, kit.content, kit.split, asked,
             list(shown)]
    return sha256_bytes(json.dumps(parts, sort_keys=True).encode())[:16]


def family(entry: Entry) -> str:
    """Which part of the settings is the entry's: named as the module, or package, of `ard.baselines` that builds it."""
    parts = _home(entry).split(".")
    return parts[2] if parts[:2] == ["ard", "baselines"] else parts[-1]


def _home(entry: Entry) -> str:
    """The module whose code builds the method."""
    return getattr(entry.build, "func", entry.build).__module__


def _code_of(source: str, root: str | Path) -> list[str]:
    files = [name for name in reached(source, root, JOINTS) if name not in {*PLUMBING, *JOINTS}]
    return [_meaning_of(name, root) for name in files]


def _meaning_of(name: str, root: str | Path) -> str:
    return f"{name} {sha256_bytes(meaning(Path(root, name).read_text(encoding='utf-8')).encode())}"


# ---- asking ----------------------------------------------------------------------------------------------------------
def run(entries: Mapping[str, Entry], kit: Kit, samples: Sequence[Sample], folder: str | Path, shown: Sequence[str] = (),
        timings: str | Path | None = None) -> dict[str, dict]:
    """{method: its record}: asks the methods that `folder`/answers.jsonl does not hold with the right fingerprint.

    shown: sample ids whose `TOP` answers are kept for pictures. timings: a JSON file of seconds and peak memory by method, to
    which newly asked ones are added: times differ from run to run, so they stand apart from what is hashed.
    """
    ledger, records = Ledger(Path(folder) / "answers.jsonl"), {}
    for name, entry in entries.items():
        asked = subset(entry, samples)
        mark = fingerprint(entry, kit, asked, shown)
        key = f"{name} {mark}"
        if key not in ledger:
            answers, cost = ask(entry, kit, asked, kit.work / f"{_slug(name)}-{mark}.jsonl")
            ledger.add(key, **summary(answers, asked, kit.dataset, kit.split, shown))
            if timings is not None:
                known = read_json(timings) if Path(timings).exists() else {}
                atomic_write_json(timings, {**known, name: cost})
        records[key] = ledger[key]
    write_jsonl(ledger.path, [{"key": key, **record} for key, record in records.items()])
    return dict(zip(entries, records.values()))


def subset(entry: Entry, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The queries a method is asked: all, or for a slow one the first of each exemplar."""
    return tuple(pick_queries(samples, 1)) if entry.per_query else tuple(samples)


def ask(entry: Entry, kit: Kit, samples: Sequence[Sample], file: Path) -> tuple[Answers, dict]:
    """Answers by sample_id, and what they cost: seconds of `fit`, median seconds a query, peak memory in GB.

    file: the ledger of single queries, from which a killed run goes on; its name must tell all that the answers depend on.
    """
    start, method = time.perf_counter(), entry.build(kit)
    if hasattr(method, "fit"):
        method.fit(kit.ad_train, kit.generator)
    fitted = time.perf_counter() - start
    _reset_peak()
    gallery = kit.dataset.open_gallery(kit.split)
    found, milliseconds = collect(alone(entry.name, method), samples, kit.dataset.query, gallery, file, entry.name)
    cost = {"fit_seconds": round(fitted, 2), "query_seconds": round(milliseconds * len(gallery) / 1000, 4), "peak_gb": _peak()}
    return found[entry.name], cost


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _reset_peak() -> None:
    """Let the kernel measure peak memory anew; where it cannot, the peak is that of the whole process so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float | None:
    """Most memory held since the last reset, GB; None where the system does not tell."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return round(int(found[1]) / 2**20, 2) if found else None
    return None


# ---- what is kept of answers -----------------------------------------------------------------------------------------
def summary(answers: Answers, samples: Sequence[Sample], dataset: Dataset, split: str, shown: Sequence[str] = ()) -> dict:
    """What tables and pictures need of a method's answers, in the order of `samples`: `rank`, `same_class_rank`, `iou`; what
    its first answer is (`first`, an index of FIRST); the gallery's best score with the source and without; the most
    confident wrong answers; the best answers of `shown` queries."""
    gallery = dataset.gallery[split]
    outcomes = [metrics.outcome(metrics.facts(s, gallery), answers[s.sample_id], gallery) for s in samples]
    best = {s.sample_id: strongest(answers[s.sample_id]) for s in samples}
    own = {s.sample_id: positive(s, gallery).image_id for s in samples}
    wrong = [(best[s.sample_id][0], s.sample_id) for s in samples if best[s.sample_id][0].image_id != own[s.sample_id]]
    wrong = sorted((pair for pair in wrong if np.isfinite(pair[0].score)), key=lambda p: (-p[0].score, p[1]))[:WRONG]
    return {"rank": [o.rank for o in outcomes], "same_class_rank": [o.same_class_rank for o in outcomes],
            "iou": [None if o.iou is None else round(o.iou, 3) for o in outcomes],
            "first": [first_answer(s, best[s.sample_id][0], gallery) for s in samples],
            "best": [_short(best[s.sample_id][0].score) for s in samples],
            "without": [_short(max(a.score for a in answers[s.sample_id] if a.image_id != own[s.sample_id])) for s in samples],
            "wrong": [[sample_id, *_answer(a)] for a, sample_id in wrong],
            "shown": {i: [_answer(a) for a in best[i][:TOP]] for i in shown if i in best}}


def strongest(answers: Sequence[Attribution]) -> list[Attribution]:
    """Best first, in a total order."""
    return sorted(answers, key=lambda a: (-a.score, a.image_id))


def first_answer(sample: Sample, answer: Attribution, gallery: Sequence[GalleryImage]) -> int:
    """Index of FIRST: is the best answer the source, another image of its class, or neither?"""
    image = next(im for im in gallery if im.image_id == answer.image_id)
    if image.file == sample.exemplar_file:
        return 0
    return 1 if any(o.class_name == sample.class_name for o in image.objects) else 2


def _answer(a: Attribution) -> list:
    return [a.image_id, None if a.box is None else [round(v, 1) for v in a.box], _short(a.score)]


def _short(score: float) -> float | None:
    """Four digits; nothing found (-inf) is not JSON."""
    return float(f"{score:.4g}") if np.isfinite(score) else None
