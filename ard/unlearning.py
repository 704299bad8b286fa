"""What AbU's influence says of a customised generator: whether X's loss rises for what was forgotten, or whatever is forgotten.

Beside `ard.baselines.abu`, whose ascent it repeats at several rates and with controls in the place of R_Q: the region of another
individual, or noise. Both regions are given, each framed as G_i was shown its exemplar. The test split is never read here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch

from ard.baselines.abu import AbUConfig, Fisher, forgotten
from ard.baselines.denoising import denoising_losses, even_probe, text_states
from ard.baselines.methods import pick_queries
from ard.baselines.views import framed_boxes
from ard.customize import encode, item_seed
from ard.intervals import bootstrap_mean, paired_difference
from ard.records import Dataset, Gallery, GalleryImage, Sample

BEFORE = "nothing"  # is forgotten: the loss itself, the least for the picture that is known best
Losses = Mapping[str, Sequence[float]]  # what was forgotten and the rate, as `label` names them -> loss of each exemplar


def asked_of(dataset: Dataset, split: str, count: int = 0) -> tuple[Sample, ...]:
    """The first query of each exemplar of a split, or of `count` of them. ValueError for the test split."""
    if split == "test":
        raise ValueError("unlearning: the test split is for ard.evaluation and the arena; looking at it here would choose by it")
    return tuple(pick_queries(dataset.samples[split], 1))[: count or None]


def label(forgets: str, rate: float) -> str:
    """
    >>> label("R_Q", 0.02)
    'R_Q at 0.02'
    """
    return f"{forgets} at {rate:g}"


def framed_regions(dataset: Dataset, samples: Sequence[Sample], side: str, share: float) -> np.ndarray:
    """The regions of samples in their own picture, `side` "query" or "exemplar", each brought to the middle and to `share` of
    the picture, (n, H, W, 3) uint8."""
    boxes = [getattr(s, f"{side}_box") for s in samples]
    views = framed_boxes(lambda place, _: [boxes[int(place)]], share)
    gallery = Gallery([GalleryImage(getattr(s, f"{side}_file"), str(i), ()) for i, s in enumerate(samples)], dataset.pixels)
    return np.stack([views(image, sample, gallery)[0][1] for image, sample in zip(gallery, samples, strict=True)])


def partner(samples: Sequence[Sample], place: int) -> int:
    """Place of the next sample of the same class but another concept; of any other concept where the class has no other.
    ValueError: all samples are of one concept."""
    mine, after = samples[place], [*range(place + 1, len(samples)), *range(place)]
    others = [i for i in after if samples[i].concept_id != mine.concept_id]
    if not others:
        raise ValueError("unlearning: a control needs a second concept, found one")
    return next((i for i in others if samples[i].class_name == mine.class_name), others[0])


@torch.no_grad()
def losses(wear: AbstractContextManager, prompt: str, exemplars: np.ndarray, asked: Mapping[str, np.ndarray | None],
           rates: Iterable[float], fisher: Fisher, config: AbUConfig) -> dict[str, list[float]]:
    """Denoising loss of each exemplar (n, H, W, 3) under `prompt`, as the model is and after it forgot, by `label`.

    wear: its block gives the pipeline. asked: what is forgotten, pictures (H, W, 3) by name; None is a latent of noise.
    """
    with wear as pipe:
        probe, states, latents = even_probe(pipe, config.times, config.seed), text_states(pipe, prompt), encode(pipe, exemplars)

        def known() -> list[float]:
            return denoising_losses(pipe, latents, states, probe).mean(1).tolist()

        found = {BEFORE: known()}
        noise = torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(item_seed("noise", config.seed)))
        for name, picture in asked.items():
            own = noise.to(latents) if picture is None else encode(pipe, picture[None])
            for rate in rates:
                with forgotten(pipe, own, states, fisher, replace(config, learning_rate=rate)):
                    found[label(name, rate)] = known()
    return found


def table(found: Mapping[str, Sequence[Losses]], classes: Sequence[str]) -> list[dict]:
    """A row for each model, what it forgot and the rate. found: by model, the losses of n exemplars for each of n queries, the
    i-th query's own being the i-th; classes (n,): of the exemplars.

    above: share of the other exemplars whose loss rises less than X's (before anything is forgotten: whose loss is larger), ties
    against it; above_class: of those of its class; minus: `above` less that of noise at the same rate, paired, None where there
    is none; rise, others_rise: medians of the rise as a share of the loss before.
    """
    names, rows = np.asarray(classes), []
    for model, queries in found.items():
        before = np.array([q[BEFORE] for q in queries])
        order = sorted(queries[0], key=lambda what: what != BEFORE)  # the loss itself first
        scores = {what: (-before if what == BEFORE else np.array([q[what] for q in queries]) - before) for what in order}
        above = {what: _above(score, np.ones((len(names), len(names)), bool)) for what, score in scores.items()}
        for what, score in scores.items():
            mean, control = bootstrap_mean(above[what], range(len(names))), _same_rate(what, "noise")
            row = {"model": model, "forgets": what, "above": mean.mean, "ci_low": mean.low, "ci_high": mean.high,
                   "first": float((above[what] == 1).mean()),
                   "above_class": float(np.nanmean(_above(score, names[:, None] == names[None])))}
            gap = None if control not in above else paired_difference(above[what], above[control], range(len(names)))
            row |= {"minus": gap and gap.mean, "minus_low": gap and gap.low, "minus_high": gap and gap.high}
            share, own = score / before, np.eye(len(names), dtype=bool)
            row |= {"rise": None if what == BEFORE else float(np.median(share[own])),
                    "others_rise": None if what == BEFORE else float(np.median(share[~own])), "n_queries": len(names)}
            rows.append(row)
    return rows


def _above(score: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(n,) share of the others `among` (n, n) that lie below the diagonal in `score` (n, n); NaN where there are none."""
    others = among & ~np.eye(len(score), dtype=bool)
    below = (score < score.diagonal()[:, None]) & others
    count = others.sum(1)
    return np.where(count > 0, below.sum(1) / np.maximum(count, 1), np.nan)


def _same_rate(what: str, forgets: str) -> str | None:
    """The label of a control at the rate of another label; None for that control itself, and before anything is forgotten."""
    name, _, rate = what.partition(" at ")
    return None if not rate or name == forgets else f"{forgets} at {rate}"
