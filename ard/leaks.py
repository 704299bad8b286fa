"""Leak probes: rankings that must not find X, because they see no region; one above chance means the dataset leaks.

Chance is a distribution: queries of one exemplar stand together, so it is found by shuffling which gallery image
belongs to which exemplar. Each probe is measured over the whole gallery and among the images of the query's class.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from ard.baselines.colour_histogram import colour_histogram
from ard.geometry import to_cxcywh
from ard.intervals import bootstrap_mean
from ard.records import Dataset, GalleryImage, Sample

PROBE_COLUMNS = ("probe", "among", "recall_1", "ci_low", "ci_high", "chance", "chance_low", "chance_high", "leaks")
MARGIN = 2.0  # px around a region that are masked with it: soft edges of the object


def hits(scores: np.ndarray) -> np.ndarray:
    """(Q, G) scores -> (Q, G) expected Recall@1 if column g were the answer, ties broken at random.

    >>> hits(np.array([[1.0, 3.0, 3.0]])).tolist()
    [[0.0, 0.5, 0.5]]
    """
    top = scores == scores.max(1, keepdims=True)
    return top / top.sum(1, keepdims=True)


def probe_row(name: str, among: str, scores: np.ndarray, owner: np.ndarray, clusters, group: np.ndarray,
              shuffles: int = 1000, seed: int = 0) -> dict:
    """One row in `PROBE_COLUMNS`.

    scores (Q, G), -inf where an image is not in the competition; owner (Q,) the column of each query's X; group (G,):
    columns are only shuffled among columns of the same group.
    """
    rng, table, rows = np.random.default_rng(seed), hits(scores), np.arange(len(owner))
    found = bootstrap_mean(table[rows, owner], clusters, seed=seed)
    by_chance = np.empty(shuffles)
    for i in range(shuffles):
        moved = np.arange(scores.shape[1])
        for value in np.unique(group):
            members = np.flatnonzero(group == value)
            moved[members] = rng.permutation(members)
        by_chance[i] = table[rows, moved[owner]].mean()
    low, high = np.quantile(by_chance, [0.025, 0.975])
    numbers = {"recall_1": found.mean, "ci_low": found.low, "ci_high": found.high,
               "chance": (1 / np.isfinite(scores).sum(1)).mean(), "chance_low": low, "chance_high": high}
    numbers = {k: None if np.isnan(v) else round(float(v), 6) for k, v in numbers.items()}
    return {"probe": name, "among": among, **numbers, "leaks": bool(found.mean > high + 1e-9)}


def leak_probes(dataset: Dataset, split: str = "test", shuffles: int = 1000, seed: int = 0) -> list[dict]:
    """Rows for box geometry, pixels and colours outside the regions, medium, and file order.

    Place and size of a box belong to the picture, so they must say nothing. Its aspect ratio belongs to the individual
    (a stretched horse has a wide box wherever it stands): above chance it is a cue of identity rather than a leak.
    """
    samples, gallery = dataset.samples[split], dataset.gallery[split]
    column = {im.file: g for g, im in enumerate(gallery)}
    owner = np.array([column[s.exemplar_file] for s in samples])
    shows = np.array([[any(o.class_name == s.class_name for o in im.objects) for im in gallery] for s in samples])
    kind = {s.exemplar_file: s.class_name for s in samples}
    group = np.unique([kind.get(im.file, "") for im in gallery], return_inverse=True)[1]
    clusters, rows = [s.concept_id for s in samples], []
    for name, scores in rankings(dataset, samples, gallery).items():
        rows.append(probe_row(name, "all images", scores, owner, clusters, 0 * group, shuffles, seed))
        only = np.where(shows, scores, -np.inf)
        rows.append(probe_row(name, "images of the class", only, owner, clusters, group, shuffles, seed))
    return rows


def rankings(dataset: Dataset, samples: tuple[Sample, ...], gallery: tuple[GalleryImage, ...]) -> dict[str, np.ndarray]:
    """The scores (Q, G) of each probe, by name."""
    queries, images = [dataset.pixels(s.query_file) for s in samples], [dataset.pixels(im.file) for im in gallery]
    asked, boxes = [s.query_box for s in samples], exemplar_boxes(samples, gallery)
    place_in_file = np.linspace(0, 1, len(samples))[:, None] - np.linspace(0, 1, len(gallery))[None]
    return {
        "box geometry": near(geometry(asked, queries), geometry(boxes, images)),
        "box place and size": near(geometry(asked, queries)[:, :3], geometry(boxes, images)[:, :3]),
        "box aspect ratio": near(geometry(asked, queries)[:, 3:], geometry(boxes, images)[:, 3:]),
        "pixels outside the regions": outside_pixels(queries, asked, images, boxes),
        "colours outside the regions": compare(colours, queries, asked, images, boxes),
        "medium outside the regions": compare(medium, queries, asked, images, boxes),
        "file order": -np.abs(place_in_file),
    }


def exemplar_boxes(samples: tuple[Sample, ...], gallery: tuple[GalleryImage, ...]) -> list:
    """R_X of each gallery image, or its largest true object where no query asks for it."""
    known = {s.exemplar_file: s.exemplar_box for s in samples}

    def largest(image: GalleryImage):
        whole = (0.0, 0.0, float(image.width), float(image.height))
        return max((o.box for o in image.objects), key=lambda b: (b[2] - b[0]) * (b[3] - b[1]), default=whole)

    return [known.get(im.file) or largest(im) for im in gallery]


def near(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(Q, d), (G, d) -> (Q, G) negative distances, each feature scaled by its spread over all."""
    spread = np.concatenate([a, b]).std(0)
    scale = np.where(spread > 0, spread, 1)
    return -np.linalg.norm(a[:, None] / scale - b[None] / scale, axis=-1)


def geometry(boxes, images) -> np.ndarray:
    """(n, 4): centre and log area as shares of the image, log aspect ratio."""
    pairs = zip(boxes, images, strict=True)
    rows = np.array([to_cxcywh(np.array(box), image.shape[1], image.shape[0]) for box, image in pairs])
    width, height = np.log(rows[:, 2:].T)
    return np.stack([rows[:, 0], rows[:, 1], width + height, width - height], 1)


def outside(image: np.ndarray, box) -> np.ndarray:
    """(H, W) bool: the pixels outside a box and its margin; all of them where nothing would be left."""
    x, y = np.arange(image.shape[1]) + 0.5, np.arange(image.shape[0]) + 0.5
    rows, columns = (y > box[1] - MARGIN) & (y < box[3] + MARGIN), (x > box[0] - MARGIN) & (x < box[2] + MARGIN)
    inside = rows[:, None] & columns
    return np.ones_like(inside) if inside.all() else ~inside


def colours(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(64,) root shares of a 4 x 4 x 4 RGB histogram of the pixels in the mask."""
    return colour_histogram([image[mask]], bins=4)[0]


def medium(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(4,): mean saturation, brightness, contrast, edge strength of the pixels in the mask: what a medium changes."""
    pixels = image.astype(np.float64) / 255
    grey = pixels.mean(2)
    edges = np.hypot(*np.gradient(grey))
    return np.array([np.ptp(pixels, axis=2)[mask].mean(), grey[mask].mean(), grey[mask].std(), edges[mask].mean()])


def compare(feature: Callable, queries, asked, images, boxes) -> np.ndarray:
    """(Q, G) likeness of a feature of the pixels outside R_Q and outside R_X."""
    a = np.stack([feature(im, outside(im, box)) for im, box in zip(queries, asked, strict=True)])
    b = np.stack([feature(im, outside(im, box)) for im, box in zip(images, boxes, strict=True)])
    return near(a, b)


def outside_pixels(queries, asked, images, boxes, size: int = 16) -> np.ndarray:
    """(Q, G) negative mean squared difference of thumbnails over the cells that lie outside both regions."""
    def shrink(array: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BOX))

    def cells(pictures, regions):
        thumbs = np.stack([shrink(im).reshape(-1, 3) / 255 for im in pictures])
        masks = [shrink(outside(im, r).astype(np.uint8) * 255) == 255 for im, r in zip(pictures, regions, strict=True)]
        return thumbs, np.stack(masks).reshape(len(masks), -1).astype(np.float64)

    (q, qm), (x, xm) = cells(queries, asked), cells(images, boxes)
    # the sum over shared cells of (q - x)^2, expanded so that all pairs are three matrix products
    q_part, x_part = (q**2).sum(2) * qm, (x**2).sum(2) * xm
    cross = (q * qm[..., None]).reshape(len(q), -1) @ (x * xm[..., None]).reshape(len(x), -1).T
    return -(q_part @ xm.T + qm @ x_part.T - 2 * cross) / np.maximum(qm @ xm.T, 1)
