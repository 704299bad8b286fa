"""What the settings of the arena's methods are worth on validation: every choice with its figure, none made on test.

Beside `ard.arena`, which asks the methods with the settings in use. Used by notebook 23.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ard import arena, arena_tables, metrics
from ard.baselines.kit import Kit
from ard.baselines.registry import Entry
from ard.config import ConfigError, nearest
from ard.files import sha256_bytes
from ard.intervals import bootstrap_mean, paired_difference
from ard.records import Sample


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


def tried(rows: Mapping[str, Sequence[Mapping[str, Any]]], known: Mapping[str, Entry], kit: Kit, samples: Sequence[Sample],
          folder: str | Path) -> Iterator[dict]:
    """For each method of `rows` a row with the settings in use, then one for each change of them.

    Recall@1 is gated where the method has boxes; `minus` is the paired difference to the settings in use. folder: answers; a
    killed run goes on at its query. ConfigError: no such method, or a change of another method's settings.
    """
    for name, variants in rows.items():
        if name not in known:
            raise ConfigError(f"choices: no method '{name}'; {nearest(name, known)}")
        asked, used = arena.subset(known[name], samples), None
        concepts = [s.concept_id for s in asked]
        for changes in ({}, *variants):
            check(known[name], changes)
            told = ", ".join(f"{key.removeprefix(arena.family(known[name]) + '.')} {value}" for key, value in changes.items())
            place = Path(folder) / sha256_bytes(f"{name} {told}".encode())[:12]
            record = arena.run({name: known[name]}, kit.told(changed(kit.settings, changes)), asked, place)[name]
            outcomes = arena_tables.outcomes_of(record, asked, kit.dataset, kit.split)
            found = metrics.values(outcomes, metrics.is_gated(outcomes))
            used = found["recall_1"] if used is None else used
            mean, gap = bootstrap_mean(found["recall_1"], concepts), paired_difference(found["recall_1"], used, concepts)
            yield {"method": name, "change": told or "as used", "recall_1": mean.mean, "low": mean.low, "high": mean.high,
                   "minus": gap.mean, "minus_low": gap.low, "minus_high": gap.high,
                   "recall_10": float(found["recall_10"].mean()), "same_class": float(found["same_class_recall_1"].mean()),
                   "n_queries": len(asked)}
