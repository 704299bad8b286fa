import pytest
import torch

from ard.detector.features import REGION
from ard.detector.prompts import Phrase, build_prompt
from ard.detector.score import detect, phrase_scores, rank_variants

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
        tiny.set_adapters(used)
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
