"""AbU and the denoising losses it reads, on a tiny pipeline: what changes, what comes back, and what is measured."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from ard.baselines.abu import ENTRIES, AbU, AbUConfig, damped, diagonal_fisher, forgotten, key_value_weights
from ard.baselines.denoising import denoising_losses, even_probe, losses_at, text_states
from ard.config import ConfigError, from_dict
from ard.customize import encode, item_seed
from ard.records import Gallery, GalleryImage, Query, Sample
from tests.tiny_pipeline import tiny_pipeline

CONFIG = AbUConfig(learning_rate=1e-3, pictures=1, draws=4, times=3)
BOX = (4.0, 4.0, 20.0, 20.0)


@pytest.fixture
def pipe(tmp_path):
    made = tiny_pipeline(tmp_path)
    for part in (made.unet, made.vae, made.text_encoder):
        part.requires_grad_(False)
    return made


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), np.uint8)


def flat_fisher(pipe, value=1e-3):
    return {n: torch.full(w.shape, value, dtype=torch.float64) for n, w in key_value_weights(pipe.unet).items()}


def snapshot(pipe):
    return {f"{part}.{n}": w.detach().clone() for part in ("unet", "vae", "text_encoder")
            for n, w in getattr(pipe, part).state_dict().items()}


def same_bytes(a, b):
    return a.keys() == b.keys() and all(a[n].numpy().tobytes() == b[n].numpy().tobytes() for n in a)


def sample(number=0):
    return Sample(f"s{number}", "q.png", BOX, "A photo of a <v1> cat standing in a forest.", "cat", "c0", f"{number}.png",
                  BOX, 0, "forest", "photo", "val", "i", "d", "g")


def ask(pipe, pictures, config=CONFIG, image=None, gallery=None):
    method = AbU(lambda s: nullcontext(pipe), flat_fisher(pipe), config, customised=False)
    images = gallery or [GalleryImage(f"{i}.png", str(i), (), 32, 32) for i in range(len(pictures))]
    answers = method.rank(Query(sample(), pictures[0] if image is None else image),
                          Gallery(images, lambda file: pictures[int(file.split(".")[0])]))
    return {a.image_id: a.score for a in answers}


def test_a_probe_is_even_fixed_and_checked(pipe):
    probe = even_probe(pipe, 10, seed=3)
    assert probe.times.tolist() == list(range(50, 1000, 100)) and probe.noise.shape == (10, 4, 8, 8)
    assert torch.equal(probe.noise, even_probe(pipe, 10, 3).noise) and not torch.equal(probe.noise, even_probe(pipe, 10, 4).noise)
    with pytest.raises(ValueError, match="expected 1 to 1000.*found 0"):
        even_probe(pipe, 0, 0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_losses_are_those_of_each_picture_at_each_time(tmp_path, pictures, kind):
    pipe = tiny_pipeline(tmp_path, kind)
    latents, states, probe = encode(pipe, pictures[:2]), text_states(pipe, "a photo of a cat ."), even_probe(pipe, 3, 0)
    with torch.no_grad():
        found = denoising_losses(pipe, latents, states, probe, batch=4)
        for i in range(2):
            for t in range(3):
                noise, time, a = probe.noise[t], probe.times[t], pipe.scheduler.alphas_cumprod[probe.times[t]]
                noisy = a.sqrt() * latents[i] + (1 - a).sqrt() * noise
                wanted = noise if kind == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * latents[i]
                error = pipe.unet(noisy[None], time, states).sample[0] - wanted
                assert found[i, t].item() == pytest.approx(error.square().mean().item(), rel=1e-4)


def test_losses_refuse_an_unknown_prediction(pipe, pictures):
    pipe.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="'sample': expected 'epsilon' or 'v_prediction'"):
        losses_at(pipe, encode(pipe, pictures[:1]), text_states(pipe, ""), torch.tensor([5]), torch.zeros(1, 4, 8, 8))


def test_query_and_gallery_latents_carry_the_scaling_factor(pipe, pictures, monkeypatch):
    seen = []

    def spy(pipe, latents, states, probe, batch=80):
        seen.append(latents.clone())
        return denoising_losses(pipe, latents, states, probe, batch)

    monkeypatch.setattr("ard.baselines.abu.denoising_losses", spy)
    ask(pipe, pictures)
    pipe.vae.register_to_config(scaling_factor=3 * pipe.vae.config.scaling_factor)
    ask(pipe, pictures)
    assert [len(x) for x in seen[:3]] == [10, 1, 10]  # gallery in both views, query, gallery again
    for plain, scaled in zip(seen[:3], seen[3:], strict=True):
        assert torch.allclose(3 * plain, scaled, rtol=1e-5)


def test_before_and_after_share_times_and_noise(pipe, pictures, monkeypatch):
    seen = []

    def spy(pipe, latents, states, probe, batch=80):
        if len(latents) > 1:
            seen.append(probe)
        return denoising_losses(pipe, latents, states, probe, batch)

    monkeypatch.setattr("ard.baselines.abu.denoising_losses", spy)
    ask(pipe, pictures)
    before, after = seen
    assert torch.equal(before.times, after.times) and torch.equal(before.noise, after.noise)


def test_ascent_raises_the_loss_of_the_query(pipe, pictures):
    own, states, probe = encode(pipe, pictures[:1]), text_states(pipe, "a photo of a cat ."), even_probe(pipe, 8, 9)
    with torch.no_grad():
        before = denoising_losses(pipe, own, states, probe).mean()
    rises = []
    for steps in (1, 4):
        with forgotten(pipe, own, states, flat_fisher(pipe), replace(CONFIG, steps=steps)), torch.no_grad():
            rises.append((denoising_losses(pipe, own, states, probe).mean() - before).item())
    assert 0 < rises[0] < rises[1]


def test_a_step_is_rate_times_gradient_over_n_f(pipe, pictures):
    own, states = encode(pipe, pictures[:1]), text_states(pipe, "a photo of a cat .")
    names, steps = list(key_value_weights(pipe.unet)), []
    start = snapshot(pipe)
    for fisher, rate, n in ((1e-3, 1e-3, 1), (2e-3, 2e-3, 1), (1e-3, 1e-2, 10)):
        with forgotten(pipe, own, states, flat_fisher(pipe, fisher), replace(CONFIG, learning_rate=rate, pictures=n)):
            steps.append({n: pipe.unet.get_parameter(n).detach() - start[f"unet.{n}"] for n in names})
    for other in steps[1:]:
        for n in names:
            assert torch.allclose(steps[0][n], other[n], atol=1e-6) and steps[0][n].abs().max() > 0


def test_rate_0_has_no_influence_at_all(pipe, pictures):
    scores = ask(pipe, pictures, replace(CONFIG, learning_rate=0.0))
    assert set(scores.values()) == {0.0} and set(ask(pipe, pictures).values()) != {0.0}


def test_only_keys_and_values_change_and_all_come_back(pipe, pictures):
    start = snapshot(pipe)
    with forgotten(pipe, encode(pipe, pictures[:1]), text_states(pipe, ""), flat_fisher(pipe), CONFIG):
        changed = {n for n, w in snapshot(pipe).items() if not torch.equal(w, start[n])}
    assert changed == {f"unet.{n}" for n in key_value_weights(pipe.unet)}
    assert all(".attn2.to_k." in n or ".attn2.to_v." in n for n in changed)
    ask(pipe, pictures)
    assert same_bytes(start, snapshot(pipe)) and not any(p.requires_grad for p in pipe.unet.parameters())


@pytest.mark.parametrize("failing_call", [2, 3])  # in the ascent, and in the losses after it
def test_everything_comes_back_after_an_error(pipe, pictures, monkeypatch, failing_call):
    calls = []

    def fails(*args, **options):
        calls.append(1)
        if len(calls) == failing_call:
            raise RuntimeError("out of memory")
        return denoising_losses(*args, **options)

    monkeypatch.setattr("ard.baselines.abu.denoising_losses", fails)
    start = snapshot(pipe)
    with pytest.raises(RuntimeError, match="out of memory"):
        ask(pipe, pictures)
    assert same_bytes(start, snapshot(pipe)) and not any(p.requires_grad for p in pipe.unet.parameters())


def test_fisher_is_the_mean_of_squared_gradients_of_single_pictures(pipe, pictures):
    latents = encode(pipe, pictures[:2])
    states = torch.cat([text_states(pipe, p) for p in ("a photo of a cat .", "a dog on the beach .")])
    found = diagonal_fisher(pipe, latents, states, passes=2, seed=5)
    generator, wanted = torch.Generator().manual_seed(5), {n: 0 for n in found}
    for _ in range(2):
        times, noise = torch.randint(1000, (2,), generator=generator), torch.randn(latents.shape, generator=generator)
        for i in range(2):
            pipe.unet.requires_grad_(True).zero_grad()
            noisy = pipe.scheduler.add_noise(latents[i], noise[i], times[i])
            target = pipe.scheduler.get_velocity(latents[i], noise[i], times[i])
            (pipe.unet(noisy[None], times[i], states[i : i + 1]).sample[0] - target).square().mean().backward()
            wanted = {n: wanted[n] + pipe.unet.get_parameter(n).grad.double() ** 2 / 4 for n in wanted}
    assert found and all(f.dtype == torch.float64 and f.max() > 0 for f in found.values())
    for n, f in found.items():
        assert torch.allclose(f, wanted[n], rtol=1e-3, atol=1e-14)


def test_damping_adds_a_share_of_the_mean():
    fisher = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([[8.0, 0.0]])}
    assert damped(fisher, 0.5)["a"].tolist() == [2.5, 4.5] and damped(fisher, 0)["b"].tolist() == [[8.0, 0.0]]


def test_forgetting_a_picture_hurts_it_more_than_forgetting_another_does(pipe, pictures):
    # to first order the rise of x's loss on forgetting q is g_x . g_q / F, so r_qq + r_xx - r_qx - r_xq = |g_q - g_x|^2 / F > 0;
    # r_qq > r_qx alone is no law: a random network is more easily disturbed on some pictures than on others
    pipe.vae.register_to_config(scaling_factor=15.0)  # latents of deviation 1, or the pictures would hardly differ
    latents, states, rises = encode(pipe, pictures), text_states(pipe, "a photo of a cat ."), []
    probe = even_probe(pipe, CONFIG.draws, item_seed("forget", CONFIG.seed, 0))  # what the ascent sees
    with torch.no_grad():
        before = denoising_losses(pipe, latents, states, probe).double().mean(1)
        for own in latents.split(1):
            with forgotten(pipe, own, states, flat_fisher(pipe), CONFIG):
                rises.append(denoising_losses(pipe, latents, states, probe).double().mean(1) - before)
    rises = torch.stack(rises)
    gap = rises.diag()[:, None] + rises.diag() - rises - rises.T
    assert all(gap[i, j] > 0 for i in range(5) for j in range(5) if i != j)


def test_a_mirrored_picture_has_the_influence_of_the_picture(pipe, pictures):
    one, other = ask(pipe, pictures), ask(pipe, pictures[:, :, ::-1].copy(), image=pictures[0])
    assert one == pytest.approx(other, abs=1e-5)


def test_an_answer_does_not_depend_on_the_order_of_the_gallery(pipe, pictures):
    images = [GalleryImage(f"{i}.png", str(i), (), 32, 32) for i in range(5)]
    one, other = ask(pipe, pictures, gallery=images), ask(pipe, pictures, gallery=images[::-1])
    assert one == pytest.approx(other, abs=1e-5)


def test_losses_before_are_measured_once_for_a_model_and_prompt(pipe, pictures, monkeypatch):
    calls = []

    def spy(pipe, latents, states, probe, batch=80):
        calls.append(len(latents))
        return denoising_losses(pipe, latents, states, probe, batch)

    @contextmanager
    def wear(s):
        yield pipe

    monkeypatch.setattr("ard.baselines.abu.denoising_losses", spy)
    method = AbU(wear, flat_fisher(pipe), CONFIG, customised=True)
    gallery = Gallery([GalleryImage(f"{i}.png", str(i), ()) for i in range(2)], lambda file: pictures[int(file[0])])
    for concept in ("c0", "c0", "c1"):
        method.rank(Query(replace(sample(), concept_id=concept), pictures[0]), gallery)
    assert calls == [4, 1, 4, 1, 4, 4, 1, 4]


def test_rows_and_settings():
    assert [e.name for e in ENTRIES] == ["AbU (base G)", "AbU (G_i)", "AbU (G_i), region"] and all(e.per_query for e in ENTRIES)
    assert ["customised" in e.given for e in ENTRIES] == [False, True, True]
    with pytest.raises(ConfigError, match="did you mean 'damping'"):
        from_dict(AbUConfig, {"dampin": 1.0})


def test_a_unet_without_cross_attention_is_refused():
    with pytest.raises(ValueError, match="nothing to unlearn in"):
        key_value_weights(torch.nn.Linear(2, 2))
