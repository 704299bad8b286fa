"""The ablation table: both phases of the AR detector with some settings changed, each row asked the same validation queries.

Between the notebooks 06, 07, whose settings a row changes, and the table that says what each setting is worth. The test
split is never read here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ard.baselines.methods import pick_queries
from ard.config import ConfigError, nearest
from ard.detector.features import FeatureCache
from ard.detector.model import AttributionGroundingDinoForObjectDetection, load_detector
from ard.detector.phases import PhaseData, train_phase1, train_phase2
from ard.detector.rendered_pairs import joined
from ard.detector.train import TrainSettings
from ard.detector.variants import AS_USED, Variant, VariantMethod, fuse_late
from ard.detector.whitening import give_likeness
from ard.files import Ledger, sha256_bytes
from ard.intervals import bootstrap_mean, paired_difference
from ard.metrics import evaluate, values
from ard.precision import computes_bfloat16
from ard.records import Dataset, Sample

Settings = Mapping[str, Mapping[str, Any]]  # of the sections `phase1` and `phase2` of params.yaml, and of a `variant`
PHASES = ("ARD-", "ARD")
MEASURES = ("recall_1", "recall_1_ungated", "recall_5", "recall_10", "same_class_recall_1", "box_acc")
UNTRAINED = ("score_rule", "samples", "validate_queries", "validate_every", "calibration_queries")  # no weight depends on them
AGAINST = "against"  # names, among a row's changes, the row it is compared with


def changed_settings(base: Settings, changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`base` with values put over it; ConfigError names a key that is not there and the nearest one.

    >>> changed_settings({"phase1": {"rivals": 2, "steps": 800}}, {"phase1.rivals": 0})
    {'phase1': {'rivals': 0, 'steps': 800}}
    """
    made = {section: dict(values) for section, values in base.items()}
    known = [f"{section}.{key}" for section, values in base.items() for key in values]
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(f"ablation: no setting '{name}'; {nearest(name, known)}")
        section, key = name.split(".", 1)
        made[section][key] = value
    return made


def learn(start: str | Path, positives: Callable[[Variant], PhaseData], pairs: Callable[[int], PhaseData], settings: Settings,
          names: Sequence[str], folder: str | Path) -> AttributionGroundingDinoForObjectDetection:
    """The detector after both phases from the exemplar-prompted detector in `start`, as 06 and 07 train it.

    positives: AD+ train as a variant reads it. pairs: so many rendered individuals as AD+ (`rendered_pairs`), called only
    where the settings want them. folder: checkpoints; a killed run goes on, and rows of the same first phase share it.
    ValueError where rendered pairs are wanted with boxes that are not theirs.
    """
    first, second, variant = settings["phase1"], settings["phase2"], variant_of(settings)
    if first["rendered"] and variant.query_box != "right":
        raise ValueError("ablation: rendered pairs are made with the right boxes; "
                         "set phase1.rendered to 0 beside variant.query_box")
    places, model, data = folders(folder, settings), load_detector(start), positives(variant)
    shown = joined(data, variant.data(pairs(first["rendered"]))) if first["rendered"] else data
    if first["likeness"]:
        give_likeness(model, shown, first["whitening"], first["seed"])
    fuse_late(model, variant.fused_layers)
    train_phase1(model, shown, names, _training(first, first["batch_size"]), places[0],
                 *(first[key] for key in ("other_names", "rivals", "absent")), **variant.told)
    model.config.score_rule = first["score_rule"]
    train_phase2(model, data, _training(second, second["positives"]), places[1],
                 *(second[key] for key in ("k", "lambda_cls", "lambda_reg", "adapter")),
                 negatives=variant.negatives, objective=variant.objective, **variant.told)
    return model.eval()


def variant_of(settings: Settings) -> Variant:
    """What the section `variant` says, if there is one."""
    return Variant(**settings.get("variant", {}))


def folders(folder: str | Path, settings: Settings) -> tuple[Path, Path]:
    """Where the checkpoints of the two phases lie: one place for each set of settings that the phase's weights depend on."""
    first, second = ({key: value for key, value in settings[phase].items() if key not in UNTRAINED}
                     for phase in ("phase1", "phase2"))
    rule, changed = settings["phase1"]["score_rule"], _changed(variant_of(settings))
    late = {key: changed.pop(key) for key in ("negatives", "objective") if key in changed}  # of phase 2 alone
    if late:
        late["score_rule"] = rule  # which images are mined, and what a ranking is of
    parts = [first, changed] if changed else first, [first, second, *([changed, late] if changed or late else [])]
    return tuple(Path(folder) / sha256_bytes(json.dumps(part, sort_keys=True).encode())[:12] for part in parts)


def _changed(variant: Variant) -> dict[str, Any]:
    return {key: value for key, value in vars(variant).items() if value != getattr(AS_USED, key)}


def _training(section: Mapping[str, Any], batch_size: int) -> TrainSettings:
    same = ("steps", "learning_rate", "schedule", "warmup", "losses", "clip", "seed")
    half = section.get("autocast", False) and computes_bfloat16()
    return TrainSettings(batch_size=batch_size, autocast=half, **{key: section[key] for key in same if key in section})


def validation_samples(dataset: Dataset, per_exemplar: int) -> tuple[Sample, ...]:
    """`per_exemplar` validation queries of each exemplar; 0 is all."""
    return tuple(pick_queries(dataset.samples["val"], per_exemplar or None))


def hits(model: AttributionGroundingDinoForObjectDetection, dataset: Dataset, samples: Sequence[Sample], cache: FeatureCache,
         variant: Variant = AS_USED) -> dict[str, dict[str, list[float]]]:
    """{"ARD-", "ARD"} -> measure -> a value for each of the validation `samples`, in their order."""
    method, gallery, found = VariantMethod(model, variant, cache), dataset.open_gallery("val"), {}
    both = {s.sample_id: method.rank_both(dataset.query(s), gallery) for s in tqdm(samples, desc="ablation", mininterval=5)}
    for phase in PHASES:
        by_id = {o.facts.sample.sample_id: o for o in evaluate({i: a[phase] for i, a in both.items()}, dataset, "val")}
        measured = values([by_id[s.sample_id] for s in samples], gated=True)
        found[phase] = {name: [float(v) for v in measured[name]] for name in MEASURES}
    return found


def run_rows(rows: Mapping[str, Mapping[str, Any]], base: Settings, ledger: Ledger,
             train: Callable[[Settings], AttributionGroundingDinoForObjectDetection],
             ask: Callable[[AttributionGroundingDinoForObjectDetection, Variant], dict]) -> dict[str, dict]:
    """{row: hits}, in the order of `rows` (row -> changes of settings); a row that stands in the ledger is not run again."""
    wanted = {name: row_settings(base, row) for name, row in rows.items()}  # all wrong keys before any training
    references(rows)
    for name, settings in wanted.items():
        if name not in ledger:
            ledger.add(name, hits=ask(train(settings), variant_of(settings)))
    return {name: ledger[name]["hits"] for name in rows}


def references(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{row: the row it is compared with}: the one it names, else the first; ConfigError names one that is not there."""
    chosen = {name: changes.get(AGAINST, next(iter(rows))) for name, changes in rows.items()}
    for name, other in chosen.items():
        if other not in rows:
            raise ConfigError(f"ablation: row '{name}' is compared with '{other}', which is no row; {nearest(other, list(rows))}")
    return chosen


def row_settings(base: Settings, row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of a row: `base` with its changes, `against` being none of them."""
    return changed_settings(base, {key: value for key, value in row.items() if key != AGAINST})


def ablation_table(found: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], samples: Sequence[Sample],
                   against: Mapping[str, str]) -> list[dict]:
    """A row for each setting and phase: shares on validation, gated Recall@1 with its interval, and the paired difference of
    that to the same phase of the row it is compared with (`references`). Intervals resample exemplars."""
    owners = [s.concept_id for s in samples]
    table = []
    for name, phases in found.items():
        for phase in PHASES:
            mine = phases[phase]
            mean = bootstrap_mean(mine["recall_1"], owners)
            gap = paired_difference(mine["recall_1"], found[against[name]][phase]["recall_1"], owners)
            table.append({"row": name, "method": phase, "recall_1": mean.mean, "ci_low": mean.low, "ci_high": mean.high,
                          "against": against[name], "difference": gap.mean, "difference_low": gap.low,
                          "difference_high": gap.high,
                          **{key: float(np.mean(mine[key])) for key in MEASURES[1:]},
                          "n_queries": len(samples), "n_exemplars": len(set(owners))})
    return table
