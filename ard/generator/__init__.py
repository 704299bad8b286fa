"""The text-to-image model G of the mini world, and loading of any Stable-Diffusion-like one."""

from ard.generator.build import load_pipeline, save_pipeline
from ard.generator.vae import blemished

__all__ = ["blemished", "load_pipeline", "save_pipeline"]
