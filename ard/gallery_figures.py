"""Pictures of queries and what methods answer: the paper's Figures 3 and 13 in our terms, and what a concept looks like.

Used by notebook 09; reads a dataset and the rows of data/results/queries.jsonl.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ard.plots import TRUTH, colour, tile
from ard.records import Dataset, Sample, positive

NAMES = 1.4  # inches left of the pictures, for methods' names


def answers_figure(dataset: Dataset, split: str, results: Mapping[tuple[str, str], Mapping],
                   samples: Sequence[Sample], methods: Sequence[str], top: int = 10) -> Figure:
    """For each query a row per method: the query with R_Q, then the method's strongest answers with box and score.

    results: rows of queries.jsonl by (method, sample_id). The true image is framed; a row without a frame missed it.
    """
    images = {image.image_id: image for image in dataset.gallery[split]}
    height, width = len(samples) * len(methods), 1.25 * (top + 1) + NAMES
    figure, panels = plt.subplots(height, top + 1, figsize=(width, 1.4 * height), squeeze=False)
    for axes in panels.ravel():
        axes.axis("off")
    for place in range(height):
        sample, method = samples[place // len(methods)], methods[place % len(methods)]
        row, own = results[method, sample.sample_id], positive(sample, dataset.gallery[split]).image_id
        shown(panels[place, 0], dataset.pixels(sample.query_file), sample.query_box, f"query: {sample.class_name}",
              colour(method), colour(method))
        panels[place, 0].text(-0.12, 0.5, "\n".join([*textwrap.wrap(method, 18), f"rank {row['rank']}"]), ha="right", va="center",
                              transform=panels[place, 0].transAxes, fontsize=8)
        for axes, (image_id, box, score) in zip(panels[place, 1:], row["top"]):
            caption = "nothing found" if score is None else f"{score:.3f}"
            shown(axes, dataset.pixels(images[image_id].file), box, caption, TRUTH if image_id == own else None)
    figure.subplots_adjust(left=NAMES / width, right=0.99, bottom=0.01, top=1 - 0.25 / (1.4 * height), wspace=0.08, hspace=0.2)
    return figure


def wrong_figure(dataset: Dataset, split: str, wrong: Mapping[str, Sequence], count: int = 5) -> Figure:
    """For each method the answers it was surest of and wrong about: beside each query the image it was given, with box and
    score.

    wrong: by method rows [sample_id, image_id, box, score], the surest first.
    """
    images, samples = {im.image_id: im for im in dataset.gallery[split]}, {s.sample_id: s for s in dataset.samples[split]}
    figure, panels = plt.subplots(len(wrong), 2 * count, figsize=(0.75 * 2 * count + 2.6, 0.95 * len(wrong)), dpi=60,
                                  squeeze=False)
    for axes in panels.ravel():
        axes.axis("off")
    for line, (method, rows) in zip(panels, wrong.items()):
        for place, (sample_id, image_id, box, score) in enumerate(rows[:count]):
            sample = samples[sample_id]
            shown(line[2 * place], dataset.pixels(sample.query_file), sample.query_box, "")
            shown(line[2 * place + 1], dataset.pixels(images[image_id].file), box, f"{score:.3g}")
        line[0].text(-0.1, 0.5, method, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(left=0.26, right=0.99, bottom=0.01, top=0.97, wspace=0.06, hspace=0.3)
    return figure


def concepts_figure(dataset: Dataset, split: str, per_class: int, queries: int = 6) -> Figure:
    """Exemplars with R_X, beside each queries that were generated from it, with R_Q, evenly spaced over the templates."""
    concepts: dict[str, dict[str, list[Sample]]] = {}
    for sample in dataset.samples[split]:
        concepts.setdefault(sample.class_name, {}).setdefault(sample.concept_id, []).append(sample)
    rows = [spaced(sorted(found, key=lambda s: s.template), queries)
            for name in sorted(concepts) for _, found in sorted(concepts[name].items())[:per_class]]
    figure, panels = plt.subplots(len(rows), queries + 1, figsize=(1.35 * (queries + 1), 1.5 * len(rows)), squeeze=False)
    for axes in panels.ravel():
        axes.axis("off")
    for line, samples in zip(panels, rows):
        first = samples[0]
        shown(line[0], dataset.pixels(first.exemplar_file), first.exemplar_box, f"exemplar: {first.class_name}", TRUTH)
        for axes, sample in zip(line[1:], samples):
            shown(axes, dataset.pixels(sample.query_file), sample.query_box, f"{sample.medium}"[:16])
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.97, wspace=0.08, hspace=0.3)
    return figure


def spaced(items: Sequence, count: int) -> list:
    """At most `count` of the items, evenly spaced, the first and the last among them.

    >>> spaced("abcdefg", 3), spaced("ab", 3)
    (['a', 'd', 'g'], ['a', 'b'])
    """
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in places]


def shown(axes, image, box, title: str, frame: str | None = None, colour: str | None = None) -> None:
    """A tile on an axis that was switched off."""
    axes.axis("on")
    tile(axes, image, box, title, frame, **({"colour": colour} if colour else {}))


def illustrative(results: Mapping[tuple[str, str], Mapping], samples: Sequence[Sample], count: int) -> list[Sample]:
    """Queries chosen by position, not by outcome: evenly spaced in the order of class and id, so hits and misses
    appear as often as they happen."""
    known = sorted((s for s in samples if ("ARD", s.sample_id) in results), key=lambda s: (s.class_name, s.sample_id))
    count = min(count, len(known))
    return [known[(2 * i + 1) * len(known) // (2 * count)] for i in range(count)]
