import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment

from ard.detector.criterion import detection_loss, make_targets
from ard.detector.features import REGION
from ard.detector.joint import ABSENT
from ard.detector.model import (
    AttributionConfig,
    AttributionGroundingDinoForObjectDetection,
    load_detector,
    save_detector,
)
from ard.detector.pretrain import new_detector
from ard.detector.prompts import EXEMPLAR, Phrase, build_prompt, phrase_map
from ard.files import FileError


def prompt_for(pool, rows, name="teddy bear"):
    return build_prompt([[Phrase(name, pool.regions[r].float()), Phrase("dog")] for r in rows])


def test_default_width_fits_the_shipped_file():
    model = AttributionGroundingDinoForObjectDetection(AttributionConfig())
    assert 2.0e6 < sum(p.numel() for p in model.parameters()) < 2.5e6
    assert "GroundingDinoForObjectDetection" in type(model).__name__


def test_match_gives_boxes_in_pixels_and_a_logit_for_every_token(tiny, pool):
    match = tiny.match(pool.features[:3], prompt_for(pool, [0, 1, 2]))
    assert match.boxes.shape == (3, 6, 4) and match.logits.shape == (3, 6, 6)
    assert 0 <= match.boxes.min() and match.boxes.max() <= 64


def test_the_cut_equals_the_whole(tiny, toy):
    images, boxes = toy[0][:2], toy[1][:2]
    prompt = tiny.encode_query(images, boxes, ["cat", None])
    with torch.no_grad():
        assert torch.equal(tiny(images, prompt).logits, tiny.match(tiny.encode_image(images), prompt).logits)


@torch.no_grad()
def test_an_image_alone_equals_it_in_a_batch_as_a_set(tiny, pool):
    """Positions may differ in the last bit's top-k, so regions are paired by box and compared as sets; padding
    changes nothing."""
    prompts = [[Phrase("cat", pool.regions[0].float())], [Phrase("teddy bear"), Phrase("dog"), Phrase("bear")]]
    together = tiny.match(pool.features[:2], build_prompt(prompts))
    for i in range(2):
        alone = tiny.match(pool.features[i : i + 1], build_prompt(prompts[i : i + 1]))
        gap = torch.cdist(together.boxes[i], alone.boxes[0], p=1)
        rows, columns = linear_sum_assignment(gap.numpy())
        assert gap[rows, columns].max() < 1e-2
        width = alone.logits.shape[-1]
        assert torch.allclose(together.logits[i, rows, :width], alone.logits[0, columns], atol=1e-3)


@torch.no_grad()
def test_save_and_load_are_exact(tiny, pool, tmp_path):
    tiny.set_adapters(True)
    tiny.set_region_statistics(torch.rand(REGION), torch.rand(REGION) + 1)
    save_detector(tiny, tmp_path / "model")
    first = load_detector(tmp_path / "model")
    save_detector(first, tmp_path / "again")
    assert (tmp_path / "model/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()
    second = load_detector(tmp_path / "again")
    prompt = prompt_for(pool, [0, 1])
    assert torch.equal(first.match(pool.features[:2], prompt).logits, second.match(pool.features[:2], prompt).logits)
    assert first.config.adapters and torch.equal(first.region_mean, tiny.region_mean.half().float())
    names = load_file(tmp_path / "model/model.safetensors").keys()
    assert not [n for n in names if "conv_encoder" in n or "text_backbone" in n], "frozen parts stay out of the file"


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(FileError, match="config.json: no such file"):
        load_detector(tmp_path)


def test_gradients_reach_query_adapters_and_proposal_head(tiny, pool):
    tiny.set_adapters(True)
    exemplar = pool.regions[:2].float().requires_grad_()
    prompt = build_prompt([[Phrase("cat", e)] for e in exemplar])
    targets = make_targets([np.array([[0.5, 0.5, 0.4, 0.4]])] * 2, [[0], [0]], phrase_map(prompt))
    loss, _ = detection_loss(tiny.match(pool.features[:2], prompt), targets)
    loss.backward()
    wanted = {
        "exemplar": exemplar,
        "F": tiny.score_head.region.weight,
        "F~": tiny.score_head.token.weight,
        "first stage": tiny.model.enc_output.weight,
        "its boxes": tiny.model.encoder_output_bbox_embed.layers[-1].weight,
        "exemplar projection": tiny.exemplar_projection.weight,
    }
    for name, tensor in wanted.items():
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0, name
    assert all(torch.isfinite(p.grad).all() for p in tiny.parameters() if p.grad is not None)


def test_every_parameter_is_used(tiny, pool):
    tiny.set_adapters(True)
    prompt = prompt_for(pool, [0, 1])
    targets = make_targets([np.array([[0.5, 0.5, 0.4, 0.4]])] * 2, [[0], [0]], phrase_map(prompt))
    detection_loss(tiny.match(pool.features[:2], prompt), targets)[0].backward()
    assert [n for n, p in tiny.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_adapters_start_as_the_identity(tiny, pool):
    prompt = prompt_for(pool, [0, 1])
    plain, adapted = (tiny.match(pool.features[:2], prompt, adapted=a).logits for a in (False, True))
    assert torch.allclose(plain, adapted, atol=1e-5)


def test_a_likeness_head_prefers_the_box_that_looks_like_the_exemplar(pool):
    model = new_detector(pool, 0)
    model.add_likeness()
    own = pool.regions[pool.objects_of(0)[0]].float()
    prompt = build_prompt([[Phrase("cat", own)]])
    inside = torch.from_numpy(pool.boxes[pool.objects_of(0)[:1]]).float()
    corner = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    boxes = torch.cat([inside, corner])
    boxes = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1) / 64
    added = model._likeness(pool.features[:1], boxes[None, None], prompt)[0, 0]
    exemplar = prompt.kind[0] == EXEMPLAR
    assert added[0, exemplar].item() == pytest.approx(4 * (1 - 0.3), abs=0.05), "the same region: cosine 1"
    assert added[1, exemplar] < added[0, exemplar]
    assert not added[:, ~exemplar].any(), "words are not compared"


def test_a_likeness_head_is_saved_and_loaded(pool, tmp_path):
    model = new_detector(pool, 0)
    before = {n for n, _ in model.named_parameters()}
    model.add_likeness(3)
    assert {n for n, _ in model.named_parameters()} - before == {
        "likeness_head.project.weight", "likeness_head.scale", "likeness_head.threshold"}
    again = load_detector(save_detector(model, tmp_path / "m"))
    assert again.config.likeness
    assert torch.equal(again.likeness_head.project.weight, model.likeness_head.project.weight.half().float())


@torch.no_grad()
def test_exemplars_are_standardised_channel_by_channel_and_one_that_never_varies_does_no_harm(tiny, pool):
    mean, std = torch.rand(REGION), torch.rand(REGION) + 0.5
    std[0] = 0
    plain, vector = tiny._query_tokens(build_prompt([[Phrase(None, (pool.regions[0].float() - mean) / std.clamp(min=1e-3))]])), pool.regions[0].float()
    tiny.set_region_statistics(mean, std)
    prompt = build_prompt([[Phrase(None, vector)]])
    assert torch.allclose(tiny._query_tokens(prompt)[prompt.kind == EXEMPLAR], plain[prompt.kind == EXEMPLAR], atol=1e-3)
    assert tiny.region_std.min() > 0 and torch.isfinite(tiny.match(pool.features[:1], prompt).logits).all()


def test_regions_start_as_background(tiny):
    assert math.isclose(float(tiny.score_head.bias.detach().sigmoid()), 0.01, rel_tol=0.02)


@torch.no_grad()
def test_padding_chooses_no_region(tiny, pool):
    prompts = build_prompt([[Phrase("cat")], [Phrase("teddy bear"), Phrase("dog")]])
    match = tiny.match(pool.features[:2], prompts)
    assert (match.encoder_logits[0][:, ~prompts.present[0]] == ABSENT).all() and (~prompts.present[0]).any()
    assert (match.encoder_logits[0][:, prompts.present[0]] > ABSENT / 2).all()


@torch.no_grad()
def test_the_decoder_knows_where_each_cell_of_the_fine_map_is(tiny, pool, monkeypatch):
    """The fine level passes the fusion encoder by: its place is added to it, as the encoder does with the others."""
    seen, decode = [], tiny._decode
    monkeypatch.setattr(tiny, "_decode", lambda start, memory, *rest: seen.append(memory) or decode(start, memory, *rest))
    tiny.match(pool.features[:1], prompt_for(pool, [0]))
    scene = tiny._scene(pool.features[:1])
    height, width = scene.shapes[0]
    assert torch.allclose(seen[0][:, : height * width], (scene.tokens + scene.where)[:, : height * width], atol=1e-5)
    assert scene.where[:, : height * width].abs().max() > 0.1
