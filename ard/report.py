"""What the answers mean: Table 2, same-class ranking, paired differences, and which link of the chain fails.

After `ard.evaluation` (paper, section 5; DESIGN 3, 8). All is computed per query; intervals resample exemplars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ard import metrics
from ard.evaluation import ROWS, Answers
from ard.intervals import Interval, bootstrap_mean, paired_difference
from ard.metrics import ANALYTIC_ROWS, Outcome, is_gated
from ard.records import Dataset

RENDERED = "ARD (rendered queries)"
CROPS_RENDERED = "crop cosine (rendered queries)"  # no row of Table 2: what ARD must beat on rendered queries
COMPARISONS = (("ARD", "class oracle"), ("ARD", "drawing oracle"), ("ARD", "colour histogram"), ("ARD", "crop cosine"),
               ("ARD", "AbC"), ("ARD", "CountGD (untrained)"), ("ARD", "ARD-"), (RENDERED, "class oracle"),
               (RENDERED, CROPS_RENDERED))
TOP = 10  # answers of a query that are kept for pictures
PICTURED = ("ARD", "AbC")  # of these methods; of the others the best one is kept
Outcomes = Mapping[str, Sequence[Outcome]]


def outcomes_of(answers: Answers, dataset: Dataset, split: str = "test") -> dict[str, list[Outcome]]:
    """Outcomes of every method that was asked, in the dataset's order of queries."""
    return {row: metrics.evaluate(found, dataset, split) for row, found in answers.items()}


def table2(outcomes: Outcomes, dataset: str) -> list[dict]:
    """Rows in the order of `ROWS`, in `metrics.TABLE2_COLUMNS`; a method with boxes has a gated row, then an ungated
    one. ValueError names rows without answers."""
    missing = [row for row in ROWS if row not in outcomes and row not in ANALYTIC_ROWS]
    if missing:
        raise ValueError(f"Table 2 needs answers of every row; none of: {', '.join(missing)}")
    known, table = [o.facts for o in outcomes["ARD"]], []
    for row in ROWS:
        if row in ANALYTIC_ROWS:
            table.append(metrics.analytic_row(dataset, row, known))
        else:
            readings = (True, False) if is_gated(outcomes[row]) else (False,)
            table += [metrics.table2_row(dataset, row, outcomes[row], gated) for gated in readings]
    return table


def same_class(outcomes: Outcomes) -> list[dict]:
    """Recall@1 among the images of the query's class, its chance, and the paired difference: identity, not class."""
    rows = []
    for name in ordered(outcomes):
        own = recall_1(outcomes[name], gated=False, same=True)
        chance, clusters = 1 / metrics.candidates([o.facts for o in outcomes[name]], "class oracle"), of(outcomes[name])
        mean, gap = bootstrap_mean(own, clusters), paired_difference(own, chance, clusters)
        rows.append({"method": name, **columns("same_class_recall_1", mean, "ci_low", "ci_high"),
                     "same_class_chance": _round(chance.mean()), **columns("difference", gap), "n_queries": len(own)})
    return rows


def differences(outcomes: Outcomes, pairs: Sequence[tuple[str, str]] = COMPARISONS) -> list[dict]:
    """Recall@1 of a minus b over the same queries, gated (each by its own boxes; the oracle by a's) and ungated."""
    rows = []
    for a, b in pairs:
        for gated in (True, False):
            left, right = _reading(outcomes, a, a, gated), _reading(outcomes, b, a, gated)
            gap = paired_difference(left, right, of(outcomes[a]))
            rows.append({"a": a, "b": b, "gated": gated, "recall_1_a": _round(left.mean()),
                         "recall_1_b": _round(right.mean()), **columns("difference", gap, "ci_low", "ci_high"), "n_queries": len(left)})
    return rows


def profiles(outcomes: Outcomes) -> list[dict]:
    """`metrics.rank_profile` of every method, ungated: where in the ranking the source stands."""
    return [{"method": name, **row} for name in ordered(outcomes)
            for row in metrics.rank_profile(outcomes[name], gated=False)]


def strata(outcomes: Outcomes) -> list[dict]:
    """`metrics.strata` of every method, in its gated reading where it has boxes."""
    return [{"method": name, **row} for name in ordered(outcomes) for row in metrics.strata(outcomes[name])]


def query_rows(answers: Answers, outcomes: Outcomes) -> list[dict]:
    """One row per method and query: rank, IoU, and the strongest answers as [image_id, box, score], `TOP` of those that
    pictures show, of others the first."""
    rows = []
    for name in ordered(outcomes):
        for o in outcomes[name]:
            sample_id = o.facts.sample.sample_id
            best = sorted(answers[name][sample_id], key=lambda a: (-a.score, a.image_id))
            top = [[a.image_id, None if a.box is None else [round(v, 2) for v in a.box],
                    None if np.isinf(a.score) else round(a.score, 6)] for a in best[: TOP if name in PICTURED else 1]]
            rows.append({"method": name, "sample_id": sample_id, "rank": o.rank, "same_class_rank": o.same_class_rank,
                         "iou": None if o.iou is None else round(o.iou, 4), "top": top})
    return rows


# ---- which link fails ------------------------------------------------------------------------------------------------
def diagnose(outcomes: Outcomes, swaps: Sequence[Mapping] = ()) -> dict:
    """Where Recall@1 is lost between 1 and ARD's gated value; the three losses add up to all of it.

    ranking: rendered queries whose X is not first; proposal: of those that are, the ones without its box; generator:
    what generated queries lose against rendered ones. `link` is the largest, or 'none' when ARD is above its class
    oracle with the whole interval. `reads_exemplar`: swapping the token lowers the score of more than half of rendered
    queries, with the whole interval.
    """
    gated, rendered = recall_1(outcomes["ARD"]).mean(), recall_1(outcomes[RENDERED]).mean()
    ranked = recall_1(outcomes[RENDERED], gated=False).mean()
    losses = {"ranking": 1 - ranked, "proposal": ranked - rendered, "generator": rendered - gated}
    gap = differences(outcomes, [("ARD", "class oracle")])[0]
    wanted = ("rendered", "exemplar", "ARD")
    share = next((r["ci_low"] for r in swaps if (r["queries"], r["question"], r["method"]) == wanted), None)
    above = gap["ci_low"] is not None and gap["ci_low"] > 0
    return {"recall_1": _round(gated), "loss": {k: _round(v) for k, v in losses.items()}, "above_class_oracle": above,
            "link": "none" if above else max(losses, key=losses.get),
            "reads_exemplar": None if share is None else share > 0.5}


def verdict(found: Mapping) -> str:
    """The diagnosis in words."""
    lost = ", ".join(f"{value:.3f} at {name}" for name, value in found["loss"].items())
    token = {None: "There were no rivals of a class to swap tokens with.",
             True: "Swapping exemplar tokens lowers the score: the detector reads which individual it is asked for.",
             False: "Swapping exemplar tokens does not reliably lower the score: the detector does not read which "
                    "individual it is asked for."}[found["reads_exemplar"]]
    head = ("ARD is above its class oracle: it ranks by identity, not by class alone." if found["link"] == "none" else
            f"ARD is not above its class oracle. The failing link is {found['link']}.")
    return f"{head} Of Recall@1 = 1 it keeps {found['recall_1']:.3f} and loses {lost}. {token}"


# ---- shared ----------------------------------------------------------------------------------------------------------
def ordered(outcomes: Outcomes) -> list[str]:
    """The methods that were asked: rows of Table 2 in its order, then the others."""
    return [r for r in ROWS if r in outcomes] + [r for r in outcomes if r not in ROWS]


def of(outcomes: Sequence[Outcome]) -> list[str]:
    """(N,) the concept of each query, which the bootstrap resamples."""
    return [o.facts.sample.concept_id for o in outcomes]


def recall_1(outcomes: Sequence[Outcome], gated: bool = True, same: bool = False) -> np.ndarray:
    """(N,) Recall@1 per query, gated when wanted and the method has boxes; `same` ranks within the class only."""
    return metrics.values(outcomes, gated and is_gated(outcomes))["same_class_recall_1" if same else "recall_1"]


def _reading(outcomes: Outcomes, name: str, beside: str, gated: bool) -> np.ndarray:
    if name not in ANALYTIC_ROWS:
        return recall_1(outcomes[name], gated)
    other = outcomes[beside]
    box_acc = float(np.mean([o.box_ok for o in other])) if gated and is_gated(other) else None
    return metrics.blind_values([o.facts for o in other], name, box_acc)["recall_1"]


def columns(name: str, interval: Interval, low: str = "", high: str = "") -> dict[str, float | None]:
    """A mean and its bounds as columns of a table, those in `name`_low and `name`_high where nothing else is told; None for one that
    is not there."""
    keys = (name, low or f"{name}_low", high or f"{name}_high")
    return dict(zip(keys, map(_round, (interval.mean, interval.low, interval.high))))


def _round(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
