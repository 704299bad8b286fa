"""Builds and loads the generator: a `diffusers.StableDiffusionPipeline` folder at small width (DESIGN 4)."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ard.files import atomic_write_json, read_json
from ard.generator.text import MAX_LENGTH
from ard.generator.vae import PatchAutoencoder


def build_unet(latent_channels: int, widths: tuple[int, int], text_width: int) -> UNet2DConditionModel:
    """A two-level denoiser for 8x8 latents: attention at 8x8 and in the middle, plain convolutions at 4x4."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=[max(1, w // 64) for w in widths],
    )


def build_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), max_position_embeddings=MAX_LENGTH, projection_dim=width,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal signal: small latents keep their layout visible at any lesser noise."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )


def assemble(vae, text_encoder, tokenizer, unet) -> StableDiffusionPipeline:
    """A pipeline without safety checker, in evaluation mode, with no progress bar."""
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )
    return quiet(pipe)


def quiet(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.requires_grad_(False).eval()
    return pipe


def load_pipeline(path: str | Path, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Load a generator from a folder or hub name. Raises FileNotFoundError when a local folder is incomplete."""
    if Path(path).is_dir() and not (Path(path) / "model_index.json").exists():
        raise FileNotFoundError(f"{path}/model_index.json is missing: restore it with git or run the pretraining stage")
    pipe = StableDiffusionPipeline.from_pretrained(path, dtype=dtype, safety_checker=None)
    return quiet(pipe)


def save_pipeline(pipe: StableDiffusionPipeline, path: str | Path) -> None:
    """Save as float16 safetensors; the pipeline in memory keeps its precision."""
    parts = (pipe.vae, pipe.text_encoder, pipe.unet)
    kept = [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]
    for part in parts:
        part.half()
    pipe.save_pretrained(path)
    # without a type, transformers would open the text encoder alone in float16; where a part came from is nobody's business
    for part, changes in (("text_encoder", {"dtype": "float32"}), ("vae", {}), ("unet", {})):
        config = Path(path) / part / "config.json"
        kept_keys = {k: v for k, v in read_json(config).items() if k != "_name_or_path"}
        atomic_write_json(config, {**kept_keys, **changes})
    for part, state in zip(parts, kept):
        part.float()
        part.load_state_dict(state)
