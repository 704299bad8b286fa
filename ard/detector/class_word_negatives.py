"""Phase 2 with words that mean the class (`ard.detector.class_words`): a negative puts out the exemplar token, not the words.

In the paper a negative has targets of 0 on all tokens (section 3.2). Half of the negatives show the query's class, whose words
phase 1 has just lit on all of it: F and F~ would put them out again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ard import validation
from ard.detector.class_words import Shown, class_word_targets
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.negatives import draw_negatives
from ard.detector.phases import PhaseData
from ard.detector.prompts import Phrase, build_prompt
from ard.detector.train import Batch, TrainSettings
from ard.validation import Watch


def class_word_negatives(data: PhaseData, shown: Sequence[Shown], positives: int, k: int = 4
                         ) -> Callable[[np.random.Generator], Batch]:
    """As `phases.phase2_batches`: `positives` pairs (X, Q), each followed by the same query on k fresh negatives. But the words
    are lit on all of their class in each of these pictures, the exemplar token on R_X alone. `shown`: what is in each of
    `data`'s gallery images."""

    def make(rng: np.random.Generator) -> Batch:
        pictures, captions, own = [], [], []
        for row in rng.integers(len(data.source), size=positives):
            flip_x, flip_q = rng.integers(2, size=2)
            images = [int(data.source[row]), *draw_negatives(rng, data, row, k)]
            pictures += zip((flip_x, *rng.integers(2, size=len(images) - 1)), images)
            captions += [[Phrase(data.names[row], data.queries[flip_q, row].float())]] * len(images)
            own += [0] + [-1] * (len(images) - 1)
        prompt, flips = build_prompt(captions), [int(flip) for flip, _ in pictures]
        targets = class_word_targets(prompt, [[p.name for p in c] for c in captions], own, [shown[i] for _, i in pictures], flips)
        return Batch(torch.stack([data.gallery[flip, i] for flip, i in pictures]), prompt, targets)

    return make


def watched_phase2(model: AttributionGroundingDinoForObjectDetection, data: PhaseData, shown: Sequence[Shown],
                   settings: TrainSettings, watch: Watch, k: int = 4, lambda_cls: float = 1.0, lambda_reg: float = 0.5,
                   adapter: str = "linear") -> tuple[list[dict], list[dict]]:
    """`ard.validation.watched_phase2` with words that mean the class: ARD in place; rows of the loss, rows of the validation."""
    batches = class_word_negatives(data, shown, settings.batch_size, k)
    return validation.watched_phase2(model, data, settings, watch, k, lambda_cls, lambda_reg, adapter, batches=batches)
