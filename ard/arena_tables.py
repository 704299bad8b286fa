"""Table 2 with every method: the arena's answers beside those of notebook 08, what each was given, and how far ARD is ahead.

After `ard.arena` (paper, section 5, Table 2). Intervals resample exemplars; paired differences read both sides alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ard import metrics
from ard.abstention import auroc
from ard.arena import FIRST
from ard.baselines.registry import GIVEN
from ard.intervals import bootstrap_mean, paired_difference
from ard.metrics import Outcome, is_gated
from ard.records import Dataset, Sample
from ard.report import columns

# what the methods of notebook 08 are given
EVALUATED = {"colour histogram": ("text", "box"), "image cosine": (), "crop cosine": ("text", "box"), "AbC": ("pairs",),
             "CountGD (untrained)": ("text", "box"), "ARD-": ("text", "box", "pairs", "rendered"),
             "ARD": ("text", "box", "pairs", "rendered")}
COLUMNS = (*metrics.TABLE2_COLUMNS, "given", "ard_minus", "ard_minus_low", "ard_minus_high")
Outcomes = Mapping[str, Sequence[Outcome]]


def outcomes_of(record: Mapping, samples: Sequence[Sample], dataset: Dataset, split: str) -> list[Outcome]:
    """Outcomes of a method from its record (`arena.summary`)."""
    known = [metrics.facts(s, dataset.gallery[split]) for s in samples]
    return [Outcome(*row) for row in zip(known, record["rank"], record["same_class_rank"], record["iou"], strict=True)]


def evaluated(rows: Iterable[Mapping], samples: Sequence[Sample], dataset: Dataset, split: str) -> dict[str, list[Outcome]]:
    """Outcomes of the methods that notebook 08 asked, from the rows of data/results/queries.jsonl, in the order of `samples`.

    ValueError: it did not ask all of these queries.
    """
    by = {(row["method"], row["sample_id"]): row for row in rows}
    missing = [s.sample_id for s in samples if ("ARD", s.sample_id) not in by]
    if missing:
        raise ValueError(f"data/results/queries.jsonl: {len(missing)} of {len(samples)} queries do not stand there, first "
                         f"{missing[0]}; queries_per_exemplar and max_exemplars must be those of 08_evaluate")
    found = {}
    for name in EVALUATED:
        mine = [by[name, s.sample_id] for s in samples]
        record = {key: [row[key] for row in mine] for key in ("rank", "same_class_rank", "iou")}
        found[name] = outcomes_of(record, samples, dataset, split)
    return found


def table(outcomes: Outcomes, given: Mapping[str, Iterable[str]], dataset: str) -> list[dict]:
    """Rows with `COLUMNS`; a method with boxes has a gated row, then an ungated one. `ard_minus` is ARD's Recall@1 minus the
    method's over the method's queries; it is gated in a gated row, which has boxes on both sides, else ungated on both."""
    known = [o.facts for o in outcomes["ARD"]]
    rows = [metrics.analytic_row(dataset, name, known) | {"given": "the truth"} for name in metrics.ANALYTIC_ROWS]
    for name, found in outcomes.items():
        words = ", ".join(word for word in GIVEN if word in set(given[name])) or "Q alone"
        for gated in (True, False) if is_gated(found) else (False,):
            measured = metrics.table2_row(dataset, name, found, gated)
            rows.append(measured | {"given": words} | behind(outcomes["ARD"], found, gated))
    return [{column: row.get(column) for column in COLUMNS} for row in rows]


def behind(ours: Sequence[Outcome], theirs: Sequence[Outcome], gated: bool) -> dict:
    """Recall@1 of ours minus theirs over their queries, with its interval."""
    by = {o.facts.sample.sample_id: o for o in ours}
    same = [by[o.facts.sample.sample_id] for o in theirs]
    a, b = (metrics.values(side, gated)["recall_1"] for side in (same, theirs))
    return columns("ard_minus", paired_difference(a, b, [o.facts.sample.concept_id for o in theirs]))


def above_others(outcomes: Outcomes, against: Mapping[str, str]) -> list[dict]:
    """For each method how often the source stands above an image drawn at random from the others (.5: chance; a tie counts
    against it), with its interval; `minus`: less that of the method it is held `against`, paired, where that one was asked all of
    the same queries."""
    shares = {name: {o.facts.sample.sample_id: (o.facts.gallery_size - o.rank) / (o.facts.gallery_size - 1) for o in found}
              for name, found in outcomes.items()}
    rows = []
    for name, found in outcomes.items():
        concepts, mine, theirs = [o.facts.sample.concept_id for o in found], shares[name], shares.get(against.get(name, ""), {})
        row = {"method": name, **columns("above", bootstrap_mean(list(mine.values()), concepts))}
        pair = [list(mine.values()), [theirs[query] for query in mine]] if theirs.keys() >= mine.keys() else None
        rows.append(row | (columns("minus", paired_difference(*map(np.array, pair), concepts)) if pair else
                           dict.fromkeys(("minus", "minus_low", "minus_high"))))
    return rows


def first_answers(records: Mapping[str, Mapping]) -> list[dict]:
    """For each method the share of queries whose best answer is the source, another image of its class, or another class."""
    return [{"method": name, **{kind: round(float(np.mean(np.array(record["first"]) == i)), 6) for i, kind in enumerate(FIRST)},
             "n_queries": len(record["first"])} for name, record in records.items()]


def trust(records: Mapping[str, Mapping]) -> list[dict]:
    """For each method the AUROC of its gallery's best score as "the source is in here" (each query with and without it)."""
    rows = []
    for name, record in records.items():
        best, without = ([-np.inf if v is None else v for v in record[key]] for key in ("best", "without"))
        rows.append({"method": name, "auroc": round(auroc(best, without), 6)})
    return rows
