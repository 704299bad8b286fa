"""Before phase 1: the weights of the start, the likeness and the reading of ARD."""

from copy import deepcopy

import torch

from ard.detector.model import save_detector
from ard.detector.start import before_phase1
from ard.detector.tied import TiedGroundingDinoForObjectDetection as Tied


def test_the_start_has_its_own_weights_and_the_likeness_and_reading_of_ard(tiny, tmp_path):
    with_likeness = deepcopy(tiny)
    with_likeness.add_likeness()
    with torch.no_grad():
        for weights in with_likeness.parameters():
            weights.add_(1.0)  # as if trained; what is saved is float16
    save_detector(tiny, tmp_path / "start")
    save_detector(Tied.of(with_likeness, likeness_weight=1.5, pooling=4.0), tmp_path / "ard")
    made = before_phase1(tmp_path / "ard", tmp_path / "start")
    assert isinstance(made, Tied) and made.config.reading() == {"likeness_weight": 1.5, "pooling": 4.0} and made.config.likeness
    found, before, after = (model.state_dict() for model in (made, tiny, with_likeness))
    learned = {name for name in found if name.startswith("likeness_head")}
    assert learned == found.keys() - before.keys() and learned
    assert all(torch.equal(found[name], (after if name in learned else before)[name].half().float()) for name in found)


def test_an_ard_without_likeness_leaves_the_start_as_it_is(tiny, tmp_path):
    save_detector(tiny, tmp_path / "start")
    made = before_phase1(tmp_path / "start", tmp_path / "start")
    assert not isinstance(made, Tied) and not made.config.likeness
