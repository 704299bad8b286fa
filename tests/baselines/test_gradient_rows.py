"""TRAK and D-TRAK against plain gradients and dense formulas, on a tiny random pipeline."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ard.baselines import gradient_rows
from ard.baselines.denoising import even_probe, text_states
from ard.baselines.gradient_rows import (
    GradientConfig, GradientRanker, Model, chosen_weights, model_output, picture_gradient, projected, scores, taught_prompt)
from ard.customize import encode
from ard.records import Gallery, GalleryImage, Query, Sample

ONE = r"down_blocks\.0.*attn1\.to_q\.weight$"  # 256 weights
CONFIG = GradientConfig(weights=ONE, times=2, projection=256, block=256, ridge=1e-4)
SAMPLE = Sample("s", "q.png", (8.0, 8, 24, 24), "A photo of a <v1> cat on the beach.", "cat", "c", "x.png", (0.0, 0, 8, 8), 0,
                "beach", "photo", "test", "i", "d", "g")


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)


def gallery_of(pictures):
    return Gallery([GalleryImage(str(i), f"x{i}", (), 32, 32) for i in range(len(pictures))], lambda file: pictures[int(file)])


def model_of(pipe, **changes):
    return replace(Model(lambda sample: nullcontext(pipe)), **changes)


def plain_gradient(pipe, picture, name):
    """Through the module's own parameters, in words of its own: v-prediction at two times, mean over all numbers."""
    probe, latent = even_probe(pipe, 2, 0), encode(pipe, picture[None]).expand(2, -1, -1, -1)
    [weight] = [w for n, w in pipe.unet.named_parameters() if n.startswith("down_blocks.0") and n.endswith("attn1.to_q.weight")]
    alpha = pipe.scheduler.alphas_cumprod[probe.times].view(-1, 1, 1, 1)
    weight.requires_grad_(True)
    try:
        noisy = alpha.sqrt() * latent + (1 - alpha).sqrt() * probe.noise
        found = pipe.unet(noisy, probe.times, text_states(pipe, "").expand(2, -1, -1)).sample
        wanted = alpha.sqrt() * probe.noise - (1 - alpha).sqrt() * latent
        value = ((found - wanted) ** 2).mean() if name == "TRAK" else (found**2).mean()
        return torch.autograd.grad(value, weight)[0].flatten()
    finally:
        weight.requires_grad_(False)


def gradient(pipe, picture, name, share=torch.ones(8, 8)):
    weights, probe = chosen_weights(pipe.unet, ONE), even_probe(pipe, 2, 0)
    return picture_gradient(pipe, weights, encode(pipe, picture[None]), text_states(pipe, ""), probe, share, name)


@pytest.mark.parametrize("name", ["TRAK", "D-TRAK"])
def test_projected_inner_products_are_those_of_plain_gradients(pipe, pictures, name):
    plain = torch.stack([plain_gradient(pipe, picture, name) for picture in pictures])
    ours = torch.stack([gradient(pipe, picture, name) for picture in pictures])
    assert torch.allclose(ours, plain, rtol=1e-3, atol=1e-5 * float(plain.abs().max()))
    short = projected(ours, 20_000, 20_000, seed=1)
    want, scale = plain @ plain.T, float((plain**2).sum(1).mean())
    assert float((short @ short.T - want).abs().max()) < 0.05 * scale


def test_projection_is_the_same_in_blocks_of_any_call():
    gradients = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    together = projected(gradients, 16, 16, seed=0)
    assert torch.allclose(together[:1], projected(gradients[:1], 16, 16, seed=0), atol=1e-5)
    assert not torch.allclose(together, projected(gradients, 16, 16, seed=1))
    assert projected(gradients, 16, 4, seed=0).shape == (3, 16)


def test_output_functions_by_hand():
    prediction = torch.tensor([1.0, 2, 3, 4]).view(1, 1, 2, 2)
    target = torch.tensor([0.0, 2, 5, 0]).view(1, 1, 2, 2)
    whole, first = torch.ones(2, 2), torch.tensor([[1.0, 0], [0, 0]])
    assert float(model_output("D-TRAK", prediction, target, whole)) == pytest.approx((1 + 4 + 9 + 16) / 4)
    assert float(model_output("D-TRAK", prediction, target, first)) == 1
    assert float(model_output("TRAK", prediction, target, whole)) == pytest.approx((1 + 0 + 4 + 16) / 4)
    assert float(model_output("TRAK", prediction, target, 1 - first)) == pytest.approx((0 + 4 + 16) / 3)


@pytest.mark.parametrize("name", ["TRAK", "D-TRAK"])
def test_a_full_mask_is_the_plain_mean_and_cells_outside_do_not_count(name):
    rng = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(2, 4, 8, 8, generator=rng) for _ in range(2))
    against = target if name == "TRAK" else torch.zeros_like(target)
    plain = torch.nn.functional.mse_loss(prediction, against)
    assert torch.allclose(model_output(name, prediction, target, torch.ones(8, 8)), plain)
    share = torch.zeros(8, 8)
    share[2:5, 3:6] = 1
    other = torch.where(share.bool(), prediction, torch.randn(2, 4, 8, 8, generator=rng))
    assert torch.equal(model_output(name, prediction, target, share), model_output(name, other, target, share))
    inside = torch.where(share.bool(), other + 1, other)
    assert not torch.allclose(model_output(name, prediction, target, share), model_output(name, inside, target, share))


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="mask is empty"):
        model_output("TRAK", torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(2, 2))


def test_scores_are_those_of_the_dense_formula_up_to_a_factor():
    rng = np.random.default_rng(0)
    phi, asked = rng.normal(size=(5, 12)), rng.normal(size=12)
    ridge = 0.1 * np.trace(phi.T @ phi) / 5
    want = phi @ np.linalg.inv(phi.T @ phi + ridge * np.eye(12)) @ asked
    found = scores(torch.tensor(phi).float(), torch.tensor(asked).float(), 0.1).numpy()
    assert np.allclose(found / np.abs(found).max(), want / np.abs(want).max(), atol=1e-4)
    assert not np.allclose(want / np.abs(want).max(), phi @ asked / np.abs(phi @ asked).max(), atol=1e-2)


@pytest.mark.parametrize("name", ["TRAK", "D-TRAK"])
def test_the_query_itself_scores_highest_and_no_box_is_given(pipe, pictures, name):
    ranker = GradientRanker(model_of(pipe), name, CONFIG)
    for i, picture in enumerate(pictures):
        found = ranker.rank(Query(SAMPLE, picture), gallery_of(pictures))
        assert max(found, key=lambda a: a.score).image_id == f"x{i}" and all(a.box is None for a in found)


def test_a_region_asks_for_itself_and_the_whole_picture_is_a_region(pipe, pictures):
    gallery, whole = gallery_of(pictures), replace(SAMPLE, query_box=(0.0, 0, 32, 32))
    plain = GradientRanker(model_of(pipe), "TRAK", CONFIG).rank(Query(SAMPLE, pictures[0]), gallery)
    ranker = GradientRanker(model_of(pipe), "TRAK", CONFIG, region=True)
    assert [a.score for a in ranker.rank(Query(whole, pictures[0]), gallery)] == [a.score for a in plain]
    assert [a.score for a in ranker.rank(Query(SAMPLE, pictures[0]), gallery)] != [a.score for a in plain]


def test_the_gallery_is_asked_once_for_each_model(pipe, pictures, monkeypatch):
    calls = []
    monkeypatch.setattr(gradient_rows, "picture_gradient", lambda *a: calls.append(1) or picture_gradient(*a))
    ranker = GradientRanker(model_of(pipe, name=lambda sample: sample.concept_id), "TRAK", CONFIG)
    counts = []
    for concept in ("a", "a", "b", "a"):
        ranker.rank(Query(replace(SAMPLE, concept_id=concept), pictures[0]), gallery_of(pictures))
        counts.append(len(calls))
    assert counts == [5, 6, 11, 16]


def test_the_prompt_reaches_the_network_and_the_model_is_left_alone(pipe, pictures):
    before, states = pipe.unet.attn_processors, {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    wanted = {n: p.requires_grad for n, p in pipe.unet.named_parameters()}
    rankings = [GradientRanker(model_of(pipe, prompt=lambda sample: prompt), "TRAK", CONFIG).rank(Query(SAMPLE, pictures[0]),
                gallery_of(pictures)) for prompt in ("", "a photo of a cat")]
    assert [a.score for a in rankings[0]] != [a.score for a in rankings[1]]
    assert pipe.unet.attn_processors == before and all(torch.equal(v, states[k]) for k, v in pipe.unet.state_dict().items())
    assert all(p.grad is None and p.requires_grad == wanted[n] for n, p in pipe.unet.named_parameters())


def test_the_taught_prompt_has_the_new_word_and_the_class():
    assert taught_prompt(SAMPLE) == "A photo of a <v1> cat."
    assert taught_prompt(replace(SAMPLE, prompt="A <v1> <v2> cat sleeps.")) == "A photo of a <v1> <v2> cat."
    with pytest.raises(ValueError, match="no word like <v1> before 'cat'"):
        taught_prompt(replace(SAMPLE, prompt="A photo of a cat."))


def test_rows_read_their_settings_and_those_of_g_i_ask_the_customised_weights(pipe, pictures):
    [weight] = chosen_weights(pipe.unet, ONE).values()
    worn, kept = [], weight.detach().clone()

    @contextmanager
    def customised(sample):
        worn.append(sample.concept_id)
        weight.data.mul_(3)
        yield pipe
        weight.data.copy_(kept)

    settings = {"weights": ONE, "times": 2, "customised_times": 1, "projection": 64, "block": 64}
    kit = SimpleNamespace(generator=pipe, customised=customised, settings={"gradient_rows": settings})
    rows = {entry.name: entry.build(kit) for entry in gradient_rows.ENTRIES}
    found = {name: [a.score for a in row.rank(Query(SAMPLE, pictures[0]), gallery_of(pictures))] for name, row in rows.items()}
    assert len({tuple(scores) for scores in found.values()}) == len(rows) == 6 and worn == ["c", "c"]
    assert torch.equal(weight, kept) and rows["TRAK"].config.times == 2 and rows["TRAK (G_i)"].config.times == 1
    assert rows["D-TRAK (G_i)"].model.prompt(SAMPLE) == "A photo of a <v1> cat." and rows["TRAK (G_i)"].model.prompt(SAMPLE) == ""
    kit.settings["gradient_rows"] = {"ridges": 1}
    with pytest.raises(Exception, match="ridges"):
        gradient_rows.ENTRIES[0].build(kit)


def test_bad_settings_are_named(pipe):
    with pytest.raises(ValueError, match="expected one of TRAK, D-TRAK, found 'TRACK'"):
        GradientRanker(model_of(pipe), "TRACK", CONFIG)
    with pytest.raises(ValueError, match="no weight of this UNet has such a name"):
        chosen_weights(pipe.unet, "attn9")
