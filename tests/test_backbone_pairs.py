"""Table 3's pairs: other backbones are really read within the block and only there, and a detector is pretrained once."""

import numpy as np
import pytest
import torch

from ard import backbone_pairs as pairs
from ard.config import ConfigError
from ard.detector import features, prompts
from ard.detector.model import load_detector
from ard.world import World

PICTURES = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)


def test_other_backbones_are_read_within_the_block_only():
    seen, read = features.image_features(PICTURES), prompts.text_tokens("polar bear")
    with pairs.reading_with("efficientnet-lite1", 3):
        other, fewer = features.image_features(PICTURES), prompts.text_tokens("polar bear")
    assert other.shape == seen.shape and fewer.shape == read.shape
    assert not torch.allclose(other.float(), seen.float(), atol=0.1) and not torch.allclose(fewer, read, atol=0.1)
    assert torch.equal(features.image_features(PICTURES), seen) and torch.equal(prompts.text_tokens("polar bear"), read)
    with pairs.reading_with("efficientnet-lite0", 6):
        assert torch.equal(features.image_features(PICTURES), seen) and torch.equal(prompts.text_tokens("polar bear"), read)


def test_the_block_is_left_when_something_fails():
    read = prompts.text_tokens("cat")
    with pytest.raises(RuntimeError, match="inside"), pairs.reading_with("efficientnet-lite0", 1):
        assert not torch.equal(prompts.text_tokens("cat"), read)
        raise RuntimeError("inside")
    assert torch.equal(prompts.text_tokens("cat"), read)


def test_unknown_backbones_are_refused():
    with pytest.raises(ConfigError, match="'efficientnet-lite2'; did you mean"), pairs.reading_with("efficientnet-lite2", 6):
        pass
    with pytest.raises(ValueError, match="1 to 6, found 7"), pairs.reading_with("efficientnet-lite0", 7):
        pass


def test_a_deeper_network_gives_maps_of_the_same_width():
    one, other = (VISION().forward_intermediates(torch.zeros(1, 3, 96, 96), intermediates_only=True)
                  for VISION in pairs.VISION.values())
    assert [m.shape for m in one] == [m.shape for m in other]
    assert len(pairs.efficientnet_lite1().state_dict()) > len(pairs.efficientnet_lite0().state_dict())


def test_a_detector_is_pretrained_once_and_reads_its_pair(tmp_path, monkeypatch):
    world = World.load("data/world")
    settings = {"steps": 2, "batch_size": 2, "warmup": 1}

    def made(vision, place):
        with pairs.reading_with(vision, 2):
            return load_detector(pairs.pretrained(world, 6, 0, settings, settings, tmp_path / place))

    one, other = made("efficientnet-lite0", "a"), made("efficientnet-lite1", "b")
    assert not torch.equal(one.region_mean, other.region_mean), "region vectors are standardised by the pair's own"
    monkeypatch.setattr(pairs, "train_open_set", lambda *a: pytest.fail("trained again"))
    assert torch.equal(made("efficientnet-lite0", "a").region_mean, one.region_mean)
