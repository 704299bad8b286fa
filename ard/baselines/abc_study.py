"""AbC's own evaluation: encoders x mappers, exemplars among many distractors (supplement, Tables 2 and 3, Figure 6).

Beside the arena, which has no distractors. Classes and prompts are held out of the mappers' training, and reported apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ard.baselines.abc import AbCConfig, Augment, Mappers, pair_features, train
from ard.baselines.cosine import Encode, unit
from ard.baselines.influence import calibrate, influence, keep
from ard.baselines.self_supervised import mild, strong
from ard.files import kept_arrays, sha256_bytes
from ard.metrics import recall_at
from ard.records import Dataset, Sample
from ard.world import World

Distractor = Callable[[int], np.ndarray]  # number -> picture (H, W, 3) uint8
RECALLS = (5, 10, 100)


@dataclass(frozen=True)
class StudySettings:
    distractors: int = 10_000  # published 1,000,000 pictures of LAION
    chunk: int = 500  # distractors drawn, encoded and kept at once
    unseen: tuple[str, ...] = ("zebra", "sheep", "elephant")  # classes that no mapper is trained on; published 93 of 693
    test_templates: tuple[int, ...] = (3, 4, 8, 9)  # prompts that no mapper is trained on; published: all of the test prompts
    copies: int = 4  # augmented copies of each training picture; published: a new one each time
    top: int = 1000  # R of the calibration; published 100,000
    mappers: AbCConfig = field(default_factory=AbCConfig)
    seed: int = 0  # of distractors and augmentation


def variants(config: AbCConfig) -> dict[str, tuple[AbCConfig, Augment | None]]:
    """The published ablation (supplement 2.2): name -> how mappers are trained, and on which augmentation."""
    return {"none": (replace(config, mapper="none"), None),
            "linear": (config, mild),
            "linear, no regulariser": (replace(config, regularisation=0.0), mild),
            "channel": (replace(config, mapper="channel"), mild),
            "MLP": (replace(config, mapper="mlp"), mild),
            "linear, strong augmentation": (config, strong)}


def base_scenes(world: World, seed: int) -> Distractor:
    """Distractor i: a photo of base individuals, none of which is anybody's exemplar; it depends on (seed, i) alone.

    Each is drawn once and kept, 12 kB, for the next encoder.
    """
    return cache(lambda i: world.scene(np.random.default_rng([seed, i]), medium="photo").image)


@dataclass(frozen=True, eq=False)
class Found:
    """What one mapper over one encoder makes of the queries of a split."""

    encoder: str
    mapper: str
    similarity: np.ndarray  # (Q, E + N) float32, of each query to each exemplar of the split, then to each distractor
    owner: np.ndarray  # (Q,) the column of each query's exemplar
    tau: float  # temperature calibrated on the pairs that the mapper learned from


def abc_study(dataset: Dataset, split: str, encoders: Mapping[str, Encode], distractor: Distractor, settings: StudySettings,
              folder: str | Path | None = None) -> Iterator[Found]:
    """For each encoder and each of `variants`: each query's one exemplar among the split's exemplars and the distractors.

    folder: where features of distractors are kept, chunk by chunk; `distractor` is then part of what they depend on, so
    use one folder for one world and one state of the encoders.
    """
    samples = dataset.samples[split]
    taught = [s for s in dataset.samples["train"]
              if s.class_name not in settings.unseen and s.template not in settings.test_templates]
    for name, encode in encoders.items():
        crowd = distractor_features(name, encode, distractor, settings, folder)
        asked, plain = (pair_features(dataset, part, encode) for part in (samples, taught))
        copies: dict[Augment | None, dict] = {None: plain}
        for mapper, (config, augment) in variants(settings.mappers).items():
            if augment not in copies:
                copies[augment] = pair_features(dataset, taught, encode, "whole", augment, settings.copies, settings.seed)
            mappers = train(**copies[augment], config=config)[0]
            learned = similarities(mappers, plain, crowd)
            own = np.arange(learned.shape[1]) == plain["owner"][:, None]
            tau = calibrate(keep(learned, own, min(settings.top, learned.shape[1])))
            yield Found(name, mapper, similarities(mappers, asked, crowd), asked["owner"], tau)


def distractor_features(name: str, encode: Encode, distractor: Distractor, settings: StudySettings,
                        folder: str | Path | None = None) -> np.ndarray:
    """Features (N, d) of the distractors; with a folder each finished chunk is kept there."""
    def chunk(start: int) -> dict[str, np.ndarray]:
        numbers = range(start, min(start + settings.chunk, settings.distractors))
        return {"features": np.asarray(encode([distractor(i) for i in numbers]), np.float32)}

    starts = range(0, settings.distractors, settings.chunk)
    what = sha256_bytes(repr((name, settings.seed, settings.chunk, settings.distractors)).encode())[:12]
    files = [folder and Path(folder) / f"{name}-{what}-{start:07d}.npz" for start in starts]
    parts = [kept_arrays(file, lambda: chunk(start))["features"]
             for start, file in tqdm(list(zip(starts, files)), desc=f"distractors, {name}", mininterval=5)]
    return np.concatenate(parts)


def similarities(mappers: Mappers, pairs: Mapping[str, np.ndarray], crowd: np.ndarray) -> np.ndarray:
    """(Q, E + N) float32: F~(q) . F(x) of every query with every exemplar of `pairs` and every distractor."""
    real = np.concatenate([pairs["real"][0], crowd])
    return np.float32(unit(mappers.map_synthetic(pairs["synthetic"][0]))) @ np.float32(unit(mappers.map_real(real))).T


def ranks(similarity: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(Q,) rank of each query's exemplar, a column of `similarity` (Q, N); ties count against it.

    >>> ranks(np.array([[0.5, 0.9, 0.5], [0.1, 0.2, 0.3]]), np.array([0, 2])).tolist()
    [3, 1]
    """
    own = np.take_along_axis(similarity, owner[:, None], 1)
    return (similarity >= own).sum(1)


def summaries(samples: Sequence[Sample], found: Found, settings: StudySettings) -> Iterator[dict]:
    """A row of the table for each group of queries that is not empty: classes (seen, unseen), prompts (context, medium), wording
    (train, test), and over its queries Recall@5, @10, @100, mAP and the calibrated influence that goes to the exemplar.

    With one exemplar a query, average precision is 1 / rank.
    """
    groups: dict[tuple[str, str, str], list[int]] = {}
    for i, s in enumerate(samples):
        group = ("unseen" if s.class_name in settings.unseen else "seen", "context" if s.medium == "photo" else "medium",
                 "test" if s.template in settings.test_templates else "train")
        groups.setdefault(group, []).append(i)
    rank = ranks(found.similarity, found.owner)
    share = np.take_along_axis(influence(found.similarity, found.tau), found.owner[:, None], 1)[:, 0]
    for group, index in sorted(groups.items()):
        yield {"encoder": found.encoder, "mapper": found.mapper, **dict(zip(("classes", "prompts", "wording"), group)),
               "n_queries": len(index), "n_exemplars": len({samples[i].concept_id for i in index}),
               **{f"recall_{k}": round(float(recall_at(rank[index], k).mean()), 6) for k in RECALLS},
               "map": round(float((1 / rank[index]).mean()), 6), "influence": round(float(share[index].mean()), 6),
               "tau": round(found.tau, 6)}


def spread(found: Found, places: Sequence[int]) -> Iterator[dict]:
    """How influence is spread (supplement, Figure 1): for each of `places` in the order of influence, as far as there are
    images, the share of a query's that the image there has, mean over the queries, before calibration (temperature 1) and
    after."""
    before, after = (-np.sort(-influence(found.similarity, tau), axis=1).mean(0) for tau in (1.0, found.tau))
    for place in (p for p in places if p <= len(before)):
        yield {"encoder": found.encoder, "mapper": found.mapper, "place": place, "before": float(f"{before[place - 1]:.4g}"),
               "after": float(f"{after[place - 1]:.4g}")}


def strongest(found: Found, query: int, count: int) -> list[tuple[int, float]]:
    """Columns of the images with most influence on a query, and that influence; ties in the order of columns."""
    share = influence(found.similarity[query], found.tau)
    return [(int(i), float(share[i])) for i in np.argsort(-share, kind="stable")[:count]]
