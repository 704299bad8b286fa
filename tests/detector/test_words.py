"""What words alone say: the score without its likeness, of an image and not of the picture asked about."""

import pytest
import torch

from ard.detector.pooling import rank_variants
from ard.detector.prompts import EXEMPLAR, Phrase, build_prompt
from ard.detector.tied import TiedGroundingDinoForObjectDetection
from ard.detector.words import words_alone


@pytest.mark.parametrize("pooling", [0.0, 2.0])
def test_the_score_is_the_words_of_the_strongest_region(with_likeness, phase_data, pooling):
    tied = TiedGroundingDinoForObjectDetection.of(with_likeness, likeness_weight=1.5, pooling=pooling)
    alone, prompt = words_alone(tied), build_prompt([[Phrase("cat", phase_data.queries[0, 0].float())]])
    gallery, names = phase_data.gallery[0, :4], list("abcd")
    (found,) = rank_variants(alone, prompt, gallery, names, (False,))
    with torch.no_grad():
        match = tied.match(gallery, prompt.expand(4), adapted=False)
        exemplar = prompt.kind[0] == EXEMPLAR
        words = tied.score_head(match.regions, match.tokens, match.present, False)[..., exemplar][..., 0].amax(1)
    assert torch.allclose(torch.tensor([a.score for a in found]), words.sigmoid(), atol=1e-6)
    assert tied.config.likeness_weight == 1.5 and alone.config.pooling == pooling, "the detector itself is as it was"
    (whole,) = rank_variants(tied, prompt, gallery, names, (False,))
    assert not torch.allclose(torch.tensor([a.score for a in whole]), words.sigmoid(), atol=0.01)


def test_a_detector_that_is_not_tied_has_no_words_apart(with_likeness):
    assert words_alone(with_likeness) is None
