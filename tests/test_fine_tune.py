"""Fine-tuning on variants of a collection: the same start and noise for all, the base left as it was, and something learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ard.attention import plain_attention
from ard.baselines.denoising import denoising_losses, even_probe, text_states
from ard.customize import encode
from ard.deltas import apply_delta, remove_delta
from ard.fine_tune import FineTuneConfig, fine_tune
from tests.baselines.test_abu import same_bytes, snapshot
from tests.tiny_pipeline import tiny_pipeline

CONFIG = FineTuneConfig(rank=2, steps=3, batch=2, lr=1e-2)
PROMPT = "a photo of a cat ."


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)


def changed(pictures, place):
    out = pictures.copy()
    out[place, :, :16] = 128
    return out


def test_the_base_is_left_as_it_was_and_equal_seeds_give_equal_deltas(tmp_path, pictures):
    pipe = tiny_pipeline(tmp_path)
    before, wanted = snapshot(pipe), [p.requires_grad for p in pipe.unet.parameters()]
    once, again, other = (fine_tune(pipe, pictures[None], PROMPT, CONFIG, seed)[0].vector for seed in (1, 1, 2))
    assert same_bytes(before, snapshot(pipe)) and wanted == [p.requires_grad for p in pipe.unet.parameters()]
    assert torch.equal(once, again) and not torch.equal(once, other) and once.abs().max() > 0


def test_variants_learn_as_if_alone_and_equal_ones_learn_the_same(tmp_path, pictures):
    pipe = tiny_pipeline(tmp_path)
    both = fine_tune(pipe, np.stack([pictures, changed(pictures, 0), pictures]), PROMPT, CONFIG, 0)
    alone = fine_tune(pipe, changed(pictures, 0)[None], PROMPT, CONFIG, 0)[0]
    assert torch.equal(both[0].vector, both[2].vector), "what differs in the end differs because of the pictures"
    assert not torch.allclose(both[0].vector, both[1].vector, atol=1e-3)
    # off by the rounding of four bits, where a number lies between two steps
    assert (both[1].vector - alone.vector).abs().mean() < 0.02 * alone.vector.abs().mean()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_what_was_shown_is_denoised_better_afterwards(tmp_path, pictures, kind):
    pipe = tiny_pipeline(tmp_path, kind)
    [delta] = fine_tune(pipe, pictures[None, :1], PROMPT, replace(CONFIG, steps=10), 0)

    def losses():
        with torch.no_grad(), plain_attention(pipe.unet):
            return denoising_losses(pipe, encode(pipe, pictures), text_states(pipe, PROMPT), even_probe(pipe, 10, 0)).mean(1)

    before = losses()
    apply_delta(pipe, delta)
    gain = before - losses()
    remove_delta(pipe)
    assert gain[0] > 0.02 * before[0]


def test_every_picture_has_its_turn(tmp_path, pictures, monkeypatch):
    pipe, seen = tiny_pipeline(tmp_path), []
    known = encode(pipe, pictures)
    monkeypatch.setattr(pipe.scheduler, "add_noise", lambda clean, noise, times: seen.append(clean) or clean)
    fine_tune(pipe, pictures[None], PROMPT, CONFIG, 0)
    shown = [[int((known - one).abs().flatten(1).sum(1).argmin()) for one in step] for step in seen]
    assert shown == [[0, 1], [2, 0], [1, 2]]


def test_bad_collections_are_named(tmp_path, pictures):
    pipe = tiny_pipeline(tmp_path)
    with pytest.raises(ValueError, match=r"\(variants, pictures, H, H, 3\) uint8, found uint8 \(3, 32, 32, 3\)"):
        fine_tune(pipe, pictures, PROMPT, CONFIG, 0)
    with pytest.raises(ValueError, match="modules 'everything', expected one of"):
        fine_tune(pipe, pictures[None], PROMPT, replace(CONFIG, modules="everything"), 0)
    with pytest.raises(ValueError, match="diverged at step"):
        fine_tune(pipe, pictures[None], PROMPT, replace(CONFIG, lr=float("inf"), steps=4), 0)
    with pytest.raises(ValueError, match="prediction_type 'sample'"):
        fine_tune(tiny_pipeline(tmp_path, "sample"), pictures[None], PROMPT, CONFIG, 0)
