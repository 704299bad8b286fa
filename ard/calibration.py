"""What do a detector's scores say about the source? Asked of validation, kept beside the weights (`ard.chances`; notebook 07)."""

from __future__ import annotations

from ard.abstention import gallery_scores
from ard.baselines.methods import run_method
from ard.chances import Chances, fit_chances
from ard.detector.method import DetectorMethod
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.validation import Validation


def calibrate(model: AttributionGroundingDinoForObjectDetection, validation: Validation) -> Chances:
    """The chances that fit validation queries best, asked with their source in the gallery and without; kept in
    `model.config.calibration`, which answers to users and Table 2's abstention are read by."""
    answers = run_method(DetectorMethod(model, validation.cache), validation.dataset, validation.split, validation.samples)
    chances = fit_chances(*gallery_scores(answers, validation.dataset, validation.split))
    model.config.calibration = [chances.slope, chances.offset]
    return chances
