"""The detector that phase 1 starts from, read as what came of it: what of an answer is owed to training? (Notebook 41.)"""

from __future__ import annotations

from pathlib import Path

from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.tied import TiedGroundingDinoForObjectDetection, load_detector


def before_phase1(ard: str | Path, start: str | Path) -> AttributionGroundingDinoForObjectDetection:
    """The detector in folder `start` with ARD's likeness head, which phase 1 leaves as it was measured, and ARD's way to be read;
    `ard` is ARD's folder. FileError: a file of either is missing."""
    trained, model = load_detector(ard), load_detector(start)
    if trained.config.likeness:
        model.likeness_head, model.config.likeness = trained.likeness_head, True
    tied = isinstance(trained, TiedGroundingDinoForObjectDetection)
    return TiedGroundingDinoForObjectDetection.of(model, **trained.config.reading()) if tied else model
