import pytest
import torch

from ard.detector.features import REGION
from ard.detector.prompts import (
    DELIMITER,
    EXEMPLAR,
    PAD,
    TEXT,
    Phrase,
    build_prompt,
    phrase_attention,
    phrase_map,
    positions,
    text_tokens,
)

E = torch.ones(REGION)


def test_layout_exemplar_right_after_its_phrase():
    prompt = build_prompt([[Phrase("teddy bear", E), Phrase("dog")], [Phrase(exemplar=E)]])
    assert prompt.kind.tolist() == [
        [TEXT, TEXT, EXEMPLAR, DELIMITER, TEXT, DELIMITER],
        [EXEMPLAR, DELIMITER, PAD, PAD, PAD, PAD],
    ]
    assert prompt.phrase.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, -1, -1, -1, -1]]
    assert positions(prompt)[0].tolist() == [0, 1, 2, 3, 0, 1]


def test_target_map_marks_phrase_and_exemplar_only():
    prompt = build_prompt([[Phrase("teddy bear", E), Phrase("dog")]])
    assert phrase_map(prompt)[0].tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]


def test_attention_is_block_diagonal():
    seen = phrase_attention(build_prompt([[Phrase("cat", E), Phrase("dog")], [Phrase("cat")]]))
    assert seen[0].tolist() == torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).bool().tolist()
    assert seen[1, 2:].tolist() == torch.eye(5).bool()[2:].tolist(), "padding sees only itself"


def test_text_features_do_not_depend_on_the_other_phrases():
    alone, among = build_prompt([[Phrase("dog")]]), build_prompt([[Phrase("cat"), Phrase("dog")]])
    assert torch.equal(alone.text[0, :2], among.text[0, 2:4])
    assert len(text_tokens("")) == 1


def test_an_empty_phrase_is_refused():
    with pytest.raises(ValueError, match="class name, an exemplar or both"):
        Phrase()
