import pytest
import torch

from ard.detector.features import REGION
from ard.detector.model import AttributionConfig, AttributionGroundingDinoForObjectDetection
from ard.detector.prompts import EXEMPLAR, Phrase, Prompt, build_prompt
from ard.detector.readings import read
from ard.detector.score import _keep, detect, detect_features, phrase_scores, rank_variants
from ard.detector.tied import TiedGroundingDinoForObjectDetection

E = torch.ones(REGION)


@pytest.mark.parametrize("rule", ["mean", "product"])
def test_one_rule_for_every_class_length(rule):
    """The same probability on every word piece gives the same score, however many there are and whatever pads them."""
    text, exemplar = 0.8, 0.4
    for phrases in ([Phrase("cat", E)], [Phrase("teddy bear", E)], [Phrase("grizzly teddy bear", E), Phrase("dog")]):
        prompt = build_prompt([phrases, [Phrase("a b c d e f g")]])
        p = torch.where(prompt.kind == 2, exemplar, text)[:, None]
        score = phrase_scores(torch.logit(p), prompt, rule)[0, 0, 0]
        assert float(score) == pytest.approx(0.6 if rule == "mean" else 0.32, abs=1e-5)


def test_a_phrase_with_one_part_uses_that_part():
    prompt = build_prompt([[Phrase("teddy bear"), Phrase(exemplar=E)]])
    logits = torch.logit(torch.where(prompt.kind == 2, 0.3, 0.7))[:, None]
    assert phrase_scores(logits, prompt)[0, 0].tolist() == pytest.approx([0.7, 0.3], abs=1e-5)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="one of mean, product, text, exemplar, released, found 'max'"):
        phrase_scores(torch.zeros(1, 1, 2), build_prompt([[Phrase("cat")]]), "max")


def test_detect_returns_sorted_boxes_per_image(tiny, toy):
    found = detect(tiny, toy[0][:3], ["cat", "dog"], threshold=0.0)
    assert len(found) == 3
    for d in found:
        assert d.boxes.shape == (len(d.scores), 4) and (d.scores[:-1] >= d.scores[1:]).all() and set(d.labels) <= {0, 1}
    assert all(len(d.boxes) == 0 for d in detect(tiny, toy[0][:3], "cat", threshold=1.1))


def test_both_variants_come_from_one_pass(tiny, pool, monkeypatch):
    query, ids = build_prompt([[Phrase("cat", pool.regions[0].float())]]), [f"image {i}" for i in range(12)]
    with torch.no_grad():
        tiny.score_head.region.weight.mul_(1.5)
    minus, plus = rank_variants(tiny, query, pool.features, ids)
    assert [a.image_id for a in minus] == ids and [a.score for a in minus] != [a.score for a in plus]
    for used, expected in ((False, minus), (True, plus)):
        answers = rank_variants(tiny, query, pool.features, ids, (used,))[0]
        assert [a.score for a in answers] == pytest.approx([a.score for a in expected], abs=1e-5)


@pytest.mark.parametrize("name, counted", [("cat", ["cat", "."]), ("teddy bear", ["teddy", "exemplar"]),
                                           ("large red dog", ["large", "dog"])])
def test_the_released_score_reads_the_wrong_tokens(name, counted):
    prompt = build_prompt([[Phrase(name, torch.zeros(REGION))]])
    tokens = [*name.split(), "exemplar", "."]
    assert prompt.kind.shape[1] == len(tokens), "one piece a word"
    logits = torch.logit(torch.linspace(0.2, 0.6, len(tokens)).expand(1, 1, -1))
    for order in (logits, logits.flip(-1)):
        found = phrase_scores(order, prompt, "released")
        assert float(found) == pytest.approx(max(float(order[0, 0, tokens.index(t)].sigmoid()) for t in counted))


def test_of_two_boxes_of_a_phrase_the_weaker_goes_and_other_phrases_and_the_threshold_itself_stay():
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 19], [0, 0, 20, 20], [40, 40, 60, 60]])
    found = _keep(boxes, torch.tensor([0.6, 0.9, 0.7, 0.5]), torch.tensor([0, 0, 1, 0]), 0.5, 0.7)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.5]) and found.labels.tolist() == [0, 1, 0]


def test_more_pictures_than_a_batch_are_each_asked_their_own(tiny, pool):
    rows = torch.arange(40) % 12
    names = ["cat", "dog", "bear", "teddy bear", "zebra"]
    prompts = build_prompt([[Phrase(names[i % 5])] for i in range(40)])
    found = detect_features(tiny, pool.features[rows], prompts)
    for i in (0, 31, 32, 33, 39):
        [alone] = detect_features(tiny, pool.features[rows[i : i + 1]], Prompt(*(t[i : i + 1] for t in prompts)))
        assert alone.scores.max() == pytest.approx(found[i].scores.max(), abs=1e-4)
    query = build_prompt([[Phrase("cat", pool.regions[0].float())]])
    ranked = rank_variants(tiny, query, pool.features[rows], [f"image {i}" for i in range(40)])
    assert all([a.image_id for a in answers] == [f"image {i}" for i in range(40)] for answers in ranked)


def test_ard_ranks_by_its_own_logits_the_likeness_among_them(with_likeness, pool):
    query = build_prompt([[Phrase("cat", pool.regions[0].float())]])
    for adapted, answers in zip((False, True), rank_variants(with_likeness, query, pool.features, [str(i) for i in range(12)])):
        with torch.no_grad():
            match = with_likeness.match(pool.features, query.expand(12), adapted)
        best = match.logits[..., query.kind[0] == EXEMPLAR].sigmoid().amax((1, 2))
        assert match.likeness.abs().max() > 0.1 and [a.score for a in answers] == pytest.approx(best.tolist(), abs=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_answers_are_those_of_evaluation_mode(pool, tied):
    torch.manual_seed(0)
    model = AttributionGroundingDinoForObjectDetection(AttributionConfig(
        d_model=32, num_queries=6, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, dropout=0.5))
    model = TiedGroundingDinoForObjectDetection.of(model) if tied else model
    query, names = build_prompt([[Phrase("cat", pool.regions[0].float())]]), [str(i) for i in range(12)]
    ask = (lambda: read(model, query, pool.features, names)[1].ranked) if tied else (lambda: rank_variants(model, query, pool.features, names)[1])
    learning = (model.train(), ask())[1]
    assert learning == (model.eval(), ask())[1]
