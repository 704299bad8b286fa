"""The text-to-image model G of the mini world, and loading of any Stable-Diffusion-like one."""

from ard.generator.build import load_pipeline, save_pipeline

__all__ = ["load_pipeline", "save_pipeline"]
