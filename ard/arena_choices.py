"""What the settings of the arena's methods are worth on validation: every choice with its figure, none made on test.

Beside `ard.arena`, which asks the methods with the settings in use. A row is kept by a hash of all that it depends on, so a new
row asks that row alone. Used by notebook 23.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from ard import arena, arena_tables, metrics
from ard.baselines.fsod.quality import base_quality
from ard.baselines.kit import Kit
from ard.baselines.registry import Entry
from ard.config import ConfigError, nearest
from ard.intervals import bootstrap_mean, paired_difference
from ard.provenance import digest, meaning
from ard.records import Sample

STATISTICS = ("metrics.py", "intervals.py")  # code that makes a row's numbers of a method's answers
QUALITY = ("baselines/fsod/quality.py",)  # and the one that says what a few-shot detector learned before any query

def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with values put over them; dots part the levels.

    >>> changed({"abc_rows": {"copies": 4}}, {"abc_rows.mappers.epochs": 5})
    {'abc_rows': {'copies': 4, 'mappers': {'epochs': 5}}}
    """
    made = copy.deepcopy(dict(settings))
    for name, value in changes.items():
        *above, key = name.split(".")
        place = made
        for level in above:
            place = place.setdefault(level, {})
        place[key] = value
    return made


def check(entry: Entry, changes: Mapping[str, Any]) -> None:
    """ConfigError: a change names settings that the method does not read."""
    read = [arena.family(entry), *([arena.CLASS_FILTER] if "models/open_set" in entry.reads else [])]
    for name in changes:
        if name.split(".")[0] not in read:
            raise ConfigError(f"choices: '{name}' is no setting of '{entry.name}'; its settings begin with {' or '.join(read)}")


def kept(file: str | Path) -> dict[str, dict]:
    """The rows of a table that was written before, by what they were made of (`made_of`); none where there is no such file."""
    if not Path(file).is_file():
        return {}
    table = pd.read_csv(file, dtype={"made_of": str})
    return {row["made_of"]: row for row in table.to_dict("records")}


def made_of(code: Sequence[str], *parts: object) -> str:
    """Hash of what a row is made of: `parts`, and the modules of this package that `code` names."""
    source = [meaning((Path(__file__).parent / name).read_text(encoding="utf-8")) for name in code]
    return digest([source, parts])[:16]


def tried(rows: Mapping[str, Sequence[Mapping[str, Any]]], known: Mapping[str, Entry], kit: Kit, samples: Sequence[Sample],
          folder: str | Path, before: Mapping[str, Mapping] = MappingProxyType({})) -> Iterator[dict]:
    """For each method of `rows` a row with the settings in use, then one for each change of them.

    Recall@1 is gated where the method has boxes; `minus` is the paired difference to the settings in use. folder: answers; a
    killed run goes on at its query. before: rows that are `kept`; what is made as they were is not asked again. ConfigError: no
    such method, or a change of another method's settings.
    """
    for name, variants in rows.items():
        if name not in known:
            raise ConfigError(f"choices: no method '{name}'; {nearest(name, known)}")
        entry, asked = known[name], arena.subset(known[name], samples)
        used, found = arena.fingerprint(entry, kit, asked), {}
        for changes in ({}, *variants):
            check(entry, changes)
            told = kit.told(changed(kit.settings, changes))
            own = arena.fingerprint(entry, told, asked) if changes else used
            row = {"method": name, "change": _words(entry, changes) or "as used", "made_of": made_of(STATISTICS, used, own)}
            if row["made_of"] in before:
                yield {**before[row["made_of"]], **row}
                continue
            for mark, setup in ((used, kit), (own, told)):
                if mark not in found:
                    found[mark] = _values(entry, setup, asked, Path(folder) / mark)
            yield row | compared(found[own], found[used], [s.concept_id for s in asked])


def compared(found: Mapping[str, np.ndarray], used: Mapping[str, np.ndarray], concepts: Sequence[str]) -> dict:
    """Numbers of a row of `tried`, from what `metrics.values` gives of both."""
    mean, gap = bootstrap_mean(found["recall_1"], concepts), paired_difference(found["recall_1"], used["recall_1"], concepts)
    return {"recall_1": mean.mean, "low": mean.low, "high": mean.high, "minus": gap.mean, "minus_low": gap.low,
            "minus_high": gap.high, "recall_10": float(found["recall_10"].mean()),
            "same_class": float(found["same_class_recall_1"].mean()), "n_queries": len(concepts)}


def _values(entry: Entry, kit: Kit, asked: Sequence[Sample], folder: Path) -> dict[str, np.ndarray]:
    """What `metrics.values` gives of the method; answers that `folder` holds are read there."""
    record = arena.run({entry.name: entry}, kit, asked, folder)[entry.name]
    outcomes = arena_tables.outcomes_of(record, asked, kit.dataset, kit.split)
    return metrics.values(outcomes, metrics.is_gated(outcomes))


def _words(entry: Entry, changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.removeprefix(arena.family(entry) + '.')} {value}" for key, value in changes.items())


def base_trained(entries: Sequence[Entry], kit: Kit, scenes: int, before: Mapping[str, Mapping] = MappingProxyType({})) -> Iterator[dict]:
    """For each few-shot detector, given by its row of the arena, the mAP50 over its base classes in `scenes` new scenes.

    before: as in `tried`; a detector that is made anew trains for an hour first.
    """
    for entry in entries:
        row = {"method": entry.name, "scenes": scenes, "made_of": made_of(QUALITY, arena.fingerprint(entry, kit, ()), scenes)}
        known = before.get(row["made_of"])
        yield row | {"map_50": known["map_50"] if known else base_quality(kit, entry.name.lower(), scenes)}
