"""`AbC`: attribution by customisation (Wang et al. 2023), the paper's strongest baseline, trained on AD+ train.

Two mappers over frozen features, F for real and F~ for generated images, learn to pull each exemplar to the images
generated from it; an orthogonality term keeps them from forgetting what they start from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ard.baselines.cosine import Encode, ImageRanker
from ard.baselines.mappers import Mappers, nt_xent, orthogonality, unit
from ard.baselines.methods import Method
from ard.geometry import crop
from ard.records import Attribution, Dataset, Gallery, Query, Sample

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # (H, W, 3) uint8 -> the same shape
VIEWS = {"whole": (False, False), "crop query": (False, True), "crops": (True, True)}  # cut to the box: real, generated

__all__ = ["AbCConfig", "Learned", "Mappers", "VIEWS", "abc_method", "augmented", "nt_xent",
           "orthogonality", "pair_features", "train"]


@dataclass(frozen=True)
class AbCConfig:
    epochs: int = 100  # as published; each shows every exemplar once, with one of its queries
    batch: int = 128  # exemplars a step; at most as many as there are; published 1024, 512 for ViT and ALADIN
    learning_rate: float = 1e-3  # Adam, cosine to 0, as published
    temperature: float = 0.07  # of NT-Xent; the published value is not known
    regularisation: float = 0.05  # without it the mappers are worse than none (their ablation)
    seed: int = 0
    mapper: str = "linear"  # as published, or one of their ablation: channel, mlp; or none
    hidden: int = 512  # units of the MLP's hidden layer; 4096 in MoCo v3's head, which it resembles
    out: int = 256  # channels the MLP ends in, as in MoCo v3's head


def train(real: np.ndarray, synthetic: np.ndarray, owner: np.ndarray, config: AbCConfig, kind: np.ndarray | None = None):
    """Fit the mappers.

    real (E, d): features of the exemplars, or (A, E, d) of A augmented copies, of which each use draws one; synthetic
    (Q, d) or (A, Q, d): of the queries; owner (Q,): each query's exemplar; kind (Q,): prompting type of each query, drawn
    first and evenly when given. Returns the Mappers and a list, the mean loss of each epoch. ValueError: fewer than two
    exemplars with a query, or in a batch.
    """
    real, synthetic = (unit(torch.as_tensor(np.asarray(f), dtype=torch.float32)) for f in (real, synthetic))
    real, synthetic = (f if f.dim() == 3 else f[None] for f in (real, synthetic))
    queries = _queries(owner, kind)
    if config.batch < 2:
        raise ValueError(f"AbC needs at least two exemplars in a batch to tell them apart, found batch {config.batch}")
    if len(queries) < 2 or len(owner) != synthetic.shape[1] or min(queries) < 0 or max(queries) >= real.shape[1]:
        raise ValueError(f"AbC needs at least two exemplars with queries, found {len(queries)} of {real.shape[1]} "
                         f"exemplars and {len(owner)} owners for {synthetic.shape[1]} queries")
    rng = np.random.default_rng(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        mappers = Mappers(real.shape[2], config.mapper, config.hidden, config.out)
    if config.mapper == "none":
        return mappers.eval(), []
    steps = -(-len(queries) // config.batch)  # batches of equal size: a short last one would have fewer negatives
    optimizer = torch.optim.Adam(mappers.parameters(), config.learning_rate, betas=(0.9, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * steps)
    history = []
    for _ in range(config.epochs):
        total = 0.0
        for chosen in np.array_split(rng.permutation(list(queries)), steps):
            picked = [_pick(queries[e], rng) for e in chosen]
            loss = nt_xent(mappers.real(_drawn(real, chosen, rng)), mappers.synthetic(_drawn(synthetic, picked, rng)),
                           config.temperature)
            loss = loss + config.regularisation * orthogonality(*mappers.matrices)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        history.append(total / steps)
    return mappers.eval(), history


def _queries(owner: np.ndarray, kind: np.ndarray | None) -> dict[int, list[np.ndarray]]:
    """Each exemplar's queries, one array for each of their kinds."""
    owner = np.asarray(owner)
    kind = np.zeros(len(owner)) if kind is None else np.asarray(kind)
    return {e: [np.flatnonzero((owner == e) & (kind == k)) for k in np.unique(kind[owner == e])] for e in np.unique(owner)}


def _pick(groups: Sequence[np.ndarray], rng: np.random.Generator) -> int:
    return rng.choice(groups[rng.integers(len(groups))] if len(groups) > 1 else groups[0])


def _drawn(copies: torch.Tensor, index: Sequence[int], rng: np.random.Generator) -> torch.Tensor:
    """Rows `index` of features (A, n, d), each of a copy of its own."""
    return copies[rng.integers(len(copies), size=len(index)) if len(copies) > 1 else 0, index]


def augmented(pictures: Sequence[np.ndarray], encode: Encode, augment: Augment | None, copies: int, seed: int = 0) -> np.ndarray:
    """Features (copies, n, d) of pictures augmented before they are encoded; (1, n, d), as they are, without `augment`.

    Encoders are frozen, so a few copies made once serve all epochs. What becomes of a picture depends on seed, copy and
    its place in the list alone.
    """
    if augment is None:
        return encode(pictures)[None]
    return np.stack([encode([augment(picture, np.random.default_rng([seed, copy, i])) for i, picture in enumerate(pictures)])
                     for copy in range(copies)])


def pair_features(dataset: Dataset, samples: Sequence[Sample], encode: Encode, view: str = "whole",
                  augment: Augment | None = None, copies: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """What `train` wants of AD+ samples: real (A, E, d), synthetic (A, Q, d), owner (Q,), kind (Q,): 1 where the prompt names
    a medium other than a photo.

    view: one of VIEWS, which says what is cut to its box, the box found in the exemplar picture and R_Q.
    """
    cut_real, cut_query = VIEWS[view]
    sources = {s.concept_id: s for s in samples}
    place = {concept: i for i, concept in enumerate(sources)}
    pictures = [_cut(dataset.pixels(s.exemplar_file), s.exemplar_box, cut_real) for s in sources.values()]
    pictures += [_cut(dataset.pixels(s.query_file), s.query_box, cut_query) for s in samples]
    found = augmented(pictures, encode, augment, copies, seed)
    return {"real": found[:, :len(sources)], "synthetic": found[:, len(sources):],
            "owner": np.array([place[s.concept_id] for s in samples]),
            "kind": np.array([int(s.medium != "photo") for s in samples])}


def _cut(picture: np.ndarray, box, wanted: bool) -> np.ndarray:
    return crop(picture, box).copy() if wanted else picture  # a view would keep the whole picture


class Learned:
    """A ranker over mappers that `fit` learns from AD+ train."""

    def __init__(self, learn: Callable[[Dataset], Mappers], ranker: Callable[[Mappers], Method]):
        self.learn, self.ranker = learn, ranker
        self._fitted: Method | None = None

    def fit(self, ad_train: Dataset, generator) -> None:
        """generator: not used; an encoder that reads the generator already holds it."""
        self._fitted = self.ranker(self.learn(ad_train))

    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        if self._fitted is None:
            raise ValueError("AbC was asked before `fit` had learned its mappers from AD+ train")
        return self._fitted.rank(query, gallery)


def abc_method(mappers: Mappers, encode: Encode, crop_query: bool = False) -> ImageRanker:
    """The row `AbC`: whole gallery images against the whole query image (or R_Q's crop), no box."""
    return ImageRanker(encode, mappers.map_real, mappers.map_synthetic, crop_query)
