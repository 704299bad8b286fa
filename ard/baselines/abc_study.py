"""AbC's own evaluation: encoders x mappers, exemplars among many distractors (supplement, Tables 2 and 3, Figure 6).

Beside the arena, which has no distractors. Classes and prompts are held out of the mappers' training, and reported apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    """Distractor i: a photo of base individuals, none of which is anybody's exemplar; it depends on (seed, i) alone."""
    return lambda i: world.scene(np.random.default_rng([seed, i]), medium="photo").image


def abc_study(dataset: Dataset, split: str, encoders: Mapping[str, Encode], distractor: Distractor, settings: StudySettings,
              folder: str | Path | None = None) -> list[dict]:
    """Rows of a table: encoder, mapper, classes (seen, unseen), prompts (context, medium), wording (train, test) and, over
    those queries of the split, Recall@5, @10, @100, mAP, and the calibrated influence that goes to the exemplar.

    Each query's one exemplar is looked for among the split's exemplars and the distractors. folder: where features of
    distractors are kept, chunk by chunk; `distractor` is then part of what they depend on, so use one folder for one world.
    """
    samples = dataset.samples[split]
    taught = [s for s in dataset.samples["train"]
              if s.class_name not in settings.unseen and s.template not in settings.test_templates]
    rows = []
    for name, encode in encoders.items():
        crowd = distractor_features(name, encode, distractor, settings, folder)
        asked, plain = (pair_features(dataset, part, encode) for part in (samples, taught))
        for mapper, (config, augment) in variants(settings.mappers).items():
            pairs = plain if augment is None else pair_features(dataset, taught, encode, "whole", augment, settings.copies,
                                                                settings.seed)
            mappers = train(**pairs, config=config)[0]
            measured = measure(mappers, asked, plain, crowd, settings.top)
            rows += [{"encoder": name, "mapper": mapper, **row} for row in summaries(samples, measured, settings)]
    return rows


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


def measure(mappers: Mappers, asked: Mapping[str, np.ndarray], taught: Mapping[str, np.ndarray], crowd: np.ndarray,
            top: int) -> dict[str, np.ndarray]:
    """Per query (Q,): rank of its exemplar, and the influence that goes to it at the temperature calibrated on `taught`."""
    found = similarities(mappers, taught, crowd)
    tau = calibrate(keep(found, np.arange(found.shape[1]) == taught["owner"][:, None], min(top, found.shape[1])))
    similarity, owner = similarities(mappers, asked, crowd), asked["owner"]
    share = np.take_along_axis(influence(similarity, tau), owner[:, None], 1)[:, 0]
    return {"rank": ranks(similarity, owner), "influence": share, "tau": np.full(len(owner), tau)}


def summaries(samples: Sequence[Sample], measured: Mapping[str, np.ndarray], settings: StudySettings) -> Iterator[dict]:
    """One row for each group of queries that is not empty. With one exemplar a query, average precision is 1 / rank."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for i, s in enumerate(samples):
        group = ("unseen" if s.class_name in settings.unseen else "seen", "context" if s.medium == "photo" else "medium",
                 "test" if s.template in settings.test_templates else "train")
        groups.setdefault(group, []).append(i)
    for group, index in sorted(groups.items()):
        rank = measured["rank"][index]
        yield {**dict(zip(("classes", "prompts", "wording"), group)), "n_queries": len(index),
               "n_exemplars": len({samples[i].concept_id for i in index}),
               **{f"recall_{k}": float(recall_at(rank, k).mean()) for k in RECALLS}, "map": float((1 / rank).mean()),
               "influence": float(measured["influence"][index].mean()), "tau": float(measured["tau"][0])}
