"""A detector with some settings changed, trained as 06 and 07 train it and asked validation queries: one row of the
ablation table.

Below `ard.ablation`, which says what is changed and what it is worth. The test split is never read here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ard.detector.features import FeatureCache
from ard.detector.model import AttributionGroundingDinoForObjectDetection, load_detector
from ard.detector.phases import PhaseData, train_phase1, train_phase2
from ard.detector.rendered_pairs import joined
from ard.detector.train import TrainSettings
from ard.detector.variants import AS_USED, Variant, VariantMethod, fuse_late
from ard.detector.whitening import give_likeness
from ard.files import sha256_bytes
from ard.metrics import evaluate, values
from ard.precision import computes_bfloat16
from ard.records import Dataset, Sample

Settings = Mapping[str, Mapping[str, Any]]  # of the sections `phase1` and `phase2` of params.yaml, and of a `variant`
PHASES = ("ARD-", "ARD")
MEASURES = ("recall_1", "recall_1_ungated", "recall_5", "recall_10", "same_class_recall_1", "box_acc")
WATCHED = ("samples", "validate_queries", "validate_every", "calibration_queries")  # settings that change nothing trained here
UNTRAINED = ("score_rule", *WATCHED)  # no weight depends on them


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
