"""The same individuals learned under other conditions, drawn again by the same words from the same noise, judged and asked about.

The application studies of the paper (section 5.4, supplement A), as experiments: many individuals, a judge that is no part of any
method, and intervals. Notebooks 40 and 41 say which conditions (`ard.alterations`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from ard.abstention import auroc
from ard.alterations import gaussian_noise, salt_and_pepper
from ard.baselines.kit import Kit
from ard.baselines.registry import entries
from ard.customize import CustomizeConfig, item_seed
from ard.customize_all import customize_all
from ard.evaluation import Ask, alone, collect
from ard.exemplars import Detect, Exemplar, read_mask, write_mask
from ard.fidelity import Judges, judge
from ard.files import Ledger, atomic_write_bytes
from ard.generate import Drawn, GenerateConfig, generate_all
from ard.generator import load_pipeline
from ard.intervals import Interval, bootstrap_mean
from ard.metrics import facts, outcome
from ard.presence import aurocs, counts, resampled_bounds
from ard.records import Dataset, Gallery, Sample, read_image
from ard.templates import COCO_TEMPLATES, context_medium
from ard.world.collection import png_bytes

AS_USED = "as used"
Alter = Callable[[Exemplar, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # X's pixels and mask -> others


def unaltered(exemplar: Exemplar, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is learned where a condition changes the recipe alone."""
    return image, mask


@dataclass(frozen=True, eq=False)
class Condition:
    """How exemplars are learned: another picture, another recipe (changes of a CustomizeConfig), or both."""

    kind: str
    value: float | None = None
    alter: Alter = unaltered
    recipe: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kind if self.value is None else f"{self.kind} {self.value:g}"


def conditions(sizes: Sequence[float], gaussian: Sequence[float], salt_pepper: Sequence[float], seed: int) -> list[Condition]:
    """As the main job learns; at the place and size that the picture has; at other sizes, shares of the picture; under noise of
    growing strength, always the same pattern for an exemplar (paper, Figures 5, 8, 10, 11)."""
    def noisy(noise, strength: float, exemplar: Exemplar, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return noise(image, strength, np.random.default_rng(item_seed("noise", seed, exemplar.exemplar_id))), mask

    return [Condition(AS_USED), Condition("as photographed", recipe={"frame": 0.0}),
            *(Condition("size", share, recipe={"frame": share}) for share in sizes),
            *(Condition("Gaussian noise", value, partial(noisy, gaussian_noise, value)) for value in gaussian),
            *(Condition("salt and pepper", value, partial(noisy, salt_and_pepper, value)) for value in salt_pepper)]


# ---- learn and draw --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Workshop:
    """With what is learned and drawn, the same under all conditions. `settings`: max_bytes, workers and together of a customise
    section of params.yaml."""

    generator: Path
    config: CustomizeConfig
    settings: Mapping[str, int]
    drawing: GenerateConfig
    detect: Detect
    seed: int

    def make(self, condition: Condition, exemplars: Sequence[Exemplar], root: str | Path, folder: Path) -> list[Drawn]:
        """Everything drawn of the exemplars, whose files lie in `root`, under one condition; the files of queries are absolute.
        Goes on where a killed run stopped. RuntimeError: an exemplar cannot be learned."""
        here = folder / condition.name
        changed = [altered(condition, exemplar, Path(root), here) for exemplar in exemplars]
        names = ("max_bytes", "workers", "together")
        recipe, deltas, pictures = replace(self.config, **condition.recipe), here / "deltas", here / "queries"
        learned, failed = customize_all(self.generator, changed, here, deltas, recipe, Ledger(here / "deltas.ledger.jsonl"), self.seed,
                                        **{name: self.settings[name] for name in names})
        kept, rejected, lost = generate_all(load_pipeline(self.generator), changed, learned, here, deltas, pictures, COCO_TEMPLATES,
                                            self.detect, self.drawing, Ledger(here / "queries.ledger.jsonl"), self.seed)
        if failed or lost:
            raise RuntimeError(f"{condition.name}: {[*failed, *lost][:3]}")
        drawn = sorted([*kept, *rejected], key=lambda d: d.sample_id)
        return [replace(d, file=str((pictures / d.file).resolve()), sample_id=f"{condition.name}/{d.sample_id}") for d in drawn]


def altered(condition: Condition, exemplar: Exemplar, root: Path, folder: Path) -> Exemplar:
    """The exemplar with its picture and mask as the condition changes them, written below `folder`."""
    image, mask = condition.alter(exemplar, read_image(root / exemplar.file), read_mask(root / exemplar.mask_file))
    changed = replace(exemplar, file=f"images/{exemplar.exemplar_id}.png", mask_file=f"masks/{exemplar.exemplar_id}.png")
    atomic_write_bytes(folder / changed.file, png_bytes(image))
    write_mask(folder / changed.mask_file, mask)
    return changed


def judged(judges: Judges, drawn: Sequence[Drawn], exemplars: Sequence[Exemplar], pool: int, seed: int) -> pd.DataFrame:
    """A row for each picture: whose and what it is to be, whether it passed the gates (`kept`), and whether the judge knows the
    individual among `pool` of its class (`individual`; not where none was found)."""
    verdicts = judge(judges, drawn, [read_image(d.file) for d in drawn], exemplars, pool, seed)
    settings = [context_medium(d.template) for d in drawn]
    return pd.DataFrame({"sample_id": [d.sample_id for d in drawn], "concept": [d.exemplar_id for d in drawn],
                         "context": [c for c, _ in settings], "medium": [m for _, m in settings],
                         "kept": [not d.reason for d in drawn], "individual": verdicts["individual"].to_numpy(bool)})


def built(kit: Kit, name: str) -> Ask:
    """A method of the registry, fitted, as it is asked."""
    method = entries()[name].build(kit)
    if hasattr(method, "fit"):
        method.fit(kit.ad_train, kit.generator)
    return alone(name, method)


# ---- ask -------------------------------------------------------------------------------------------------------------
def queries(drawn: Sequence[Drawn], known: Sequence[Sample]) -> tuple[Sample, ...]:
    """The pictures that passed the gates as queries; X, R_X and names are those of a known sample of the same concept."""
    of, found = {s.concept_id: s for s in known}, []
    for d in (d for d in drawn if not d.reason):
        context, medium = context_medium(d.template)
        found.append(replace(of[d.exemplar_id], sample_id=d.sample_id, query_file=d.file, query_box=d.box, prompt=d.prompt,
                             template=d.template, context=context, medium=medium))
    return tuple(found)


def ask_in_class(asks: Mapping[str, Ask], dataset: Dataset, samples: Sequence[Sample], folder: Path,
                 split: str = "test") -> pd.DataFrame:
    """What methods say of each query when they choose among the pictures of its class alone: `score` of X, and whether X comes
    first (`first`), by method and sample_id. Kept query by query."""
    homes, rows = {s.exemplar_file: s.class_name for s in dataset.samples[split]}, []
    for class_name in dict.fromkeys(s.class_name for s in samples):
        mine = [s for s in samples if s.class_name == class_name]
        gallery = Gallery([im for im in dataset.gallery[split] if homes.get(im.file) == class_name], dataset.pixels)
        for name, ask in asks.items():
            title = f"{name} {class_name}"
            answers = collect(ask, mine, dataset.query, gallery, folder / f"{title}.jsonl", title)[0][name]
            rows += [{"method": name, "sample_id": s.sample_id, **_of_source(s, answers[s.sample_id], gallery)} for s in mine]
    return pd.DataFrame(rows)


def _of_source(sample: Sample, answers, gallery: Gallery) -> dict:
    names = {im.file: im.image_id for im in gallery}
    score = next(a.score for a in answers if a.image_id == names[sample.exemplar_file])
    return {"score": score, "first": outcome(facts(sample, gallery), answers, gallery).rank == 1}


# ---- what it says ----------------------------------------------------------------------------------------------------
def by_condition(pictures: pd.DataFrame, measures: Sequence[str], base: str = AS_USED) -> list[dict]:
    """A row for each `condition` of the pictures (columns `condition`, `concept` and the measures): the mean of each measure with
    its interval, and `<measure>_minus`, that less the mean under the base condition, paired by exemplar.

    A picture without a measure (NaN) does not count in its mean. Intervals resample exemplars; in differences, exemplars that
    have the measure under both conditions. What nobody has is NaN.
    """
    def means(rows: pd.DataFrame, measure: str) -> pd.Series:
        return rows.groupby("concept")[measure].mean().dropna()

    def interval(values: np.ndarray, owners: Sequence) -> Interval:
        return bootstrap_mean(values, owners) if len(values) else Interval(np.nan, np.nan, np.nan)

    start, out = pictures[pictures["condition"] == base], []
    for condition, rows in pictures.groupby("condition", sort=False):
        row = {"condition": condition, "n_pictures": len(rows), "n_exemplars": rows["concept"].nunique()}
        for measure in measures:
            there = rows[rows[measure].notna()]
            row |= bounds(measure, interval(there[measure].to_numpy(float), list(there["concept"])))
            pairs = pd.concat([means(rows, measure), means(start, measure)], axis=1, join="inner").to_numpy(float)
            row |= bounds(f"{measure}_minus", interval(pairs[:, 0] - pairs[:, 1], range(len(pairs))))
        out.append(row)
    return out


def followed(asked: pd.DataFrame, verdicts: pd.Series, groups: pd.Series, conditions: pd.Series, ours: str = "ARD",
             repeats: int = 1000) -> list[dict]:
    """Does a method's score of X say whether the individual is in the picture? A row for each method of `asked` (`ask_in_class`).

    `auroc`: how often its score of a picture in which the judge knows the individual is above that of one in which not;
    `ours_minus`: `ours`' less that, on the same resampled exemplars; `rank_correlation` (Spearman), over conditions, of mean score
    and share of verdicts. verdicts (bool), groups (exemplar) and conditions: by sample_id.
    """
    table = asked.pivot(index="sample_id", columns="method", values="score").replace(-np.inf, np.nan)
    table = table.fillna(table.min() - 1)  # nothing found: below all
    truth, owners, where = (s.loc[table.index].to_numpy() for s in (verdicts.astype(bool), groups, conditions))
    times = counts(owners, repeats)
    resampled = {name: aurocs(table[name].to_numpy(), truth, times) for name in table}
    share = pd.Series(truth.astype(float)).groupby(where).mean()
    rows = []
    for name in [ours, *(other for other in asked["method"].unique() if other != ours)]:
        value = [_auroc(table[method].to_numpy(), truth) for method in (name, ours)]
        agree = spearmanr(table[name].groupby(where).mean(), share).statistic if len(share) > 2 else np.nan
        rows.append({"method": name, **resampled_bounds("auroc", value[0], resampled[name]),
                     **resampled_bounds("ours_minus", value[1] - value[0], resampled[ours] - resampled[name]),
                     "rank_correlation": round(float(agree), 3), "n_queries": len(table), "n_exemplars": len(set(owners))})
    return rows


def _auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    return auroc(scores[truth], scores[~truth]) if truth.any() and not truth.all() else float("nan")


def bounds(name: str, interval: Interval) -> dict[str, float]:
    """A mean and its 95% interval as columns of a table."""
    values = zip((name, f"{name}_low", f"{name}_high"), (interval.mean, interval.low, interval.high))
    return {key: round(float(value), 6) for key, value in values}
