"""The text-to-image model G of the mini world, and loading of any Stable-Diffusion-like one."""

from ard.generator.build import load_pipeline, save_pipeline
from ard.generator.redraw import Blemish, redraws

__all__ = ["Blemish", "load_pipeline", "redraws", "save_pipeline"]
