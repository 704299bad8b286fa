"""Does a detector read what it is asked? Each query is asked again with one thing changed: its exemplar, its words, its box.

Beside `ard.report`, which says how good the answers are (DESIGN 3, 8; FACTS 11, tests 2 to 4). Works for every method, since
only the question changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from ard.evaluation import Ask
from ard.files import sha256_bytes
from ard.geometry import box_iou
from ard.intervals import bootstrap_mean
from ard.records import Dataset, Gallery, Query, Sample, positive

QUESTIONS = ("exemplar", "text", "box")


def swap_partner(sample: Sample, samples: Iterable[Sample]) -> Sample | None:
    """A query of another individual of the class, of the same template when there is one; None when it is alone."""
    rivals = [s for s in samples if s.class_name == sample.class_name and s.individual_id != sample.individual_id]
    return min(rivals, key=lambda s: (s.template != sample.template, sha256_bytes(f"{sample.sample_id} {s.sample_id}".encode())),
               default=None)


def other_name(sample: Sample, names: Sequence[str]) -> str:
    """Another class name, by the hash of the sample's id."""
    others = sorted(set(names) - {sample.class_name})
    return others[int(sha256_bytes(sample.sample_id.encode())[:8], 16) % len(others)]


def moved_box(box, width: float, height: float) -> tuple[float, float, float, float]:
    """The box pushed into the corner of its picture where least of it stays: same size, xyxy pixels.

    >>> moved_box((0, 0, 40, 50), 64, 64)
    (24.0, 14.0, 64.0, 64.0)
    """
    x0, y0, x1, y1 = map(float, box)
    w, h = x1 - x0, y1 - y0
    corners = [(x, y, x + w, y + h) for x in (0.0, width - w) for y in (0.0, height - h)]
    return min(corners, key=lambda corner: box_iou(corner, box)[0, 0])


def changed_query(question: str, query: Query, partner: Query, names: Sequence[str]) -> Query:
    """The query with its exemplar (`partner`'s picture and box), its words, or its box changed."""
    if question == "exemplar":
        return Query(replace(partner.sample, class_name=query.sample.class_name), partner.image)
    height, width = query.image.shape[:2]
    change = {"text": {"class_name": other_name(query.sample, names)},
              "box": {"query_box": moved_box(query.sample.query_box, width, height)}}[question]
    return Query(replace(query.sample, **change), query.image)


def ask_changed(ask: Ask, samples: Sequence[Sample], dataset: Dataset, split: str, load: Callable[[Sample], Query],
                questions: Sequence[str] = QUESTIONS) -> list[dict]:
    """The score of each query's X as asked and with one thing changed; rows (question, method, sample_id, concept_id, own,
    changed, partner_above).

    The exemplar is another individual's of the class; `partner_above` says whether that one's own image then scores above
    X. A query without a rival of its class in the split is left out.
    """
    rows, names = [], {s.class_name for s in dataset.samples[split]}
    for sample in tqdm(samples, desc="changed questions", mininterval=5):
        other = swap_partner(sample, dataset.samples[split])
        if other is None:
            continue
        pair = Gallery([positive(s, dataset.gallery[split]) for s in (sample, other)], dataset.pixels)
        query, partner = load(sample), load(other)
        own = ask(query, pair)
        for question in questions:
            found = ask(changed_query(question, query, partner, names), pair)
            for method, (here, there) in found.items():
                rows.append({"question": question, "method": method, "sample_id": sample.sample_id,
                             "concept_id": sample.concept_id, "own": own[method][0].score, "changed": here.score,
                             "partner_above": there.score > here.score if question == "exemplar" else None})
    return rows


def change_summary(rows: Sequence[Mapping], queries: str) -> list[dict]:
    """For each question and method the share of queries whose score falls, with its interval (.5: it is not read), how far,
    and, of swapped exemplars, the share whose own image then scores above X."""
    table = []
    for question, method in dict.fromkeys((row["question"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["question"], row["method"]) == (question, method)]
        fall, owners = np.array([row["own"] - row["changed"] for row in mine]), [row["concept_id"] for row in mine]
        share = bootstrap_mean((fall > 0).astype(float), owners)
        row = {"queries": queries, "question": question, "method": method, "n_changed": len(mine), "share_fallen": share.mean,
               "ci_low": share.low, "ci_high": share.high, "mean_fall": fall.mean(),
               "partner_above": np.mean([r["partner_above"] for r in mine]) if question == "exemplar" else float("nan")}
        table.append({k: v if isinstance(v, (str, int)) else None if np.isnan(v) else round(float(v), 6) for k, v in row.items()})
    return table
