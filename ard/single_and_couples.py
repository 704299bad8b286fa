"""Validation asked twice: among its own images, each of one individual of a class, and among couples (`ard.companions`).

A setting that finds the right image may still box the wrong one of two in it, so studies 27 and 28 look at both. The test
split is never read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ard import metrics, report
from ard.ablation import validation_samples
from ard.companions import couples_of
from ard.evaluation import Answers
from ard.intervals import bootstrap_mean, paired_difference
from ard.records import Dataset
from ard.within_image import within_image
from ard.world import World

SINGLE, COUPLES = "single", "couples"


def validation_sets(dataset: Dataset, world: World, root: str | Path, per_exemplar: int, seed: int = 0) -> dict[str, Dataset]:
    """{SINGLE: the dataset, COUPLES: with each validation X drawn anew beside a companion}, both with `per_exemplar` validation
    queries of each exemplar (0: all). Pictures of couples go to `root`."""
    both = {SINGLE: dataset, COUPLES: couples_of(dataset, world, "val", root, seed)}
    return {name: replace(d, samples={**d.samples, "val": validation_samples(d, per_exemplar)}) for name, d in both.items()}


def table(answers: Mapping[str, Answers], sets: Mapping[str, Dataset]) -> list[dict]:
    """A row for each method of `answers` (set -> method -> answers), the first of them the one that others are compared with.

    `recall_1_single`, `recall_1_couples`: gated Recall@1; `minus_single`, `minus_couples`: the method's less the first's,
    paired; `within_image`: among couples, the box in X lies on the right one of the two. Each with its interval, `_low` and
    `_high`; intervals resample exemplars, that of `within_image` images.
    """
    first = next(iter(answers[COUPLES]))
    found = {name: {method: metrics.values(o, True)["recall_1"] for method, o in report.outcomes_of(answers[name], d, "val").items()}
             for name, d in sets.items()}
    rows = []
    for lies in within_image(answers[COUPLES], sets[COUPLES], first, "val"):
        row = {"method": lies["method"]}
        for name, d in sets.items():
            owners = [s.concept_id for s in d.samples["val"]]
            mine, own = found[name][row["method"]], found[name][first]
            for what, interval in (("recall_1", bootstrap_mean(mine, owners)), ("minus", paired_difference(mine, own, owners))):
                row |= {f"{what}_{name}": interval.mean, f"{what}_{name}_low": interval.low, f"{what}_{name}_high": interval.high}
        rows.append(row | {key: lies[key] for key in ("within_image", "within_image_low", "within_image_high")})
    return rows
