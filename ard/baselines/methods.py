"""The interface of an attribution method, and the loop that asks one every query of a split (DESIGN 8, last line).

An author of another method writes a class with `rank` and scores it with `run_method`, `ard.metrics.evaluate` and
`ard.metrics.table2_row`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol

from tqdm import tqdm

from ard.files import sha256_bytes
from ard.records import Attribution, Dataset, Gallery, Query, Sample


class Method(Protocol):
    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        """One attribution for each gallery image, in any order; a higher score means more influence.

        It may read of `query.sample` only Q, R_Q, the prompt and the class. Whole-image methods answer with box None;
        a method that finds nothing in an image answers with score -inf.
        """


def pick_queries(samples: Iterable[Sample], per_exemplar: int | None) -> tuple[Sample, ...]:
    """At most `per_exemplar` queries of each concept (None: all), chosen by the hash of their ids: templates mix."""
    if per_exemplar is not None and per_exemplar < 1:
        raise ValueError(f"queries per exemplar: expected at least 1, found {per_exemplar}")
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.concept_id].append(sample)
    chosen = {s.sample_id for group in groups.values()
              for s in sorted(group, key=lambda s: sha256_bytes(s.sample_id.encode()))[:per_exemplar]}
    return tuple(s for group in groups.values() for s in group if s.sample_id in chosen)


def run_method(method: Method, dataset: Dataset, split: str = "test", samples: Iterable[Sample] | None = None,
               name: str = "queries") -> dict[str, list[Attribution]]:
    """Attributions of every sample (default: all of the split) over the split's gallery, for `ard.metrics.evaluate`."""
    gallery = dataset.open_gallery(split)
    samples = dataset.samples[split] if samples is None else tuple(samples)
    return {s.sample_id: method.rank(dataset.query(s), gallery) for s in tqdm(samples, desc=name, mininterval=5)}
