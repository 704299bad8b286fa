"""Quality floors of a stage: measured values against what is asked, as a table in the notebook and as a DVC metric.

A floor that is missed stays in plain sight ("below floor"); only a required one, without which later stages mean
nothing, stops the stage, and only in the profile mini.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass

import pandas as pd

from ard.files import atomic_write_json


@dataclass(frozen=True)
class Row:
    """One measured value and its bound; `at_most` turns the floor into a ceiling."""

    name: str
    value: float
    floor: float
    at_most: bool
    required: bool

    @property
    def passed(self) -> bool:
        """Whether the bound is kept; a value that is not a number keeps none."""
        return self.value <= self.floor if self.at_most else self.value >= self.floor

    @property
    def status(self) -> str:
        """In words: 'reached', or which side it is on."""
        return "reached" if self.passed else "above ceiling" if self.at_most else "below floor"


_rows: dict[str, Row] = {}  # of this kernel, so of this notebook


def check(name: str, value: float, floor: float, *, at_most: bool = False, required: bool = False) -> bool:
    """Record that `value` should be at least `floor` (at most, with `at_most`); returns whether it is.

    A name checked again replaces its row. Raises AssertionError for a missed `required` floor in the profile mini.
    """
    row = Row(name, float(value), float(floor), at_most, required)
    _rows[name] = row
    if required and not row.passed and _facts().get("profile", "mini") == "mini":
        raise AssertionError(f"{name}: {row.value:.4g} is {row.status} {row.floor:g}; later stages need it")
    return row.passed


def report() -> pd.DataFrame:
    """The table of all rows checked so far; run by a stage, it also writes data/metrics/NN_name.json."""
    pd.set_option("display.max_colwidth", None, "display.width", 160)  # a name cut short tells nothing
    rows = list(_rows.values())
    stage = _facts().get("notebook")
    if stage:
        atomic_write_json(f"data/metrics/{stage}.json", {row.name: _entry(row) for row in rows})
    table = [(row.name, round(row.value, 4), f"{'at most' if row.at_most else 'at least'} {row.floor:g}",
              row.status + (", required" if row.required else "")) for row in rows]
    return pd.DataFrame(table, columns=["measured", "value", "floor", "status"]).set_index("measured")


def missed() -> list[str]:
    """Names of the floors that were not kept, in order."""
    return [row.name for row in _rows.values() if not row.passed]


def _entry(row: Row) -> dict:
    value = None if not math.isfinite(row.value) else round(row.value, 6)
    return {"value": value, "floor": row.floor, "at_most": row.at_most, "passed": row.passed}


def _facts() -> dict:
    return json.loads(os.environ.get("ARD_PROVENANCE", "{}"))
