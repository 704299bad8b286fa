"""The ablation table: what is changed in the detector, row by row, and what each setting is worth.

Between `ard.ablated`, which trains and asks a row, and the notebook 20. A row is kept by a hash of all that it depends on, so
another row in params.yaml trains that row alone. The test split is never read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ard.ablated import MEASURES, PHASES, WATCHED, Settings, variant_of
from ard.baselines.methods import pick_queries
from ard.config import ConfigError, nearest
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.variants import Variant
from ard.files import Ledger, sha256_tree, write_jsonl
from ard.intervals import bootstrap_mean, paired_difference
from ard.provenance import ROOT, code_reached, digest
from ard.records import Dataset, Sample

AGAINST = "against"  # names, among a row's changes, the row it is compared with
# folders of data that a row depends on
READ = ("mini-coco", "queries", "collection", "world", "models/generator", "models/exemplar_prompted")
Hits = Mapping[str, Mapping[str, Sequence[float]]]  # of `ard.ablated.hits`


def changed_settings(base: Settings, changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`base` with values put over it; ConfigError names a key that is not there and the nearest one.

    >>> changed_settings({"phase1": {"rivals": 2, "steps": 800}}, {"phase1.rivals": 0})
    {'phase1': {'rivals': 0, 'steps': 800}}
    """
    made = {section: dict(values) for section, values in base.items()}
    known = [f"{section}.{key}" for section, values in base.items() for key in values]
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(f"ablation: no setting '{name}'; {nearest(name, known)}")
        section, key = name.split(".", 1)
        made[section][key] = value
    return made


def validation_samples(dataset: Dataset, per_exemplar: int) -> tuple[Sample, ...]:
    """`per_exemplar` validation queries of each exemplar; 0 is all."""
    return tuple(pick_queries(dataset.samples["val"], per_exemplar or None))


def run_rows(rows: Mapping[str, Mapping[str, Any]], base: Settings, ledger: Ledger, shared: object,
             train: Callable[[Settings], AttributionGroundingDinoForObjectDetection],
             ask: Callable[[AttributionGroundingDinoForObjectDetection, Variant], Hits]) -> dict[str, Hits]:
    """{row: hits}, in the order of `rows` (row -> changes of settings). A row that stands in the ledger under its `mark` is
    not run again; one that is no longer wanted is dropped from it.

    shared: JSON that all rows depend on beside code and settings, as `shared_by_rows` gives it.
    """
    wanted = {name: row_settings(base, row) for name, row in rows.items()}  # all wrong keys before any training
    references(rows)
    marks = {name: mark(settings, shared) for name, settings in wanted.items()}
    for name, settings in wanted.items():
        if marks[name] not in ledger:
            ledger.add(marks[name], row=name, hits=packed(ask(train(settings), variant_of(settings))))
    kept = {name: ledger[key]["hits"] for name, key in marks.items()}
    write_jsonl(ledger.path, [{"key": marks[name], "row": name, "hits": hits} for name, hits in kept.items()])
    return {name: unpacked(hits) for name, hits in kept.items()}


def mark(settings: Settings, shared: object) -> str:
    """Hash of all that decides what a row answers: its settings, the code that trains and asks it, and what rows share."""
    told = {section: {k: v for k, v in values.items() if k not in WATCHED} for section, values in settings.items()}
    return digest([told, code_reached("import ard.ablated", ROOT), shared])[:16]


def shared_by_rows(samples: Sequence[Sample], data: str | Path = "data") -> list:
    """What is read and whom is asked: {folder of `data`: hash} and the ids of the queries in their order."""
    return [{name: sha256_tree(Path(data, name)) for name in READ}, [s.sample_id for s in samples]]


def packed(hits: Hits) -> dict[str, dict[str, str]]:
    """Hits as one bit a query, right (1) or wrong (0), after a leading 1, in hexadecimal digits.

    >>> packed({"ARD": {"recall_1": [0.0, 1.0, 1.0]}})
    {'ARD': {'recall_1': 'b'}}
    """
    bits = {phase: {name: "".join(str(int(v)) for v in found[name]) for name in found} for phase, found in hits.items()}
    return {phase: {name: f"{int('1' + text, 2):x}" for name, text in found.items()} for phase, found in bits.items()}


def unpacked(hits: Mapping[str, Mapping[str, str]]) -> Hits:
    """The hits that were `packed`."""
    return {phase: {name: [float(v) for v in f"{int(text, 16):b}"[1:]] for name, text in found.items()} for phase, found in hits.items()}


def references(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{row: the row it is compared with}: the one it names, else the first; ConfigError names one that is not there."""
    chosen = {name: changes.get(AGAINST, next(iter(rows))) for name, changes in rows.items()}
    for name, other in chosen.items():
        if other not in rows:
            raise ConfigError(f"ablation: row '{name}' is compared with '{other}', which is no row; {nearest(other, list(rows))}")
    return chosen


def row_settings(base: Settings, row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of a row: `base` with its changes, `against` being none of them."""
    return changed_settings(base, {key: value for key, value in row.items() if key != AGAINST})


def ablation_table(found: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], samples: Sequence[Sample],
                   against: Mapping[str, str]) -> list[dict]:
    """A row for each setting and phase: shares on validation, gated Recall@1 with its interval, and the paired difference of
    that to the same phase of the row it is compared with (`references`). Intervals resample exemplars."""
    owners = [s.concept_id for s in samples]
    table = []
    for name, phases in found.items():
        for phase in PHASES:
            mine = phases[phase]
            mean = bootstrap_mean(mine["recall_1"], owners)
            gap = paired_difference(mine["recall_1"], found[against[name]][phase]["recall_1"], owners)
            table.append({"row": name, "method": phase, "recall_1": mean.mean, "ci_low": mean.low, "ci_high": mean.high,
                          "against": against[name], "difference": gap.mean, "difference_low": gap.low,
                          "difference_high": gap.high,
                          **{key: float(np.mean(mine[key])) for key in MEASURES[1:]},
                          "n_queries": len(samples), "n_exemplars": len(set(owners))})
    return table


def over_seeds(found: Mapping[str, Hits], groups: Mapping[str, Sequence[str]], samples: Sequence[Sample]) -> list[dict]:
    """A row for each group of rows that differ in their seed alone, and phase: gated Recall@1 over all trainings, its standard
    deviation between them (`spread`, None for one), and the paired difference to the first group's same phase. Intervals
    resample exemplars. ConfigError: a group names a row that is not there.
    """
    owners, table, first = [s.concept_id for s in samples], [], {}
    for group, names in groups.items():
        for name in names:
            if name not in found:
                raise ConfigError(f"ablation: group '{group}' names '{name}', which is no row; {nearest(name, list(found))}")
        for phase in PHASES:
            trained = np.array([found[name][phase]["recall_1"] for name in names])
            each = trained.mean(0)
            mean, gap = bootstrap_mean(each, owners), paired_difference(each, first.setdefault(phase, each), owners)
            table.append({"settings": group, "method": phase, "trainings": len(names), "recall_1": mean.mean, "ci_low": mean.low,
                          "ci_high": mean.high, "spread": float(trained.mean(1).std(ddof=1)) if len(names) > 1 else None,
                          "difference": gap.mean, "difference_low": gap.low, "difference_high": gap.high})
    return table
