"""A tied detector scores an exemplar by its words and its likeness, and is otherwise the same."""

import numpy as np
import pytest
import torch

from ard.detector.model import save_detector
from ard.detector.prompts import EXEMPLAR, TEXT, Phrase, build_prompt
from ard.detector.published import AttributionDetector
from ard.detector.score import rank_variants
from ard.detector.tied import TiedGroundingDinoForObjectDetection, load_detector, pooling_at, read_as, tied, untied
from tests.detector.official import small_config


@pytest.fixture
def both(with_likeness):
    """A detector, and the same one tied."""
    return with_likeness, TiedGroundingDinoForObjectDetection.of(with_likeness)


@pytest.fixture
def asked(phase_data):
    """Six pictures, and of each the same: a name of several word pieces with an exemplar, and an exemplar alone."""
    vector = phase_data.queries[0, 0].float()
    return phase_data.gallery[0, :6], build_prompt([[Phrase("teddy bear", vector), Phrase(None, vector)]] * 6)


@pytest.mark.parametrize("adapted", [False, True])
def test_an_exemplar_scores_what_its_words_do_on_average_plus_the_likeness(both, asked, adapted):
    (plain, model), (pictures, prompt) = both, asked
    with torch.no_grad():
        before, after = plain.match(pictures, prompt, adapted), model.match(pictures, prompt, adapted)
    words = (prompt.kind[0] == TEXT) & (prompt.phrase[0] == 0)
    exemplar, alone = torch.nonzero(prompt.kind[0] == EXEMPLAR).flatten().tolist()
    assert words.sum() > 1
    wanted = before.logits[..., words].mean(-1) + before.likeness[..., exemplar]
    assert torch.allclose(after.logits[..., exemplar], wanted, atol=1e-4)
    kept = [t for t in range(prompt.kind.shape[1]) if t != exemplar]
    assert torch.allclose(after.logits[..., kept], before.logits[..., kept], atol=1e-5), "words, and exemplars without any"
    assert torch.equal(after.boxes, before.boxes) and alone in kept


def test_ranking_reads_the_tied_score_with_and_without_f(both, asked):
    (_, model), (pictures, prompt) = both, asked
    query = build_prompt([[Phrase("cat", prompt.exemplar[0][prompt.kind[0] == EXEMPLAR][0])]])
    names = [str(i) for i in range(6)]
    for adapted, answers in zip((False, True), rank_variants(model, query, pictures, names)):
        with torch.no_grad():
            logits = model.match(pictures, query.expand(6), adapted).logits
        best = logits[..., query.kind[0] == EXEMPLAR].sigmoid().amax((1, 2))
        assert np.allclose([a.score for a in answers], best, atol=1e-5)


def test_tied_tokens_do_not_read_the_exemplars_own(both, asked):
    (_, model), (_, prompt) = both, asked
    tokens = torch.randn(*prompt.kind.shape, 8)
    changed = torch.where((prompt.kind == EXEMPLAR)[..., None] & (prompt.phrase == 0)[..., None], 0.0, tokens)
    assert torch.equal(tied(tokens, prompt), tied(changed, prompt)) and not torch.equal(tokens, changed)


def test_the_copy_is_the_detector_weight_for_weight_and_setting_for_setting(both):
    plain, model = both
    assert plain.state_dict().keys() == model.state_dict().keys()
    told = model.config.to_dict()
    reading = {name: told.pop(name) for name in ("likeness_weight", "pooling")}
    assert reading == model.config.reading() == {"likeness_weight": 1.0, "pooling": 0.0}
    assert {**told, "model_type": plain.config.model_type} == plain.config.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), model.state_dict().values()))


def test_the_likeness_is_weighed_and_the_words_are_not(both, asked):
    (plain, once), (pictures, prompt) = both, asked
    twice = TiedGroundingDinoForObjectDetection.of(plain, likeness_weight=2.0)
    with torch.no_grad():
        first, second = once.match(pictures, prompt), twice.match(pictures, prompt)
    assert torch.allclose(second.logits, first.logits + first.likeness, atol=1e-5)
    assert torch.equal(second.likeness, 2 * first.likeness) and first.likeness.abs().max() > 0


def test_a_folder_says_how_its_detector_is_read(both, asked, tmp_path):
    (plain, _), (pictures, prompt) = both, asked
    model = TiedGroundingDinoForObjectDetection.of(plain, likeness_weight=1.5, pooling=2.0)
    for kept, name in ((plain, "plain"), (model, "tied")):
        again = load_detector(save_detector(kept, tmp_path / name))
        assert type(again) is type(kept) and not again.training
        with torch.no_grad():
            assert torch.allclose(again.match(pictures, prompt).logits, kept.match(pictures, prompt).logits, atol=0.05)
    assert load_detector(tmp_path / "tied").config.reading() == {"likeness_weight": 1.5, "pooling": 2.0}


# ---- untied ----------------------------------------------------------------------------------------------------------
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
