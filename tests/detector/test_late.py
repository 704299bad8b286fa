"""Late fusion: the cut detector answers as the whole one, each side is computed without the other, and a pair costs less."""

import numpy as np
import pytest
import torch

from ard.bench import pair_costs, step_cost
from ard.detector.late import LateFusedConfig, LateFusedDetector
from ard.detector.processor import AttributionProcessor
from ard.detector.published import AttributionDetector
from ard.detector.variants import fuse_late
from tests.detector.official import small_config

PROCESSOR = AttributionProcessor(96, 160)
BOXES = torch.tensor([[10.0, 20, 60, 70], [5, 5, 50, 40]])


def shaken(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def late(fused_layers=1, **changes):
    config = LateFusedConfig.of(small_config(encoder_layers=3, **changes), fused_layers)
    return LateFusedDetector(config).eval().requires_grad_(False)


def same_weights(whole, fused_layers, **changes):
    """A cut detector with the weights of a whole one whose early layers do not fuse."""
    cut, early, renamed = late(fused_layers, **changes), 3 - fused_layers, {}
    for name, value in whole.state_dict().items():
        parts = name.split(".")
        if parts[:3] == ["model", "encoder", "layers"]:
            number = int(parts[3])
            place = ["ahead", str(number)] if number < early else [*parts[:3], str(number - early)]
            parts = [*place, *parts[4:]]
        renamed[".".join(parts)] = value
    missing, unknown = cut.load_state_dict(renamed, strict=False)
    assert not missing and not unknown
    return cut


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return PROCESSOR.collate([PROCESSOR(rng.integers(0, 255, size, dtype=np.uint8)) for size in ((96, 96, 3), (64, 120, 3))])


@pytest.mark.parametrize(("fused_layers", "changes"), [(1, {}), (2, {}), (1, {"fused_levels": 3}), (3, {})])
def test_the_cut_detector_answers_as_the_whole_one(pictures, fused_layers, changes):
    whole = shaken(AttributionDetector(small_config(encoder_layers=3, **changes)))
    fuse_late(whole, fused_layers)
    cut = same_weights(whole, fused_layers, **changes)
    asked = [model.encode_query(pictures, BOXES, ["cat", "polar bear"]) for model in (whole, cut)]
    one, other = (m.match(m.encode_image(pictures), prompt) for m, prompt in zip((whole, cut), asked))
    assert torch.equal(one.logits, other.logits) and torch.equal(one.boxes, other.boxes)
    assert one.logits[one.logits > -1e3].std() > 0


def test_a_kept_picture_is_the_same_beside_others(pictures):
    model = shaken(late())
    kept = model.encode_image(pictures)
    query = model.encode_query(pictures, BOXES, ["cat", None])
    assert len(kept) == 2 and len(kept[1:]) == 1
    both, second = model.match(kept, query), model.match(kept[1:], query.take(torch.tensor([1])))
    assert torch.allclose(both.boxes[1:], second.boxes, atol=1e-3)


def test_a_pair_costs_what_stands_behind_the_first_fusion():
    torch.manual_seed(0)
    whole = AttributionDetector(small_config(encoder_layers=3)).eval().requires_grad_(False)
    every, two, one = (pair_costs(model, PROCESSOR, side=96) for model in (whole, late(2), late(1)))
    assert every["match"].gflop > two["match"].gflop > one["match"].gflop
    assert step_cost(late(1), one["image"].result, one["query"].result).seconds > 0
    assert every["image"].gflop < two["image"].gflop < one["image"].gflop, "what a pair no longer pays, a picture pays once"


@pytest.mark.parametrize("layers", [0, 4])
def test_a_wrong_number_of_layers_is_refused(layers):
    with pytest.raises(ValueError, match=f"1 to 3, found {layers}"):
        late(layers)


def test_a_saved_detector_comes_back(tmp_path, pictures):
    model = shaken(late())
    model.save_pretrained(tmp_path)
    back = LateFusedDetector.from_pretrained(tmp_path).eval().requires_grad_(False)
    query = model.encode_query(pictures, BOXES, ["cat", "dog"])
    one, other = (m.match(m.encode_image(pictures), query).logits for m in (model, back))
    assert torch.equal(one, other)
