"""Adapters of every kind start as the identity, are trained alone, are saved, and are refused by a wrong name."""

import copy

import pytest
import torch

from ard.detector import phases as ph
from ard.detector.model import AttributionConfig, load_detector, save_detector
from ard.detector.published import AttributionDetector
from ard.detector.score_head import ADAPTERS
from ard.detector.train import TrainSettings
from ard.validation import changed
from tests.detector.official import small_config

SETTINGS = TrainSettings(steps=3, batch_size=1, learning_rate=1e-2, warmup=0)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_kind_starts_as_the_identity(kind, tiny):
    """However the model came by it: built with it, or renewed before phase 2."""
    torch.manual_seed(0)
    x = torch.randn(5, 32)
    built = type(tiny)(AttributionConfig(**{**tiny.config.to_diff_dict(), "adapter": kind}))
    tiny.renew_adapters(kind)
    for model in (built, tiny):
        assert model.config.adapter == kind
        assert all(torch.equal(f(x), x) for f in (model.score_head.region, model.score_head.token))
    published = AttributionDetector(small_config(adapter=kind))
    wide = torch.randn(5, 256)
    assert torch.equal(published.score_head.region(wide), wide)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_phase_2_trains_it_alone_and_it_is_kept(kind, tiny, phase_data, tmp_path):
    before = copy.deepcopy(tiny)
    rows = ph.train_phase2(tiny, phase_data, SETTINGS, tmp_path / "work", adapter=kind)
    moved = changed(before, tiny)
    assert moved and all(n.startswith(("score_head.region.", "score_head.token.")) for n in moved)
    assert (rows[-1]["orthogonality"] == 0) == (kind == "mlp"), "an MLP has no matrix for eq. 3"
    again = load_detector(save_detector(tiny, tmp_path / "m"))
    assert again.config.adapter == kind
    assert all(torch.equal(a.half(), b.half()) for a, b in zip(tiny.score_head.state_dict().values(), again.score_head.state_dict().values()))


def test_renewing_with_the_same_kind_changes_nothing(tiny):
    with torch.no_grad():
        tiny.score_head.region.weight.mul_(2)
    before = copy.deepcopy(tiny)
    tiny.renew_adapters("linear")
    assert changed(before, tiny) == set()
    with pytest.raises(ValueError, match="linear, scale, mlp"):
        tiny.renew_adapters("cubic")


def test_a_scale_is_kept_near_orthogonal_as_its_diagonal():
    scale = ADAPTERS["scale"](3)
    with torch.no_grad():
        scale.weight.copy_(torch.tensor([1.0, 2.0, 1.0]))
    assert ph.orthogonality(scale.matrix()).item() == pytest.approx(3.0)
