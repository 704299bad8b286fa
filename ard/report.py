"""What the answers mean: Table 2, same-class ranking, paired differences, token swaps, and which link of the chain fails.

After `ard.evaluation` (paper, section 5; DESIGN 3, 8). All is computed per query; intervals resample exemplars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ard import metrics
from ard.detector.method import DetectorMethod
from ard.evaluation import ROWS, Answers
from ard.files import sha256_bytes
from ard.intervals import Interval, bootstrap_mean, paired_difference
from ard.metrics import ANALYTIC_ROWS, Outcome, is_gated
from ard.records import Dataset, Gallery, Query, Sample, positive

RENDERED = "ARD (rendered queries)"
CROPS_RENDERED = "crop cosine (rendered queries)"  # no row of Table 2: what ARD must beat on rendered queries
COMPARISONS = (("ARD", "class oracle"), ("ARD", "colour histogram"), ("ARD", "crop cosine"), ("ARD", "AbC"),
               ("ARD", "CountGD (untrained)"), ("ARD", "ARD-"), (RENDERED, "class oracle"), (RENDERED, CROPS_RENDERED))
TOP = 10  # answers of a query that are kept for pictures
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
        rows.append({"method": name, **_interval("same_class_recall_1", mean), "same_class_chance": _round(chance.mean()),
                     "difference": _round(gap.mean), "difference_low": _round(gap.low),
                     "difference_high": _round(gap.high), "n_queries": len(own)})
    return rows


def differences(outcomes: Outcomes, pairs: Sequence[tuple[str, str]] = COMPARISONS) -> list[dict]:
    """Recall@1 of a minus b over the same queries, gated (each by its own boxes; the oracle by a's) and ungated."""
    rows = []
    for a, b in pairs:
        for gated in (True, False):
            left, right = _reading(outcomes, a, a, gated), _reading(outcomes, b, a, gated)
            gap = paired_difference(left, right, of(outcomes[a]))
            rows.append({"a": a, "b": b, "gated": gated, "recall_1_a": _round(left.mean()),
                         "recall_1_b": _round(right.mean()), **_interval("difference", gap), "n_queries": len(left)})
    return rows


def profiles(outcomes: Outcomes) -> list[dict]:
    """`metrics.rank_profile` of every method, ungated: where in the ranking the source stands."""
    return [{"method": name, **row} for name in ordered(outcomes)
            for row in metrics.rank_profile(outcomes[name], gated=False)]


def strata(outcomes: Outcomes) -> list[dict]:
    """`metrics.strata` of every method, in its gated reading where it has boxes."""
    return [{"method": name, **row} for name in ordered(outcomes) for row in metrics.strata(outcomes[name])]


def query_rows(answers: Answers, outcomes: Outcomes) -> list[dict]:
    """One row per method and query: rank, IoU, and the `TOP` strongest answers as [image_id, box, score]."""
    rows = []
    for name in ordered(outcomes):
        for o in outcomes[name]:
            sample_id = o.facts.sample.sample_id
            best = sorted(answers[name][sample_id], key=lambda a: (-a.score, a.image_id))[:TOP]
            top = [[a.image_id, None if a.box is None else [round(v, 2) for v in a.box],
                    None if np.isinf(a.score) else round(a.score, 6)] for a in best]
            rows.append({"method": name, "sample_id": sample_id, "rank": o.rank, "same_class_rank": o.same_class_rank,
                         "iou": None if o.iou is None else round(o.iou, 4), "top": top})
    return rows


# ---- exemplar-token swap ---------------------------------------------------------------------------------------------
def swap_partner(sample: Sample, samples: Iterable[Sample]) -> Sample | None:
    """A query of another individual of the class, of the same template when there is one; None when it is alone."""
    rivals = [s for s in samples if s.class_name == sample.class_name and s.individual_id != sample.individual_id]
    return min(rivals, key=lambda s: (s.template != sample.template, sha256_bytes(f"{sample.sample_id} {s.sample_id}".encode())),
               default=None)


def swap_tokens(method: DetectorMethod, samples: Sequence[Sample], dataset: Dataset, split: str,
                load: Callable[[Sample], Query]) -> list[dict]:
    """How a query's score on its own X falls when its exemplar token is another individual's of the same class.

    Rows (sample_id, partner, method ARD- or ARD, own, swapped); a query without a rival in its split is left out.
    """
    rows = []
    for sample in samples:
        partner = swap_partner(sample, dataset.samples[split])
        if partner is None:
            continue
        source = Gallery([positive(sample, dataset.gallery[split])], dataset.pixels)
        query, other = load(sample), method.prompt(load(partner))
        own, swapped = method.rank_both(query, source), method.rank_both(query, source, other)
        rows += [{"sample_id": sample.sample_id, "concept_id": sample.concept_id, "partner": partner.sample_id,
                  "method": name, "own": round(own[name][0].score, 6), "swapped": round(swapped[name][0].score, 6)}
                 for name in own]
    return rows


def swap_summary(rows: Sequence[Mapping], queries: str) -> list[dict]:
    """Share of queries whose score falls, with its interval: .5 for a detector that does not read the exemplar."""
    table = []
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        fall = np.array([row["own"] - row["swapped"] for row in mine])
        share = bootstrap_mean((fall > 0).astype(float), [row["concept_id"] for row in mine])
        table.append({"queries": queries, "method": name, "n_swapped": len(mine), **_interval("share_fallen", share),
                      "mean_fall": _round(fall.mean())})
    return table


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
    share = next((r["ci_low"] for r in swaps if r["queries"] == "rendered" and r["method"] == "ARD"), None)
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


def _interval(name: str, interval: Interval) -> dict:
    return {name: _round(interval.mean), "ci_low": _round(interval.low), "ci_high": _round(interval.high)}


def _round(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
