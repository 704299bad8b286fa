"""What a detector's scores say is kept with its weights, and comes from validation alone."""

import numpy as np
import pytest

from ard.abstention import gallery_scores
from ard.baselines.methods import run_method
from ard.calibration import calibrate
from ard.chances import fit_chances
from ard.detector.method import DetectorMethod
from ard.detector.model import load_detector, save_detector
from ard.detector.tied import TiedGroundingDinoForObjectDetection
from ard.validation import Validation
from tests.toy_attribution import tiny_detector, toy_dataset


def test_a_detector_keeps_what_its_scores_say(tmp_path):
    dataset = toy_dataset(tmp_path)
    model, validation = tiny_detector(), Validation(dataset, 4)
    chances = calibrate(model, validation)
    save_detector(model, tmp_path / "model")
    assert load_detector(tmp_path / "model").config.calibration == [chances.slope, chances.offset, chances.others, 0]
    answers = run_method(DetectorMethod(model), dataset, "val", validation.samples)
    assert chances == fit_chances(*gallery_scores(answers, dataset, "val"))


def test_a_detector_of_two_readings_is_asked_for_both(tmp_path):
    dataset, plain = toy_dataset(tmp_path), tiny_detector()
    plain.add_likeness()
    validation, tied = Validation(dataset, 4), TiedGroundingDinoForObjectDetection.of(plain, likeness_weight=1.5, pooling=2.0)
    chances = calibrate(tied, validation)
    own, ranked = (gallery_scores(run_method(DetectorMethod(model), dataset, "val", validation.samples), dataset, "val")
                   for model in (plain, tied))
    assert chances == fit_chances(*own, ranked[0]) and tied.config.calibration[3] == chances.strength != 0


def test_scores_stand_in_the_order_of_the_gallery_whatever_that_of_the_answers(tmp_path):
    dataset = toy_dataset(tmp_path)
    answers = run_method(DetectorMethod(tiny_detector()), dataset, "val", dataset.samples["val"])
    scores, source = gallery_scores(answers, dataset, "val")
    shuffled = {name: found[::-1] for name, found in answers.items()}
    assert np.array_equal(scores, gallery_scores(shuffled, dataset, "val")[0])
    for sample, row, place in zip(dataset.samples["val"], scores, source):
        own = dataset.gallery["val"][place]
        assert own.file == sample.exemplar_file
        assert row[place] == pytest.approx(next(a.score for a in answers[sample.sample_id] if a.image_id == own.image_id))
