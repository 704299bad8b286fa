"""Frozen encoders of pictures for AbC and its class-filtered kin: EfficientNet-lite0, the generator's own features, the
self-supervised ViT, and published models by hub name or path (FACTS 5).

Each function returns an `Encode`: n pictures (H, W, 3) uint8 of any sizes -> (n, d) float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection
from transformers.utils import cached_file

from ard.backbones import efficientnet_lite0, freeze
from ard.baselines.cosine import Encode
from ard.baselines.denoising import text_states
from ard.customize import encode as latents

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of RGB in 0..1
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SSCD_SIZE = 288  # px a side, as its authors recommend
MOCO_V3 = {"vit_base": "vit_base_patch16_224"}  # architecture that an official checkpoint names -> timm's name


class EncoderError(ValueError):
    """An encoder that cannot be opened; the message names it and says what was expected."""


def squares(images: Sequence[np.ndarray], size: int, centre: bool = False) -> np.ndarray:
    """(n, size, size, 3) uint8: resized to a square whatever the shape, or (`centre`) to the short side and then cropped."""
    fitted = []
    for image in images:
        picture = Image.fromarray(np.ascontiguousarray(image))
        fitted.append(ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC) if centre else
                      picture.resize((size, size), Image.Resampling.BICUBIC))
    return np.stack([np.asarray(picture) for picture in fitted])


def batched(features: Callable[[Tensor], Tensor], size: int, normal=IMAGENET, centre: bool = False, batch: int = 64,
            device: str = "cpu") -> Encode:
    """An Encode out of `features`: pictures (b, 3, size, size), normalised, on a device -> (b, d)."""
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in normal)

    @torch.no_grad()
    def encode(images: Sequence[np.ndarray]) -> np.ndarray:
        parts = []
        for i in range(0, len(images), batch):
            pixels = torch.from_numpy(squares(images[i:i + batch], size, centre)).permute(0, 3, 1, 2)
            parts.append(features(((pixels.float() / 255 - mean) / deviation).to(device)).float().cpu())
        return torch.cat(parts).numpy()

    return encode


def efficientnet_encoder() -> Encode:
    """Pooled 1280-d features of the packaged EfficientNet-lite0; images are resized to 96 x 96 (px)."""
    model = efficientnet_lite0()
    return batched(lambda pixels: model.forward_features(pixels).mean((2, 3)), 96, [model.default_cfg[k] for k in ("mean", "std")])


# ---- the generator's own ---------------------------------------------------------------------------------------------
def picture_size(pipe) -> int:
    """Side in pixels of the pictures a pipeline draws."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def vae_encoder(pipe, grid: int = 4, batch: int = 64) -> Encode:
    """Latents of a StableDiffusionPipeline, averaged over a `grid` x `grid` of cells: d = channels x grid^2."""

    @torch.no_grad()
    def encode(images: Sequence[np.ndarray]) -> np.ndarray:
        pixels = squares(images, picture_size(pipe))
        parts = [F.adaptive_avg_pool2d(latents(pipe, pixels[i:i + batch]), grid).flatten(1)
                 for i in range(0, len(pixels), batch)]
        return torch.cat(parts).float().cpu().numpy()

    return encode


def unet_encoder(pipe, timestep: int, seed: int = 0, batch: int = 64) -> Encode:
    """What a StableDiffusionPipeline's UNet computes of a picture under noise, with an empty prompt: the mean over places of
    the middle block's and of each up block's output, each brought to length 1, side by side.

    timestep: how much noise, 0 to the scheduler's last; the noise is the same for all pictures.
    """
    shape = (1, pipe.unet.config.in_channels, *[pipe.unet.config.sample_size] * 2)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    time, empty = torch.tensor([timestep]), text_states(pipe, "")

    @torch.no_grad()
    def encode(images: Sequence[np.ndarray]) -> np.ndarray:
        pixels, parts = squares(images, picture_size(pipe)), []
        for i in range(0, len(pixels), batch):
            clean = latents(pipe, pixels[i:i + batch])
            noisy = pipe.scheduler.add_noise(clean, noise.to(clean), time)
            parts.append(block_means(pipe.unet, noisy, time.to(clean.device), empty.expand(len(clean), -1, -1)))
        return torch.cat(parts).float().cpu().numpy()

    return encode


def block_means(unet, noisy: Tensor, time: Tensor, text: Tensor) -> Tensor:
    """(n, d): unit means of the outputs of the middle and the up blocks, in the order of the network."""
    found: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda module, inputs, output: found.append(output))
             for block in (unet.mid_block, *unet.up_blocks)]
    try:
        unet(noisy, time, text)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([F.normalize(output.mean((2, 3)), dim=1) for output in found], 1)


def vit_encoder(model: VisionTransformer) -> Encode:
    """The ViT of `ard.baselines.self_supervised`."""
    return batched(model, model.patch_embed.img_size[0], ((0.5,) * 3,) * 2)


# ---- published models ------------------------------------------------------------------------------------------------
def hub_encoder(name_or_path: str | Path, size: int = SSCD_SIZE, centre: bool = False, device: str = "cpu") -> Encode:
    """A published encoder, by what its files say it is:

    - CLIP in transformers' form: "openai/clip-vit-base-patch32", or a folder. Features are the projected ones (512-d).
    - timm's form: "timm/vit_base_patch16_224.dino" (DINO), "timm/vit_base_patch16_384.augreg_in21k_ft_in1k" (supervised), or
      a folder; the pooled features before any classifier.
    - MoCo v3's official checkpoint, a file `*.pth.tar` (licence CC-BY-NC 4.0); no hub has it in timm's form.
    - TorchScript, a file `*.pt`: SSCD's `sscd_disc_mixup.torchscript.pt` (code and weights MIT; size 288) or a traced ALADIN
      (its authors give no weights away). TorchScript is a program: open only files whose source you trust.

    size: px a side, for TorchScript, which does not say it. centre: crop to the centre square, as published for whole
    pictures; crops of regions lose less when they are resized whole.
    """
    name = str(name_or_path)
    if name.endswith((".pt", ".pth.tar")) and not Path(name).is_file():
        raise EncoderError(f"{name}: no such file; expected a TorchScript file *.pt or MoCo v3's *.pth.tar")
    if name.endswith(".pth.tar"):
        return _timm_encode(_moco_v3(name), centre, device)
    if name.endswith(".pt"):
        return batched(torch.jit.load(name, map_location=device).eval(), size, IMAGENET, centre, device=device)
    config = _config(name)
    if "architecture" in config:
        where = "local-dir" if Path(name).is_dir() else "hf-hub"
        return _timm_encode(timm.create_model(f"{where}:{name}", pretrained=True, num_classes=0), centre, device)
    if str(config.get("model_type", "")).startswith("clip"):
        model = freeze(CLIPVisionModelWithProjection.from_pretrained(name)).to(device)
        return batched(lambda pixels: model(pixels).image_embeds, model.config.image_size, CLIP, centre, device=device)
    raise EncoderError(f"{name}: expected timm's config.json (a key 'architecture') or CLIP's (model_type 'clip'), "
                       f"found the keys {sorted(config)[:8]}")


def _config(name: str) -> dict:
    """config.json of a folder or a hub name."""
    try:
        file = Path(name, "config.json") if Path(name).is_dir() else Path(cached_file(name, "config.json"))
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{name}: no config.json to read ({str(error).splitlines()[0]})") from error


def _timm_encode(model: nn.Module, centre: bool, device: str) -> Encode:
    data = timm.data.resolve_model_data_config(model)
    return batched(freeze(model).to(device), data["input_size"][-1], (data["mean"], data["std"]), centre, device=device)


def _moco_v3(path: str) -> nn.Module:
    """timm's ViT with the student's encoder of an official checkpoint; its heads are left out."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(saved, dict) or saved.get("arch") not in MOCO_V3 or "state_dict" not in saved:
        raise EncoderError(f"{path}: expected a checkpoint of MoCo v3 with 'state_dict' and 'arch' of {sorted(MOCO_V3)}")
    model, start = timm.create_model(MOCO_V3[saved["arch"]], num_classes=0), "module.base_encoder."
    model.load_state_dict({key.removeprefix(start): value for key, value in saved["state_dict"].items()
                           if key.startswith(start) and not key.startswith(f"{start}head.")})
    return model
