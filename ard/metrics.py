"""From attributions to numbers: ranks, Recall@K, InverseRank@K, the IoU gate, chance, oracles, Table 2 (paper, 5.1).

rank = 1 + negatives scoring at least as high as X (ties count against the method). A gated metric is 0 for a query
whose predicted box in X has IoU < 0.5 with R_X. Everything is computed per query first, so that any mean has its
clustered interval.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ard.geometry import box_iou
from ard.intervals import bootstrap_mean
from ard.records import Attribution, Dataset, GalleryImage, Sample, positive

IOU_GATE = 0.5
TABLE2_COLUMNS = (
    "dataset", "method", "gated", "box_acc", "inverse_rank_5", "recall_1", "recall_5", "recall_10",
    "recall_1_ungated", "class_oracle_recall_1", "same_class_recall_1", "same_class_chance", "ci_low_recall_1",
    "ci_high_recall_1",
    "n_queries", "n_exemplars", "n_drawings", "gallery_size")
ANALYTIC_ROWS = ("chance", "class oracle", "drawing oracle", "designer oracle")


@dataclass(frozen=True)
class Facts:
    """What is known of a query without any method.

    The n_* count gallery images (X included) with a true instance, annotated or not: of the class, of the class in the
    same drawing, of the class by the same designer. `instances` counts the objects of the class in X.
    """

    sample: Sample
    gallery_size: int
    n_class: int
    n_drawing: int
    n_designer: int
    instances: int
    area: float  # of R_X, as a share of X


@dataclass(frozen=True)
class Outcome:
    """One query of one method. `iou` is None when the method gave no box for X."""

    facts: Facts
    rank: int
    same_class_rank: int  # among the images with an instance of the class
    iou: float | None

    @property
    def box_ok(self) -> bool:
        return self.iou is not None and self.iou >= IOU_GATE


def recall_at(rank, k: int):
    """1 where rank <= k.

    >>> recall_at(np.array([1, 5, 6]), 5).tolist()
    [1.0, 1.0, 0.0]
    """
    return (np.asarray(rank) <= k).astype(np.float64)


def inverse_rank_at(rank, k: int):
    """1 / rank where rank <= k, else 0.

    >>> inverse_rank_at(np.array([1, 4, 6]), 5).tolist()
    [1.0, 0.25, 0.0]
    """
    rank = np.asarray(rank, np.float64)
    return np.where(rank <= k, 1 / rank, 0.0)


def blind_recall(n, k: int):
    """Expected Recall@k of guessing among n equal candidates, min(k, n) / n.

    >>> blind_recall(np.array([2, 10]), 5).tolist()
    [1.0, 0.5]
    """
    n = np.asarray(n, np.float64)
    return np.minimum(k, n) / n


def blind_inverse_rank(n, k: int):
    """Expected InverseRank@k of guessing among n: H(min(k, n)) / n, H the harmonic number.

    >>> blind_inverse_rank(np.array([1, 2]), 5).tolist()
    [1.0, 0.75]
    """
    n = np.asarray(n, np.int64)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, k + 1))])
    return harmonic[np.minimum(k, n)] / n


def facts(sample: Sample, gallery: Sequence[GalleryImage]) -> Facts:
    """Count a query's competitors; ValueError when its X does not list its individual."""
    def having(**wanted) -> int:
        return sum(any(all(getattr(o, k) == v for k, v in wanted.items()) for o in im.objects) for im in gallery)

    own = positive(sample, gallery)
    of_class = {"class_name": sample.class_name}
    of_drawing, of_designer = of_class | {"drawing": sample.drawing}, of_class | {"designer": sample.designer}
    if not any(o.class_name == sample.class_name and o.individual_id == sample.individual_id for o in own.objects):
        wanted = f"{sample.class_name!r} that is {sample.individual_id!r}"
        raise ValueError(f"{sample.sample_id}: {own.file} lists no {wanted}")
    x0, y0, x1, y1 = sample.exemplar_box
    return Facts(sample, len(gallery), having(**of_class), having(**of_drawing), having(**of_designer),
                 sum(o.class_name == sample.class_name for o in own.objects),
                 (x1 - x0) * (y1 - y0) / (own.width * own.height))


def outcome(known: Facts, attributions: Sequence[Attribution], gallery: Sequence[GalleryImage]) -> Outcome:
    """Rank X among the gallery. Every gallery image must be answered exactly once, with a score that is a number."""
    sample, scores = known.sample, {a.image_id: a.score for a in attributions}
    wanted = {im.image_id for im in gallery}
    if len(scores) != len(attributions) or scores.keys() != wanted:
        raise ValueError(f"{sample.sample_id}: expected one attribution for each of {len(wanted)} gallery images, "
                         f"found {len(attributions)} for {len(scores)} images, {len(wanted - scores.keys())} missing")
    if any(math.isnan(s) for s in scores.values()):
        raise ValueError(f"{sample.sample_id}: a score is NaN")
    own = positive(sample, gallery)
    ahead = [im for im in gallery if im.image_id != own.image_id and scores[im.image_id] >= scores[own.image_id]]
    rivals = sum(any(obj.class_name == sample.class_name for obj in im.objects) for im in ahead)
    box = next(a.box for a in attributions if a.image_id == own.image_id)
    iou = None if box is None else float(box_iou([box], [sample.exemplar_box])[0, 0])
    return Outcome(known, 1 + len(ahead), 1 + rivals, iou)


Attributions = Mapping[str, Sequence[Attribution]]  # by sample_id


def evaluate(attributions: Attributions, dataset: Dataset, split: str = "test") -> list[Outcome]:
    """Outcomes of a method from {sample_id: attributions over the split's gallery}, in the dataset's order."""
    samples = {s.sample_id: s for s in dataset.samples[split]}
    if not attributions or attributions.keys() - samples.keys():
        raise ValueError(f"expected attributions of samples of split {split!r}, found {len(attributions)}, unknown: "
                         f"{sorted(attributions.keys() - samples.keys())[:3]}")
    gallery = dataset.gallery[split]
    return [outcome(facts(s, gallery), attributions[i], gallery) for i, s in samples.items() if i in attributions]


def is_gated(outcomes: Sequence[Outcome]) -> bool:
    """A method with boxes is gated; one that ranks whole images cannot be."""
    return any(o.iou is not None for o in outcomes)


def values(outcomes: Sequence[Outcome], gated: bool) -> dict[str, np.ndarray]:
    """Each metric per query, (N,)."""
    rank, box_ok = np.array([o.rank for o in outcomes]), np.array([o.box_ok for o in outcomes], np.float64)
    gate = box_ok if gated else np.ones(len(outcomes))
    return {"inverse_rank_5": gate * inverse_rank_at(rank, 5), "recall_1": gate * recall_at(rank, 1),
            "recall_5": gate * recall_at(rank, 5), "recall_10": gate * recall_at(rank, 10),
            "recall_1_ungated": recall_at(rank, 1), "box_acc": box_ok,
            "same_class_recall_1": recall_at([o.same_class_rank for o in outcomes], 1)}


def candidates(known: Sequence[Facts], row: str) -> np.ndarray:
    """(N,) images an analytic row guesses among: the whole gallery, or those of the class, drawing or designer."""
    field = dict(zip(ANALYTIC_ROWS, ("gallery_size", "n_class", "n_drawing", "n_designer"), strict=True))
    return np.array([getattr(f, field[row]) for f in known])


def blind_values(known: Sequence[Facts], row: str, box_acc: float | None = None) -> dict[str, np.ndarray]:
    """Expected metrics per query of an analytic row, with a method's `box_acc` gated, times box_acc / instances."""
    n = candidates(known, row)
    gate = 1.0 if box_acc is None else box_acc / np.array([f.instances for f in known])
    of_class = np.array([f.n_class for f in known])
    return {"inverse_rank_5": gate * blind_inverse_rank(n, 5), "recall_1": gate * blind_recall(n, 1),
            "recall_5": gate * blind_recall(n, 5), "recall_10": gate * blind_recall(n, 10),
            "recall_1_ungated": blind_recall(n, 1), "same_class_recall_1": 1 / np.minimum(n, of_class)}


def table2_row(dataset: str, method: str, outcomes: Sequence[Outcome], gated: bool | None = None, seed: int = 0):
    """A method's row of Table 2; `gated` None decides by `is_gated`.

    The class oracle of a gated row is gated as well, with this method's box accuracy. Same-class columns are ungated.
    """
    gated = is_gated(outcomes) if gated is None else gated
    per_query = values(outcomes, gated)
    box_ok = per_query.pop("box_acc")
    box_acc = float(box_ok.mean()) if is_gated(outcomes) else None
    return _row(dataset, method, [o.facts for o in outcomes], gated, per_query, box_acc, seed)


def analytic_row(dataset: str, method: str, known: Sequence[Facts], seed: int = 0) -> dict:
    """The row of chance or of an oracle (`ANALYTIC_ROWS`), ungated."""
    return _row(dataset, method, known, False, blind_values(known, method), None, seed)


def _row(dataset, method, known, gated, per_query, box_acc, seed) -> dict:
    samples = [f.sample for f in known]
    interval = bootstrap_mean(per_query["recall_1"], [s.concept_id for s in samples], seed=seed)
    means = {name: float(v.mean()) for name, v in per_query.items()}
    oracle = blind_values(known, "class oracle", box_acc if gated else None)["recall_1"].mean()
    row = {"dataset": dataset, "method": method, "gated": gated, "box_acc": box_acc, **means,
           "class_oracle_recall_1": float(oracle), "same_class_chance": float(np.mean([1 / f.n_class for f in known])),
           "ci_low_recall_1": interval.low, "ci_high_recall_1": interval.high, "n_queries": len(samples),
           "n_exemplars": len({s.concept_id for s in samples}), "n_drawings": len({s.drawing for s in samples}),
           "gallery_size": known[0].gallery_size}
    return {name: _rounded(row[name]) for name in TABLE2_COLUMNS}


def rank_profile(outcomes: Sequence[Outcome], gated: bool | None = None) -> list[dict]:
    """Share of queries with X at rank 1, 2-5, 6-10 or later, in all and per rank; a class filter is flat in 1-5."""
    gated = is_gated(outcomes) if gated is None else gated
    kept = np.array([o.rank if o.box_ok or not gated else 0 for o in outcomes])
    size = max(o.facts.gallery_size for o in outcomes)
    rows = []
    for low, high in ((1, 1), (2, 5), (6, 10), (11, size)):
        high = min(high, size)
        if low <= high:
            share = float(((kept >= low) & (kept <= high)).mean())
            rows.append({"ranks": f"{low}-{high}" if low < high else str(low), "share": _rounded(share),
                         "per_rank": _rounded(share / (high - low + 1)), "chance_per_rank": _rounded(1 / size)})
    return rows


def strata(outcomes: Sequence[Outcome], gated: bool | None = None, seed: int = 0) -> list[dict]:
    """Recall@1 with its interval by class, medium, context, size of R_X, and look-alikes elsewhere in the gallery."""
    gated = is_gated(outcomes) if gated is None else gated
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for o in outcomes:
        f = o.facts
        keys = {"class": f.sample.class_name, "medium": f.sample.medium, "context": f.sample.context,
                "area": "below .1" if f.area < 0.1 else ".1 to .3" if f.area < 0.3 else ".3 and above",
                "same drawing elsewhere": "yes" if f.n_drawing > 1 else "no",
                "same designer elsewhere": "yes" if f.n_designer > 1 else "no"}
        for key in keys.items():
            groups.setdefault(key, []).append(o)
    rows = []
    for (stratum, value), members in sorted(groups.items()):
        per_query = values(members, gated)
        interval = bootstrap_mean(per_query["recall_1"], [o.facts.sample.concept_id for o in members], seed=seed)
        oracle = blind_values([o.facts for o in members], "class oracle")["recall_1"]
        rows.append({"stratum": stratum, "value": value, "n_queries": len(members), "recall_1": _rounded(interval.mean),
                     "ci_low_recall_1": _rounded(interval.low), "ci_high_recall_1": _rounded(interval.high),
                     "class_oracle_recall_1_ungated": _rounded(float(oracle.mean())),
                     "box_acc": _rounded(float(per_query["box_acc"].mean())) if is_gated(members) else None})
    return rows


def to_csv(rows: Iterable[Mapping], columns: Sequence[str]) -> str:
    """Rows as CSV text with exactly these columns; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rounded(value):
    """Six digits after the point are kept on disk; a bound that does not exist becomes None."""
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value
