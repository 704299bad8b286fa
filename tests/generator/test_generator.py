"""The generator: autoencoder, language, training that resumes bit by bit, and a folder that diffusers loads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from ard.generator import load_pipeline, save_pipeline
from ard.generator.build import build_scheduler
from ard.generator.refine import RefineConfig, reconstruction_psnr, refine_decoder
from ard.generator.text import CONTEXT_WORDS, MEDIUM_WORDS, build_tokenizer, caption
from ard.generator.train import GeneratorConfig, cell_cover, timestep_density, to_tensor, train_generator
from ard.generator.vae import PatchAutoencoder
from ard.templates import COCO_TEMPLATES, context_medium, fill
from ard.world import CLASSES

TINY = GeneratorConfig(latent_channels=8, unet_widths=(32, 32), text_width=32, text_layers=1, pool_scenes=12, two_object_share=0.3,
                       batch_size=4, total_steps=4, learning_rate=1e-3, ema_decay=0.9, prompt_dropout=0.2, log_snr=(-0.5, 2.0), object_weight=3.0,
                       compile=False, seed=0)


@pytest.fixture(scope="module")
def scenes(world):
    return np.stack([world.scene(np.random.default_rng(k)).image for k in range(48)])


def test_all_components_give_the_image_back(scenes):
    vae = PatchAutoencoder(192).fit_components(scenes)
    assert reconstruction_psnr(vae, scenes).min() > 60


def test_more_components_are_better_and_latents_have_unit_spread(scenes):
    quality = []
    for channels in (4, 16, 48):
        vae = PatchAutoencoder(channels).fit_components(scenes)
        quality.append(reconstruction_psnr(vae, scenes).mean())
        assert vae.encode(to_tensor(scenes)).latent_dist.mode().std().item() == pytest.approx(1, abs=0.15)
    assert quality == sorted(quality)


def test_a_patch_is_a_latent_cell(scenes):
    vae = PatchAutoencoder(16).fit_components(scenes)
    changed = scenes.copy()
    changed[:, 16:24, 40:48] = 255 - changed[:, 16:24, 40:48]
    difference = (vae.encode(to_tensor(scenes)).latent_dist.mode() - vae.encode(to_tensor(changed)).latent_dist.mode()).abs().sum(1)
    assert difference[:, 2, 5].min() > 0
    difference[:, 2, 5] = 0
    assert difference.max() < 1e-5


def test_refinement_starts_at_the_linear_code_and_improves_it(scenes):
    vae = PatchAutoencoder(8).fit_components(scenes)
    before = reconstruction_psnr(vae, scenes).mean()
    encoder = vae.encoder.weight.clone()
    refine_decoder(vae, scenes, RefineConfig(steps=30, batch_size=16, learning_rate=2e-3, latent_noise=0.0, seed=0))
    assert reconstruction_psnr(vae, scenes).mean() > before + 0.1
    assert torch.equal(vae.encoder.weight, encoder), "the latent space must stay"


def test_every_template_word_is_one_token(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    for template in COCO_TEMPLATES:
        for name in CLASSES:
            sentence = fill(template, name)
            words = sentence.rstrip(".").split()
            assert len(tokenizer(sentence).input_ids) == len(words) + 3, sentence  # start, full stop, end


def test_captions_speak_the_words_of_table_4():
    for number, template in enumerate(COCO_TEMPLATES):
        context, medium = context_medium(number)
        assert caption(["elephant"], context, medium) == fill(template, "elephant")
    assert len(CONTEXT_WORDS) == 5 and len(MEDIUM_WORDS) == 6


def test_timesteps_are_drawn_around_the_wanted_noise_and_none_is_left_out():
    alphas = build_scheduler().alphas_cumprod
    log_snr = (alphas / (1 - alphas)).log()
    density = timestep_density(alphas, mean=-0.5, std=1.0, even=0.0)
    assert float(density.sum()) == pytest.approx(1, abs=1e-4)
    finite = density > 0
    mean = float((density[finite] * log_snr[finite]).sum())
    spread = float((density[finite] * (log_snr[finite] - mean) ** 2).sum()) ** 0.5
    assert (mean, spread) == (pytest.approx(-0.5, abs=0.05), pytest.approx(1.0, abs=0.05))
    assert timestep_density(alphas, mean=-0.5, std=1.0, even=0.1).min() >= 0.1 / len(alphas) - 1e-9


def test_cell_cover_counts_the_pixels_of_each_cell():
    mask = np.zeros((64, 64), bool)
    mask[8:16, 16:20] = True
    cover = cell_cover(mask)
    assert cover[1, 2] == 128 and cover.sum() == 128


def test_terminal_signal_is_zero():
    assert float(build_scheduler().alphas_cumprod[-1]) < 1e-6


def test_training_killed_and_resumed_ends_in_the_same_weights(world, tmp_path):
    whole = train_generator(TINY, world, tmp_path / "whole")
    train_generator(replace(TINY), world, tmp_path / "parts", checkpoint_every=1, stop_after_s=0.0)
    parts = train_generator(TINY, world, tmp_path / "parts")
    for a, b in zip(whole.unet.state_dict().values(), parts.unet.state_dict().values()):
        assert torch.equal(a, b)


def test_the_folder_loads_as_a_stable_diffusion_pipeline(world, tmp_path):
    pipe = train_generator(TINY, world, tmp_path / "work")
    save_pipeline(pipe, tmp_path / "model")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    assert isinstance(again.vae, PatchAutoencoder)
    first, second = (p("A photo of a cat standing in a forest.", height=64, width=64, num_inference_steps=2, output_type="np",
                       generator=torch.Generator().manual_seed(0)).images for p in (load_pipeline(tmp_path / "model"), again))
    assert first.shape == (1, 64, 64, 3) and np.array_equal(first, second)


def test_an_incomplete_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        load_pipeline(tmp_path)
