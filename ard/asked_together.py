"""How much more is found when several pictures of a thing are asked about together, and how sure may one be? (`ard.together`)

Notebook 43: each exemplar's queries in groups of n, drawn at random, nested: what n pictures say is part of what n + 1 say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from ard.abstention import gallery_scores
from ard.baselines.closeups import all_raised, looks
from ard.baselines.kit import Kit
from ard.chances import Chances
from ard.detector import readings
from ard.detector.closeup import CloseUp
from ard.detector.method import DetectorMethod
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.evaluation import Answers, Ask, collect_all
from ard.intervals import bootstrap_mean, paired_difference
from ard.metrics import Attributions, facts, outcome
from ard.presence import presence
from ard.records import Dataset, Sample
from ard.studies import bounds
from ard.together import SMALLEST, Pool, log_ratios, once, together

Groups = list[tuple[int, tuple[Sample, ...]]]  # n and as many pictures of one exemplar
Said = Mapping[str, tuple[np.ndarray, np.ndarray]]  # by sample_id: (N,) chances with the source in the gallery, (N - 1,) without

JUDGED, WORDS = "ARD" + readings.JUDGED, "ARD" + readings.WORDS  # ARD as it is read for its chances, and for its words


def one_by_one(kit: Kit, detector: AttributionGroundingDinoForObjectDetection, rivals: Mapping[str, Ask], folder: str | Path) -> Answers:
    """Answers of rivals, and of ARD as it ranks and as it is read otherwise (`JUDGED`, `WORDS`), to each query of the kit's split by
    itself; kept in `folder`, so a killed run goes on."""
    asks = {**rivals, "ARD": DetectorMethod(detector, kit.features).read}
    return collect_all(asks, kit.dataset.samples[kit.split], kit.dataset, kit.split, folder)


def closer(answers: Answers, closeup: CloseUp, dataset: Dataset, split: str) -> Answers:
    """The answers of `one_by_one`, but ARD's, as it ranks and as it is read for its chances, raised by a second look at each image."""
    said = looks(closeup, answers["ARD"], dataset, split)
    return answers | {name: all_raised(answers[name], said) for name in ("ARD", JUDGED) if name in answers}


def among(answers: Answers, dataset: Dataset, split: str) -> Answers:
    """The answers of images that the split's gallery holds."""
    there = {image.image_id for image in dataset.gallery[split]}
    return {name: {query: [a for a in of if a.image_id in there] for query, of in found.items()} for name, found in answers.items()}


def groups(samples: Sequence[Sample], sizes: Sequence[int], orders: int, seed: int = 0) -> Groups:
    """The first n pictures of each exemplar, for each of `sizes`, in `orders` orders drawn at random; of an exemplar with no more than
    n pictures, all of them, once."""
    rng, of, found = np.random.default_rng(seed), {}, []
    for sample in samples:
        of.setdefault(sample.concept_id, []).append(sample)
    for mine in of.values():
        shuffled = [[mine[i] for i in rng.permutation(len(mine))] for _ in range(orders)]
        found += [(n, tuple(order[:n])) for n in sizes for order in (shuffled if n < len(mine) else shuffled[:1])]
    return found


def halves(pictures: Groups) -> tuple[Groups, Groups]:
    """The groups of every second exemplar, and those of the others."""
    order = {name: i for i, name in enumerate(dict.fromkeys(group[0].concept_id for _, group in pictures))}
    return tuple([g for g in pictures if order[g[1][0].concept_id] % 2 == half] for half in (0, 1))


def asked(answers: Attributions, pictures: Groups, dataset: Dataset, split: str, odds: bool,
          words: Attributions | None = None) -> pd.DataFrame:
    """A row for each group, in order: `n`, its `concept`, and whether X comes `first`, X's `box` is right (IoU 0.5), and both (`right`;
    for a method without boxes X comes first). odds, words: as of `together`."""
    gallery, rows = dataset.gallery[split], []
    known = {group[0].concept_id: facts(group[0], gallery) for _, group in pictures}
    for n, group in pictures:
        said, by_words = ([of[s.sample_id] for s in group] if of is not None else None for of in (answers, words))
        told = outcome(known[group[0].concept_id], together(said, odds, by_words), gallery)
        rows.append((n, group[0].concept_id, told.rank == 1, told.box_ok, told.iou is not None))
    table = pd.DataFrame(rows, columns=["n", "concept", "first", "box", "boxed"])
    return table.assign(right=table["first"] & (table["box"] | (not table["boxed"].any()))).drop(columns="boxed")


def table(said: Mapping[str, pd.DataFrame], ours: str = "ARD") -> list[dict]:
    """A row for each method and n: the mean of `right` (`recall_1`), `first` and `box` over exemplars, `ours_minus`, ours' recall_1 less
    that, and `more`, its recall_1 less that with the smallest n, both paired. Intervals resample exemplars."""
    rows = []
    means = {name: of.groupby(["n", "concept"])[["right", "first", "box"]].mean() for name, of in said.items()}
    for name, of in means.items():
        sizes = of.index.unique("n")
        for n in sizes:
            mine, who = of.loc[n], list(of.loc[n].index)
            right, our_right, fewest = mine["right"], means[ours].loc[n].loc[who, "right"], of.loc[sizes.min()].loc[who, "right"]
            rows.append({"method": name, "n_pictures": int(n), **bounds("recall_1", bootstrap_mean(right, who)),
                         **{what: round(float(mine[what].mean()), 6) for what in ("first", "box")},
                         **bounds("ours_minus", paired_difference(our_right, right, who)),
                         **bounds("more", paired_difference(right, fewest, who)), "n_exemplars": len(who)})
    return rows


# ---- is it there at all? ---------------------------------------------------------------------------------------------
def said_twice(chances: Chances, answers: Answers, dataset: Dataset, split: str, most: int) -> tuple[dict[int, Said], dict[str, int]]:
    """What `chances` say of each query, with its source in the gallery and without, as one of n pictures asked about together, for each n
    up to `most` (`ard.together.once`); and the place of X among the images, by concept. answers: those of `one_by_one`."""
    (ranked, source), (scores, _) = (gallery_scores(answers[name], dataset, split) for name in ("ARD", JUDGED))
    words = gallery_scores(answers[WORDS], dataset, split)[0] if WORDS in answers else None
    rest = [np.arange(scores.shape[1]) != place for place in source]
    said = {}
    for n in range(1, most + 1):
        strength = ranked if words is None or n == 1 else once(ranked, words, n)
        said[n] = {name: (chances(s, r), chances(s[other], r[other]))
                   for name, s, r, other in zip(answers["ARD"], scores, strength, rest, strict=True)}
    of = {s.sample_id: s.concept_id for s in dataset.samples[split]}
    return said, {of[name]: int(place) for name, place in zip(answers["ARD"], source)}


def sure(said: Mapping[int, Said], pictures: Groups, pool: Pool) -> pd.DataFrame:
    """A row for each group, in order: `n`, `concept`, and how likely the source is said to be `there`, asked with it in the gallery,
    and without (`gone`)."""
    rows = [(n, group[0].concept_id, *(pool([said[len(group)][s.sample_id][i] for s in group])[1] for i in (0, 1)))
            for n, group in pictures]
    return pd.DataFrame(rows, columns=["n", "concept", "there", "gone"])


def fit_pool(said: Mapping[int, Said], place: Mapping[str, int], pictures: Groups) -> Pool:
    """The pool under which what groups of several pictures say is likeliest: that X is the source where it is there, that none is
    where not. said, place: as `said_twice` gives them."""
    means = []
    for group in (group for _, group in pictures if len(group) > 1):
        ratios = [np.mean([log_ratios(said[len(group)][s.sample_id][i]) for s in group], 0) for i in (0, 1)]
        means.append((len(group), place[group[0].concept_id], *ratios))

    def loss(weights: np.ndarray) -> float:
        pool = Pool(*weights)
        told = [(pool.of_mean(there, n)[0][x], 1 - pool.of_mean(gone, n)[1]) for n, x, there, gone in means]
        return -float(np.log(np.maximum(told, SMALLEST)).sum())

    return Pool(*(round(float(weight), 2) for weight in minimize(loss, [0.5, 0.0], method="Nelder-Mead").x))


def told(said: pd.DataFrame) -> list[dict]:
    """A row for each n of what `sure` says: `auroc`, how often it is surer with the source there than without, over all pairs of groups,
    with an interval that resamples exemplars; `ece` of the chances, and `sure`, their mean, which should be one half."""
    rows = []
    for n, of in said.groupby("n"):
        row = presence({"ARD": np.stack([of["there"], of["gone"]])}, list(of["concept"]))[0]
        rows.append({"n_pictures": int(n), **{name: row[name] for name in ("auroc", "auroc_low", "auroc_high", "ece", "sure")},
                     "n_groups": len(of)})
    return rows
