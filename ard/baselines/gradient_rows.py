"""`TRAK` and `D-TRAK`: gallery pictures by the likeness of their gradients to Q's, through a generator's weights; and versions
whose query is R_Q alone.

TRAK (Park et al. 2023) takes the gradient of the diffusion loss, D-TRAK (Zheng et al. 2024) that of the mean square of what the
network predicts. Projection and scores are those of the library `traker`. "Training set" is the gallery, as if the generator had
learned from it. The base generator never saw it: there the scores say what its weights treat alike, not what taught them. G_i saw
one picture of it. No row gives a box. A gallery picture's gradient is a sum over its latent cells, but the rectangle that adds
most to the score of `TRAK, region` was right for a third of the validation queries, a box in the middle for half of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from trak.projectors import BasicProjector, ProjectionType
from trak.score_computers import BasicScoreComputer

from ard.attention import masked_loss, plain_attention
from ard.baselines.denoising import Probe, even_probe, question, text_states
from ard.baselines.diffusion_matching import covered
from ard.baselines.kit import Kit
from ard.baselines.registry import Entry
from ard.config import from_dict
from ard.customize import CustomizeConfig, encode
from ard.records import Attribution, Gallery, Query, Sample
from ard.templates import fill

OUTPUTS = ("TRAK", "D-TRAK")  # names of the model output functions
TOGETHER = 64  # gradients projected at once


@dataclass(frozen=True)
class GradientConfig:
    weights: str = r"attn1\.to_.*weight$"  # the UNet's weights whose gradients count; published: all, or LoRA's
    times: int = 10  # evenly spaced, each with its own noise, the same for all pictures; published 10 to 1000
    customised_times: int = 4  # the same under G_i, where the gallery's gradients are taken anew for each concept
    projection: int = 512  # numbers a projected gradient has; published 32768 (D-TRAK), the library's own 2048
    block: int = 512  # columns of the projection held in memory; fewer are drawn again at every call. The library's own 100
    ridge: float = 1e-3  # lambda, as a share of the mean eigenvalue of the gallery's kernel; published: searched
    seed: int = 0  # of noise and projection


@dataclass(frozen=True)
class Model:
    """Whose gradients are taken, and what the generator is asked with."""

    wear: Callable[[Sample], AbstractContextManager]  # within the block: the pipeline
    name: Callable[[Sample], str] = lambda sample: ""  # differs where `wear` gives other weights
    prompt: Callable[[Sample], str] = lambda sample: ""  # the same for Q and the gallery


class GradientRanker:
    """Ranks whole gallery pictures by TRAK or D-TRAK of Q, or of R_Q alone with `region`. No boxes."""

    def __init__(self, model: Model, output: str, config: GradientConfig, region: bool = False):
        if output not in OUTPUTS:
            raise ValueError(f"model output: expected one of {', '.join(OUTPUTS)}, found {output!r}")
        self.model, self.output, self.config, self.region = model, output, config, region
        self._stored: dict[tuple[str, str], Tensor] = {}  # by model and image_id, (projection,); of one model at a time

    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        name, (height, width) = self.model.name(query.sample), query.image.shape[:2]
        self._stored = {key: kept for key, kept in self._stored.items() if key[0] == name}
        new = [image for image in gallery if (name, image.image_id) not in self._stored]
        with self.model.wear(query.sample) as pipe:
            side, prompt = pipe.unet.config.sample_size, self.model.prompt(query.sample)
            whole = torch.ones(side, side)
            found = self._projected(pipe, [gallery.pixels(image) for image in new], whole, prompt)
            self._stored |= {(name, image.image_id): row for image, row in zip(new, found, strict=True)}
            share = covered(query.sample.query_box, width, height, side**2).view(side, side) if self.region else whole
            [asked] = self._projected(pipe, [query.image], share, prompt)
        phi = torch.stack([self._stored[name, image.image_id] for image in gallery])
        found = scores(phi, asked, self.config.ridge).tolist()
        return [Attribution(image.image_id, None, score) for image, score in zip(gallery, found, strict=True)]

    def _projected(self, pipe, pictures: Sequence[np.ndarray], share: Tensor, prompt: str) -> list[Tensor]:
        """Projected gradient (projection,) of each picture's output under the mask `share` (h, w)."""
        config, rows = self.config, []
        probe, states = even_probe(pipe, config.times, config.seed), text_states(pipe, prompt)
        weights = chosen_weights(pipe.unet, config.weights)
        for i in range(0, len(pictures), TOGETHER):
            latents = [encode(pipe, picture[None]) for picture in pictures[i : i + TOGETHER]]
            gradients = [picture_gradient(pipe, weights, latent, states, probe, share, self.output) for latent in latents]
            rows += projected(torch.stack(gradients), config.projection, config.block, config.seed).cpu()
        return rows


def chosen_weights(unet, pattern: str) -> dict[str, Tensor]:
    """The UNet's weights whose name the pattern is found in; ValueError when there are none."""
    found = {name: weight for name, weight in unet.named_parameters() if re.search(pattern, name)}
    if not found:
        raise ValueError(f"weights {pattern!r}: no weight of this UNet has such a name")
    return found


def picture_gradient(pipe, weights: Mapping[str, Tensor], latent: Tensor, states: Tensor, probe: Probe, share: Tensor,
                     name: str) -> Tensor:
    """Gradient (d,) of the output function `name` of one picture (1, C, h, w), with respect to `weights` in their order. The
    model is left as it is: its own weights need no gradient and get none."""
    own = {key: weight.detach().requires_grad_() for key, weight in weights.items()}
    with torch.enable_grad(), plain_attention(pipe.unet):
        value = model_output(name, *predicted(pipe, own, latent, states, probe), share)
        gradients = torch.autograd.grad(value, list(own.values()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def predicted(pipe, weights: Mapping[str, Tensor], latent: Tensor, states: Tensor, probe: Probe) -> tuple[Tensor, Tensor]:
    """What the UNet with `weights` predicts of one picture (1, C, h, w) under `states` (1, tokens, width), and what it should
    predict, (T, C, h, w) each."""
    asked, target = question(pipe, latent.expand(len(probe), -1, -1, -1), states, probe.times, probe.noise)
    return functional_call(pipe.unet, weights, asked).sample.float(), target.float()


def model_output(name: str, prediction: Tensor, target: Tensor, share: Tensor) -> Tensor:
    """The number whose gradient is taken, of predictions (T, C, h, w) under a mask (h, w) in [0, 1].

    TRAK: the mean squared error, the loss of customisation. D-TRAK: the mean square of the prediction. ValueError: empty mask.
    """
    if not (share > 0).any():
        raise ValueError("gradients of a region: its mask is empty, so its loss says nothing")
    against = target if name == "TRAK" else torch.zeros_like(prediction)
    return masked_loss(prediction, against, share.to(prediction).expand(len(prediction), -1, -1))


@lru_cache(maxsize=1)
def projector(dimension: int, size: int, block: int, seed: int, device: str) -> BasicProjector:
    """The library's random projection of `dimension` numbers to `size`; the last one is kept, for all methods."""
    return BasicProjector(dimension, size, seed, ProjectionType.normal, device, block_size=block)


def projected(gradients: Tensor, size: int, block: int, seed: int) -> Tensor:
    """(n, d) -> (n, size), so that inner products stay what they are, on average over seeds."""
    project = projector(gradients.shape[1], size, block, seed, str(gradients.device))
    return project.project(gradients, model_id=0) / size**0.5


def scores(phi: Tensor, asked: Tensor, ridge: float) -> Tensor:
    """TRAK's scores Phi (Phi^T Phi + lambda I)^-1 asked of n pictures, (n,), up to a factor that is the same for all of them.

    phi (n, d) and asked (d,): projected gradients. TRAK's weights of the training pictures, the gradient of loss by output, are
    1: its output is the loss here.
    """
    computer = BasicScoreComputer(torch.float32, "cpu", logging_level=logging.WARNING)
    kernel = computer.get_xtx(phi)
    computer.lambda_reg = ridge * float(kernel.trace()) / len(phi)
    found = torch.zeros(len(phi), 1)
    computer.get_scores(computer.get_x_xtx_inv(phi, kernel), asked[None], accumulator=found)
    return found[:, 0]


def taught_prompt(sample: Sample) -> str:
    """What G_i was taught its concept with, from the words that the query's prompt has for it.

    ValueError: no new word stands before the class in the prompt.
    """
    noun = re.search(rf"(<[^>]+> )+{re.escape(sample.class_name)}", sample.prompt)
    if noun is None:
        raise ValueError(f"{sample.sample_id}: no word like <v1> before {sample.class_name!r} in prompt {sample.prompt!r}")
    return fill(CustomizeConfig().prompts[0], noun[0])


def ranker(kit: Kit, output: str, region: bool = False, customised: bool = False, taught: bool = False) -> GradientRanker:
    """`customised`: under G_i, else under the base generator; `taught`: with G_i's prompt, else with an empty one."""
    where = "params.yaml:arena.methods.gradient_rows"
    config = from_dict(GradientConfig, dict(kit.settings.get("gradient_rows", {})), where)
    if not customised:
        return GradientRanker(Model(lambda sample: nullcontext(kit.generator)), output, config, region)
    prompt = taught_prompt if taught else Model.prompt
    model = Model(kit.customised, lambda sample: sample.concept_id, prompt)
    return GradientRanker(model, output, replace(config, times=config.customised_times), region)


TRAK, D_TRAK = "TRAK (Park et al. 2023), of the diffusion loss", "D-TRAK (Zheng et al. 2024), of the squared prediction"
BASE, OURS = ("models/generator",), "; ours: of a region"
ENTRIES = [
    Entry("TRAK", partial(ranker, output="TRAK"), ("gradients",), TRAK, BASE),
    Entry("D-TRAK", partial(ranker, output="D-TRAK"), ("gradients",), D_TRAK, BASE),
    Entry("TRAK, region", partial(ranker, output="TRAK", region=True), ("box", "gradients"), TRAK + OURS, BASE),
    Entry("D-TRAK, region", partial(ranker, output="D-TRAK", region=True), ("box", "gradients"), D_TRAK + OURS, BASE),
    Entry("TRAK (G_i)", partial(ranker, output="TRAK", customised=True), ("gradients", "customised"), TRAK,
          (*BASE, "deltas"), True),
    # its prompt has G_i's new word and the class; with it the loss's gradient vanishes at X, so TRAK is asked without
    Entry("D-TRAK (G_i)", partial(ranker, output="D-TRAK", customised=True, taught=True), ("text", "gradients", "customised"),
          D_TRAK, (*BASE, "deltas"), True),
]
