"""ARD- as settings of phase 1 say, for studies of them: taught as notebook 06 teaches it, without looks at validation on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ard.companions import CompanionWorld
from ard.detector import class_words
from ard.detector.model import load_detector
from ard.detector.rendered_pairs import joined, rendered_pairs
from ard.detector.tied import TiedGroundingDinoForObjectDetection
from ard.detector.train import TrainSettings
from ard.detector.whitening import give_likeness
from ard.files import sha256_bytes
from ard.generator import Blemish
from ard.precision import computes_bfloat16
from ard.records import Dataset
from ard.validation import Watch, stored_phase_data, watched_phase1

SHARED = ("batch_size", "learning_rate", "schedule", "warmup", "losses", "clip", "seed")


def after_phase1(start: str | Path, settings: Mapping[str, Any], dataset: Dataset, world: str | Path, names: Sequence[str],
                 work: Path, blemish: Blemish | None = None) -> TiedGroundingDinoForObjectDetection:
    """The detector in `start` after phase 1, with a likeness head; as it is before, where `steps` is 0.

    settings: those of `phase1` in params.yaml. work: features, rendered pairs and checkpoints; a killed run goes on, and
    settings that differ in training alone share their pairs.
    """
    seed, share = settings["seed"], settings["companions"]
    plain, crowded = stored_phase_data(dataset, "train", work / "train.safetensors"), CompanionWorld(world, share)
    pairs = rendered_pairs(crowded, settings["rendered"], 2, seed, work / f"pairs-{share}", blemish)
    data, model = joined(plain, pairs), load_detector(start)
    model.config.score_rule = settings["score_rule"]
    give_likeness(model, data, settings["whitening"], seed)
    if settings["steps"]:
        half = settings["autocast"] and computes_bfloat16()
        training = TrainSettings(settings["steps"], autocast=half, **{key: settings[key] for key in SHARED})
        watch = Watch(lambda learned: {}, settings["steps"] + 1, work / sha256_bytes(json.dumps(dict(settings), sort_keys=True).encode())[:12])
        told = (names, training, watch, *(settings[key] for key in ("other_names", "rivals", "absent")))
        if settings["class_words"]:
            shown = class_words.shown_in_split(dataset, "train") + class_words.shown_in_pairs(crowded, pairs, seed)
            class_words.watched_phase1(model, data, shown, *told)
        else:
            watched_phase1(model, data, *told)
    return TiedGroundingDinoForObjectDetection.of(model.eval(), settings["likeness_weight"])
