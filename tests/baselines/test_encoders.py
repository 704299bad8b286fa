"""Encoders against what they should compute, on tiny random models of the same architectures; nothing is downloaded."""

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ard.baselines import encoders
from ard.baselines.encoders import EncoderError, hub_encoder, squares, unet_encoder, vae_encoder, vit_encoder
from ard.baselines.self_supervised import ViTConfig, build_vit
from ard.customize import encode as latents


def pictures(count=3, height=32, width=32):
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def normal(images, size, mean, deviation):
    pixels = torch.from_numpy(squares(images, size)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(deviation).view(1, 3, 1, 1)


def test_squares_stretch_or_crop():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, :10] = 255  # the left third
    assert squares([wide], 12).shape == squares([wide], 12, centre=True).shape == (1, 12, 12, 3)
    assert squares([wide], 12)[0, :, 0].min() == 255 and squares([wide], 12, centre=True).max() < 128
    same = pictures(1, 8, 8)
    assert np.array_equal(squares(same, 8)[0], same[0])


def test_vae_features_are_means_of_latents(pipe):
    images = pictures()
    direct = latents(pipe, np.stack(images))
    assert direct.shape == (3, 4, 8, 8)
    assert np.allclose(vae_encoder(pipe, grid=8)(images), direct.flatten(1).numpy(), atol=1e-6)
    halves = direct.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5))
    assert np.allclose(vae_encoder(pipe, grid=2)(images), halves.flatten(1).numpy(), atol=1e-5)


def test_unet_features_are_unit_means_of_blocks(pipe):
    features = unet_encoder(pipe, timestep=100)(pictures())
    assert features.shape == (3, 32 + 32 + 16) and features.dtype == np.float32
    for part in np.split(features, (32, 64), axis=1):
        assert np.allclose(np.linalg.norm(part, axis=1), 1, atol=1e-5)
    seen = []
    hook = pipe.unet.up_blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    unet_encoder(pipe, timestep=100)(pictures())
    hook.remove()
    assert np.allclose(features[:, 64:], F.normalize(seen[0].mean((2, 3)), dim=1).numpy(), atol=1e-6)
    assert not any(m._forward_hooks for m in pipe.unet.modules()), "no hook of ours is left"


def test_unet_features_depend_on_noise_and_time_but_not_on_company(pipe):
    encode, images = unet_encoder(pipe, timestep=100, batch=2), pictures()
    together = encode(images)
    assert np.allclose(together, np.concatenate([encode([image]) for image in images]), atol=1e-5)
    assert not np.allclose(together, unet_encoder(pipe, timestep=500)(images), atol=1e-3)
    assert not np.allclose(together, unet_encoder(pipe, timestep=100, seed=1)(images), atol=1e-4)


def test_a_failing_unet_leaves_no_hook(pipe):
    with pytest.raises(Exception):
        encoders.block_means(pipe.unet, torch.zeros(1, 3, 8, 8), torch.tensor([1]), torch.zeros(1, 16, 16))
    assert not any(m._forward_hooks for m in pipe.unet.modules())


@pytest.mark.parametrize("make", [lambda p: vae_encoder(p), lambda p: unet_encoder(p, 10),
                                  lambda p: vit_encoder(build_vit(ViTConfig(size=16, width=12, depth=1, heads=2)).eval())])
def test_any_sizes_are_encoded(pipe, make):
    encode = make(pipe)
    mixed = encode([pictures(1, 5, 40)[0], pictures(1, 90, 33)[0], pictures(1, 1, 1)[0]])
    assert len(mixed) == 3 and mixed.ndim == 2 and np.isfinite(mixed).all()


def test_clip_by_folder(tmp_path):
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=24, patch_size=8,
        projection_dim=6)).eval()
    model.save_pretrained(tmp_path)
    found = hub_encoder(tmp_path)(pictures())
    with torch.no_grad():
        direct = model(normal(pictures(), 24, *encoders.CLIP)).image_embeds
    assert found.shape == (3, 6) and np.allclose(found, direct.numpy(), atol=1e-5)


def test_timm_by_folder(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, num_classes=7).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    found, data = hub_encoder(tmp_path)(pictures()), model.pretrained_cfg
    with torch.no_grad():
        x = normal(pictures(), data["input_size"][-1], data["mean"], data["std"])
        direct = model.forward_head(model.forward_features(x), pre_logits=True)
    assert found.shape == (3, model.num_features) and np.allclose(found, direct.numpy(), atol=1e-5)


def test_moco_v3_by_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "MOCO_V3", {"vit_base": "test_vit"})
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0).eval()
    state = {f"module.base_encoder.{k}": v for k, v in model.state_dict().items()}
    state |= {"module.base_encoder.head.0.weight": torch.zeros(2), "module.momentum_encoder.x": torch.zeros(2)}
    torch.save({"epoch": 300, "arch": "vit_base", "state_dict": state}, tmp_path / "vit-b.pth.tar")
    with torch.no_grad():
        x = normal(pictures(), model.pretrained_cfg["input_size"][-1], model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
        direct = model(x)
    assert np.allclose(hub_encoder(tmp_path / "vit-b.pth.tar")(pictures()), direct.numpy(), atol=1e-5)
    torch.save({"arch": "resnet50", "state_dict": {}}, tmp_path / "other.pth.tar")
    with pytest.raises(EncoderError, match="other.pth.tar: expected a checkpoint of MoCo v3"):
        hub_encoder(tmp_path / "other.pth.tar")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_by_file(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 4, 4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    torch.jit.trace(model, torch.zeros(1, 3, 16, 16)).save(str(tmp_path / "sscd.torchscript.pt"))
    found = hub_encoder(tmp_path / "sscd.torchscript.pt", size=16)(pictures())
    with torch.no_grad():
        assert np.allclose(found, model(normal(pictures(), 16, *encoders.IMAGENET)).numpy(), atol=1e-5)


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(EncoderError, match="nothing.pt: no such file"):
        hub_encoder(tmp_path / "nothing.pt")
    with pytest.raises(EncoderError, match="no config.json to read"):
        hub_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(EncoderError, match="expected timm's config.json .* found the keys"):
        hub_encoder(tmp_path)
