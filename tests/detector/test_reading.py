"""A tied detector untied is the one it was made of, and tied again it is itself."""

import pytest
import torch

from ard.detector.prompts import EXEMPLAR, Phrase, build_prompt
from ard.detector.published import AttributionDetector
from ard.detector.reading import pooling_at, read_as, untied
from ard.detector.tied import TiedGroundingDinoForObjectDetection
from tests.detector.official import small_config


@pytest.fixture
def plain(with_likeness):
    with_likeness.config.calibration = [2.0, -0.5]
    with_likeness.set_adapters(True)
    return with_likeness


def test_it_answers_as_the_detector_that_was_tied(plain, phase_data):
    again = untied(TiedGroundingDinoForObjectDetection.of(plain, likeness_weight=1.5))
    assert type(again) is type(plain) and not again.training and again.config.to_dict() == plain.config.to_dict()
    prompt = build_prompt([[Phrase("cat", phase_data.queries[0, 0].float())]] * 6)
    with torch.no_grad():
        answers = [model.match(phase_data.gallery[0, :6], prompt).logits for model in (again, plain)]
    assert torch.equal(*answers)


def test_tied_it_reads_the_exemplar_otherwise_and_tied_again_as_before(plain, phase_data):
    tied = TiedGroundingDinoForObjectDetection.of(plain, likeness_weight=1.5)
    prompt = build_prompt([[Phrase("cat", phase_data.queries[0, 0].float())]] * 6)
    exemplar = prompt.kind[0] == EXEMPLAR
    with torch.no_grad():
        first, own, again = (model.match(phase_data.gallery[0, :6], prompt).logits[..., exemplar] for model in (
            tied, untied(tied), read_as(untied(tied), tied)))
    assert torch.equal(first, again) and not torch.allclose(first, own, atol=0.1)


def test_another_is_read_as_it_is_in_every_setting(plain):
    told = {"likeness_weight": 1.5, "pooling": 2.0}
    assert read_as(plain, TiedGroundingDinoForObjectDetection.of(plain, **told)).config.reading() == told


def test_only_a_tied_detector_can_be_told_to_pool(plain):
    tied = TiedGroundingDinoForObjectDetection.of(plain, likeness_weight=1.5)
    assert pooling_at(tied, 2.0) is tied and tied.config.reading() == {"likeness_weight": 1.5, "pooling": 2.0}
    assert pooling_at(plain, 0.0) is plain and not hasattr(plain.config, "pooling")
    with pytest.raises(ValueError, match="pooling 2.0: only a tied detector pools"):
        pooling_at(plain, 2.0)


def test_what_is_changed_untied_leaves_the_tied_one_alone(plain):
    tied = TiedGroundingDinoForObjectDetection.of(plain)
    with torch.no_grad():
        untied(tied).score_head.region.weight.zero_()
    assert tied.score_head.region.weight.any()


def test_a_detector_that_is_not_tied_is_its_own(plain):
    torch.manual_seed(0)
    large = AttributionDetector(small_config())
    assert untied(plain) is plain and untied(large) is large and read_as(plain, plain) is plain
