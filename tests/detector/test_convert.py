"""Official checkpoints: our detector answers as GroundingDINO's own code does with the same random weights, boxes and logits."""

import argparse

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

from ard.backbones import wordpieces
from ard.detector.convert import from_grounding_dino, from_official, read_official, to_official
from ard.detector.joint import ABSENT
from ard.detector.prompts import EXEMPLAR, Phrase
from ard.detector.published import AttributionDetector, Pictures, published_config
from ard.files import FileError
from tests.detector.official import official_answer, official_model, slow_exemplar_token, small_config

pytest.importorskip("groundingdino")


def pictures(height, width, seed=1):
    """Two random pictures; the second is smaller and padded."""
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(2, height, width, dtype=torch.bool)
    mask[1, height - 32 :], mask[1, :, width - 64 :] = False, False
    return Pictures(pixels * mask[:, None], mask, torch.tensor([[width, height], [width - 64, height - 32]]).float())


def assert_same(detector, official, batch, names):
    boxes, logits = official_answer(official, batch, [" . ".join(names) + " ."] * 2)
    with torch.no_grad():
        match = detector(batch, detector.prompt([[Phrase(n) for n in names]] * 2))
    tokens = match.logits.shape[-1]
    assert logits[..., :tokens].std() > 0.5, "a comparison of constants would prove nothing"
    assert torch.isinf(logits[..., tokens:]).all()
    for i in range(len(boxes)):  # as sets: two proposals of nearly one score may change places
        gap = torch.cdist(match.layer_boxes[i, -1], boxes[i], p=torch.inf)
        gap += torch.cdist(match.logits[i], logits[i, :, :tokens].clamp(min=ABSENT), p=torch.inf)
        mine, theirs = linear_sum_assignment(gap.numpy())
        assert (match.layer_boxes[i, -1][mine] - boxes[i][theirs]).abs().max() < 1e-4
        assert (match.logits[i][mine] - logits[i, :, :tokens].clamp(min=ABSENT)[theirs]).abs().max() < 1e-4


def test_captions_of_a_batch_do_not_mix(tmp_path, monkeypatch):
    """The authors' code repeats the text masks of a batch in another order than its attention heads, so that a caption is read
    through its neighbour's mask; here a caption is read the same alone and in company."""
    official = official_model(small_config(), tmp_path, monkeypatch)
    detector = from_official(official.state_dict(), small_config()).detector
    batch = pictures(160, 224)
    one = Pictures(*(t[:1] for t in batch))
    long, short = [Phrase("cat"), Phrase("teddy bear"), Phrase("dog")], [Phrase("zebra")]
    with torch.no_grad():
        together, alone = detector(batch, detector.prompt([long, short])), detector(one, detector.prompt([long]))
    theirs = official_answer(official, batch, ["cat . teddy bear . dog .", "zebra ."])[1][0, :, :9]
    theirs_alone = official_answer(official, one, ["cat . teddy bear . dog ."])[1][0, :, :9]
    assert (together.logits[0] - alone.logits[0]).abs().max() < 1e-4
    assert (alone.logits[0] - theirs_alone).abs().max() < 1e-4 < 0.05 < (theirs - theirs_alone).abs().max()


@pytest.mark.parametrize("names", [["cat"], ["cat", "teddy bear", "dog"]])
def test_parity_at_small_shape(names, tmp_path, monkeypatch):
    official = official_model(small_config(), tmp_path, monkeypatch)
    found = from_official(official.state_dict(), small_config())
    assert_same(found.detector, official, pictures(160, 224), names)
    assert {n.split(".")[0] for n in found.fresh} == {"exemplar_projection", "score_head"}
    assert all("relative_position_index" in n or n.startswith("bert.pooler") for n in found.unused), found.unused


def test_parity_at_full_swin_t_shape(tmp_path, monkeypatch):
    official = official_model(published_config("T-B"), tmp_path, monkeypatch)
    with torch.no_grad():  # 900 proposals hold near ties, and a place has an embedding of its own: here all have the same
        official.transformer.tgt_embed.weight.copy_(official.transformer.tgt_embed.weight[:1].expand(900, -1))
    found = from_official(official.state_dict(), published_config("T-B"))
    assert_same(found.detector, official, pictures(320, 384), ["cat", "teddy bear"])


def test_the_exemplar_path_against_one_written_by_hand(tmp_path, monkeypatch):
    """CountGD's: GroundingDINO's own transformer is given tokens, masks and positions that are laid out here by hand."""
    from groundingdino.util.misc import NestedTensor

    config = small_config()
    official = official_model(config, tmp_path, monkeypatch)
    torch.manual_seed(3)
    state = {**official.state_dict(), "feature_map_proj.weight": torch.randn(256, 224, 1, 1) * 0.1,
             "feature_map_proj.bias": torch.randn(256), "feature_map_encoder.weight": torch.ones(2)}
    found = from_official(state, config)
    assert "feature_map_encoder.weight" in found.unused and all(n.startswith("score_head") for n in found.fresh)
    detector, batch, asked = found.detector, pictures(160, 224), pictures(128, 160, seed=7)
    boxes = [[12.0, 20.0, 75.0, 64.0], [30.5, 8.0, 50.25, 90.0]]

    with torch.no_grad():
        prompt = detector.encode_query(asked, torch.tensor(boxes), ["teddy bear", "zebra"])
        match = detector(batch, prompt)
        features, _ = official.backbone(NestedTensor(asked.pixels, ~asked.mask))
        for i, name in enumerate(("teddy bear", "zebra")):
            token = slow_exemplar_token([f.tensors[i] for f in features], detector.exemplar_projection, boxes[i])
            words = len(name.split()) if name == "teddy bear" else int((prompt.kind[i] == 1).sum())
            length = words + 4  # [CLS] words exemplar . [SEP]
            assert torch.allclose(prompt.exemplar[i, words + 1], token, atol=1e-4) and prompt.kind[i, words + 1] == EXEMPLAR
            ids = official.tokenizer(f"{name} .", return_tensors="pt").input_ids
            # BERT never sees the exemplar: its own masks and positions, one phrase from behind [CLS] to its full stop
            seen, places = torch.eye(words + 3, dtype=torch.bool)[None], torch.zeros(1, words + 3, dtype=torch.long)
            seen[0, 1 : words + 2, 1 : words + 2] = True
            places[0, 1 : words + 2] = torch.arange(words + 1)
            text = official.bert(ids, torch.zeros_like(ids), seen, places)["last_hidden_state"]
            text = official.feat_map(text)[0]
            tokens = torch.cat([text[: words + 1], token[None], text[words + 1 :]])[None]
            masks, positions = torch.eye(length, dtype=torch.bool)[None], torch.zeros(1, length, dtype=torch.long)
            masks[0, 1 : words + 3, 1 : words + 3] = True
            positions[0, 1 : words + 3] = torch.arange(words + 2)
            wanted = official_transformer(official, batch, i, tokens, masks, positions)
            assert (match.layer_boxes[i, -1] - wanted[0]).abs().max() < 1e-4
            assert (match.logits[i, :, :length] - wanted[1]).abs().max() < 2e-4


def official_transformer(official, batch, i, tokens, masks, positions):
    """Boxes (N, 4) and logits (N, T) of picture i, from the official modules behind its text encoder."""
    from groundingdino.util.misc import NestedTensor

    samples = NestedTensor(batch.pixels[i : i + 1], ~batch.mask[i : i + 1])
    features, places = official.backbone(samples)
    sources = [p(f.tensors) for p, f in zip(official.input_proj, features)]
    sources.append(official.input_proj[3](features[-1].tensors))
    hidden = torch.nn.functional.interpolate(samples.mask[None].float(), size=sources[-1].shape[-2:]).bool()[0]
    text = {"encoded_text": tokens, "text_token_mask": torch.ones(tokens.shape[:2], dtype=torch.bool), "position_ids": positions,
            "text_self_attention_masks": masks}
    states, references, *_ = official.transformer(
        sources, [*(f.mask for f in features), hidden], None,
        [*places, official.backbone[1](NestedTensor(sources[-1], hidden))], None, None, text)
    before = references[-2].clamp(0, 1)
    boxes = (official.bbox_embed[-1](states[-1]) + (before.clamp(min=1e-3) / (1 - before).clamp(min=1e-3)).log()).sigmoid()
    return boxes[0], states[-1][0] @ text["encoded_text"][0].T


def test_there_and_back(tmp_path, monkeypatch):
    """Every tensor of an official file that is used comes back under its name, bit by bit, copies of the box head included."""
    official = official_model(small_config(), tmp_path, monkeypatch)
    state = official.state_dict()
    found = from_official(state, small_config())
    back = to_official(found.detector, exemplars=False)
    assert back.keys() == state.keys() - set(found.unused)
    assert all(torch.equal(back[name], state[name]) for name in back)
    again = from_official(to_official(found.detector), small_config())
    mine, yours = found.detector.state_dict(), again.detector.state_dict()
    assert not again.unused and all(torch.equal(mine[n], yours[n]) for n in mine if "swin.layernorm" not in n)
    found.detector.score_head.region.weight.data[0, 1] = 0.5
    with pytest.raises(ValueError, match="identity"):
        to_official(found.detector)


def test_what_is_missing_or_of_another_shape_is_named(tmp_path):
    torch.manual_seed(0)
    state = to_official(AttributionDetector(small_config()))
    torch.save({"model": {f"module.{n}": t for n, t in state.items()}}, tmp_path / "good.pth")
    assert read_official(tmp_path / "good.pth").keys() == state.keys()
    broken = dict(state)
    del broken["transformer.level_embed"]
    broken["feat_map.weight"] = torch.zeros(3, 3)
    broken["transformer.decoder.layers.1.self_attn.in_proj_weight"] = torch.zeros(6, 256)
    broken["bbox_embed.2.layers.0.weight"] = broken["bbox_embed.2.layers.0.weight"] + 1
    with pytest.raises(FileError) as caught:
        from_official(broken, small_config())
    text = str(caught.value)
    assert "transformer.level_embed is missing" in text and "feat_map.weight: expected (256, 48), found (3, 3)" in text
    assert "in_proj_weight: expected (768, 256), found (6, 256)" in text and "bbox_embed.2.layers.0.weight differs" in text


def test_only_tensors_are_read(tmp_path):
    with pytest.raises(FileError, match="no such file"):
        read_official(tmp_path / "none.pth")
    torch.save({"model": {"a": torch.ones(1)}, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "countgd.pth")
    assert read_official(tmp_path / "countgd.pth") == {"a": torch.ones(1)}, "CountGD's holds its command line, too"
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 not a checkpoint")
    torch.save({"model": {"a": object()}}, tmp_path / "object.pth")
    torch.save({"model": [1]}, tmp_path / "list.pth")
    for name in ("torn", "object", "list"):
        with pytest.raises(FileError, match=f"{name}.pth"):
            read_official(tmp_path / f"{name}.pth")


def test_weights_in_the_hub_layout_answer_as_transformers_does(tmp_path):
    """A folder as `IDEA-Research/grounding-dino-tiny` is one. Their code keeps boxes 1e-5 from the border, the authors' and ours
    1e-3: the comparison is of regions inside."""
    torch.manual_seed(0)
    small = small_config()
    config = GroundingDinoConfig(
        backbone_config=small.backbone_config, text_config=small.text_config, d_model=256, encoder_layers=2, decoder_layers=3,
        encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=12, dropout=0.0)
    theirs = GroundingDinoForObjectDetection(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    theirs.save_pretrained(tmp_path / "hub")
    found = from_grounding_dino(tmp_path / "hub")
    batch = pictures(160, 224)
    words = wordpieces()(["cat . teddy bear ."] * 2, return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(pixel_values=batch.pixels, pixel_mask=batch.mask.long(), **words)
        match = found.detector(batch, found.detector.prompt([[Phrase("cat"), Phrase("teddy bear")]] * 2))
    assert ((wanted.pred_boxes > 2e-3) & (wanted.pred_boxes < 0.998)).all()
    assert (match.layer_boxes[:, -1] - wanted.pred_boxes).abs().max() < 1e-4
    assert (match.logits - wanted.logits[..., : match.logits.shape[-1]]).abs().max() < 1e-4
    assert {n.split(".")[0] for n in found.fresh} == {"exemplar_projection", "score_head"}


def test_published_sizes():
    """Parameters in millions; the paper's B-B has about 233 (FACTS 1.4)."""
    with torch.device("meta"):
        counts = {size: sum(p.numel() for p in AttributionDetector(published_config(size)).parameters()) / 1e6 for size in ("T-B", "B-B", "B-L")}
    assert counts["B-B"] == pytest.approx(233, abs=3)
    assert counts["T-B"] == pytest.approx(counts["B-B"] - 60, abs=3) and counts["B-L"] == pytest.approx(counts["B-B"] + 226, abs=4)
    with pytest.raises(ValueError, match="T-B, B-B, B-L"):
        published_config("L-B")


def test_a_saved_detector_answers_the_same(tmp_path):
    torch.manual_seed(0)
    detector = AttributionDetector(small_config()).eval()
    detector.set_adapters(True)
    detector.save_pretrained(tmp_path)
    again = AttributionDetector.from_pretrained(tmp_path, local_files_only=True)
    batch = pictures(96, 128)
    with torch.no_grad():
        first, second = (d(batch, d.encode_query(batch, torch.tensor([[8.0, 8, 60, 60]] * 2), ["cat", None])) for d in (detector, again))
    saved, kept = detector.state_dict(), again.state_dict()
    assert again.config.adapters and saved.keys() == kept.keys() and all(torch.equal(saved[name], kept[name]) for name in saved)
    answers = (second.logits, second.layer_boxes), (first.logits, first.layer_boxes)
    torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-4)  # the same weights at other addresses: other last bits
