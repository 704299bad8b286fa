"""What do a detector's scores say about the source? Asked of validation, kept beside the weights (`ard.chances`; notebook 07)."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
from tqdm import tqdm

from ard.abstention import gallery_scores
from ard.chances import Chances, fit_chances
from ard.detector.method import DetectorMethod
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.readings import JUDGED
from ard.validation import Validation


def calibrate(model: AttributionGroundingDinoForObjectDetection, validation: Validation) -> Chances:
    """The chances that fit validation queries best, asked with their source in the gallery and without: to what ranks the images, and
    to how exemplars were taught (`ard.detector.tied`), where these are two. Kept in `model.config.calibration`, which answers
    to users and Table 2's abstention are read by."""
    dataset, split = validation.dataset, validation.split
    detector, gallery = DetectorMethod(model, validation.cache), dataset.open_gallery(split)
    read = {s.sample_id: detector.read(dataset.query(s), gallery) for s in tqdm(validation.samples, desc="calibration", mininterval=5)}
    (ranked, source), (scores, _) = (
        gallery_scores({name: of[row] for name, of in read.items()}, dataset, split) for row in ("ARD", "ARD" + JUDGED))
    chances = fit_chances(scores, source, None if np.array_equal(scores, ranked) else ranked)
    model.config.calibration = list(astuple(chances))
    return chances
