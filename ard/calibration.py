"""What do a detector's scores say about the source? Asked of validation, kept beside the weights (`ard.chances`; notebook 07)."""

from __future__ import annotations

from dataclasses import astuple

from ard.abstention import gallery_scores
from ard.baselines.methods import run_method
from ard.chances import Chances, fit_chances
from ard.detector.method import DetectorMethod
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.reading import untied
from ard.validation import Validation


def calibrate(model: AttributionGroundingDinoForObjectDetection, validation: Validation) -> Chances:
    """The chances that fit validation queries best, asked with their source in the gallery and without: to what ranks the images, and
    to how exemplars were taught (`ard.detector.reading`), where these are two. Kept in `model.config.calibration`, which answers
    to users and Table 2's abstention are read by."""
    def asked(reading: AttributionGroundingDinoForObjectDetection):
        answers = run_method(DetectorMethod(reading, validation.cache), validation.dataset, validation.split, validation.samples)
        return gallery_scores(answers, validation.dataset, validation.split)

    judge = untied(model)
    scores, source = asked(judge)
    chances = fit_chances(scores, source, None if judge is model else asked(model)[0])
    model.config.calibration = list(astuple(chances))
    return chances
