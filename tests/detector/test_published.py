"""The published sizes: the cut equals the whole, everything but the frozen backbones learns, phrases do not see each other."""

import numpy as np
import pytest
import torch

from ard.detector.criterion import detection_loss, make_targets
from ard.detector.processor import AttributionProcessor
from ard.detector.prompts import EXEMPLAR, TEXT, Phrase, phrase_map
from ard.detector.published import AttributionDetector
from tests.detector.official import small_config

PROCESSOR = AttributionProcessor(96, 160)
BOXES = torch.tensor([[10.0, 12, 60, 70], [30.0, 20, 90, 80]])


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return AttributionDetector(small_config()).eval()


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return PROCESSOR.collate([PROCESSOR(rng.integers(0, 255, size, dtype=np.uint8)) for size in ((96, 128, 3), (120, 96, 3))])


@torch.no_grad()
def test_the_cut_equals_the_whole_bit_by_bit(detector, pictures):
    prompt = detector.encode_query(pictures, BOXES, ["cat", "teddy bear"])
    kept = detector.encode_image(pictures)
    whole, cut = detector(pictures, prompt), detector.match(kept, prompt)
    assert all(torch.equal(getattr(whole, n), getattr(cut, n)) for n in ("layer_boxes", "layer_logits", "encoder_boxes", "encoder_logits"))


@torch.no_grad()
def test_boxes_are_in_pixels_of_each_picture(detector, pictures):
    match = detector(pictures, detector.encode_query(None, None, ["cat", "dog"]))
    assert match.boxes.shape == (2, 12, 4) and match.boxes.min() >= 0
    for boxes, (width, height) in zip(match.boxes, pictures.sizes.tolist()):
        assert boxes[:, 0::2].max() <= width and boxes[:, 1::2].max() <= height


@torch.no_grad()
def test_a_caption_is_laid_out_as_countgd_does(detector, pictures):
    exemplars = detector.exemplar_tokens(detector.encode_image(pictures), BOXES)
    prompt = detector.prompt([[Phrase("teddy bear", exemplars[0]), Phrase(None, exemplars[1]), Phrase("dog")]])
    kinds = "".join(" tx."[k] for k in prompt.kind[0].tolist())
    words = kinds.count("t")
    assert kinds == ".t" + "t" * (words - 2) + "x.x.t.." and prompt.phrase[0, [0, -1]].tolist() == [-2, -3]
    target = phrase_map(prompt)[0]
    assert target.shape[0] == 3 and (target.sum(1) == torch.tensor([words, 1, 1])).all()
    assert phrase_map(prompt, (EXEMPLAR,)).sum() == 2 and phrase_map(prompt, (TEXT,)).sum() == words


@torch.no_grad()
def test_phrases_do_not_see_each_other(detector):
    """In BERT and in front of the fusion encoder; behind it they meet by way of the picture, as published."""
    together = detector.prompt([[Phrase("cat"), Phrase("dog")]])
    alone = detector.prompt([[Phrase("dog")]])
    assert torch.allclose(together.text[0, -3:-1], alone.text[0, 1:-1], atol=1e-6)


def test_everything_but_the_backbones_learns(detector, pictures):
    detector.set_adapters(True)
    detector.train()
    prompt = detector.encode_query(pictures, BOXES, ["cat", "dog"])
    targets = make_targets([np.array([[0.5, 0.5, 0.4, 0.4]])] * 2, [[0], [0]], phrase_map(prompt))
    for setting in ("groundingdino", "countgd"):
        detector.zero_grad()
        detection_loss(detector(pictures, prompt), targets, setting)[0].backward(retain_graph=True)
        idle = {n for n, p in detector.named_parameters() if p.grad is None}
        assert all("text_backbone" in n or "swin.layernorm" in n for n in idle), idle
        assert all(torch.isfinite(p.grad).all() for p in detector.parameters() if p.grad is not None)
        assert detector.exemplar_projection.weight.grad.abs().sum() > 0
    detector.set_adapters(False)
    detector.eval()
    detector.zero_grad()


def test_fusing_coarse_levels_only_leaves_the_fine_ones_to_the_decoder(pictures):
    torch.manual_seed(0)
    detector = AttributionDetector(small_config(fused_levels=2)).eval()
    with torch.no_grad():
        match = detector(pictures, detector.encode_query(pictures, BOXES, ["cat", "dog"]))
    coarse = sum(h * w for h, w in detector._scene(detector.encode_image(pictures)).shapes[2:])
    assert match.encoder_logits.shape[1] == coarse and torch.isfinite(match.boxes).all()
