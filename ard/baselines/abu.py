"""`AbU`: attribution by unlearning (Wang et al. 2024, section 3). A generator forgets the query; the pictures that it then
knows less well than before are the ones that taught it.

Three rows: the base generator forgets, or G_i does, which drew the query; and G_i again, asked about boxes of the class, framed
as its exemplar was when it learned. Where it is published with captions of their own for all pictures, X's would hold the new
word and give it away; here one prompt serves all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ard.baselines.denoising import denoising_losses, even_probe, losses_at, text_states
from ard.baselines.kit import Kit
from ard.baselines.registry import Entry
from ard.baselines.views import Encoded, Views, framed_boxes, loss_prompt, plain_prompt, rises, strongest, whole
from ard.config import from_dict
from ard.customize import encode, item_seed
from ard.files import atomic_write_bytes, sha256_bytes, sha256_tree
from ard.records import Attribution, Gallery, Query, Sample
from ard.templates import fill

CHANGED = re.compile(r"attn2\.to_[kv]\.weight$")  # what forgets: keys and values of the cross-attention, as published
Fisher = Mapping[str, Tensor]  # name of a weight of the UNet -> mean squared gradients, shaped as the weight, float64
Wear = Callable[[Sample], AbstractContextManager]  # within the block: the pipeline that is to forget the sample's Q


@dataclass(frozen=True)
class AbUConfig:
    learning_rate: float = 0.02  # 1 is a Newton step. Published .01 with one step, .1 with 100. Here Q's loss rises by a tenth
    # to a third; from about .1 on, three steps break the generator, and what rises then is anybody's loss
    pictures: int = 40_000  # N: pictures the base generator learned from; published 400,000,000 (LAION)
    steps: int = 1  # of ascent; published 1 (MS COCO), 100 (Custom Diffusion)
    draws: int = 32  # times and noises that the query's gradient is a mean over; published 50,000 and 160
    damping: float = 0.1  # added to the Fisher, as a share of its mean; published: none named
    times: int = 10  # that a picture's loss is a mean over; published 10 (Custom Diffusion), 20 (MS COCO)
    threshold: float = 0.1  # least score of the class filter's boxes, as for exemplars: a loss is not misled by more of them
    frame: float = 0.39  # share of the picture that a box is brought to, as in `customize.frame`
    prompt: Literal["photo", "query", "empty"] = "photo"  # of the losses, one for all pictures; published: own captions
    fisher_passes: int = 5  # over the training pictures, each a new time and noise; published 5
    seed: int = 0  # of all times and noises


class AbU:
    """Ranks pictures by how much worse a generator knows them once it has forgotten Q."""

    def __init__(self, wear: Wear, fisher: Fisher, config: AbUConfig, customised: bool, views: Views = whole):
        """customised: `wear` gives G_i, another model for each concept, which knows the prompt's new word."""
        self.wear, self.fisher, self.config, self.customised, self.views = wear, fisher, config, customised, Encoded(views)
        self._before: dict[tuple, Tensor] = {}  # by model, prompt, class and gallery, (V, T)

    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        config, sample = self.config, query.sample
        prompt = sample.prompt if self.customised else plain_prompt(sample.prompt, sample.class_name)
        asked = loss_prompt(prompt, sample.class_name, config.prompt)
        known = (sample.concept_id if self.customised else "", asked, sample.class_name, tuple(im.image_id for im in gallery))
        with self.wear(sample) as pipe, torch.no_grad():
            owners, latents = self.views(pipe, sample, gallery)
            if not owners:
                return strongest((), (), gallery)
            probe, states = even_probe(pipe, config.times, config.seed), text_states(pipe, asked)
            if known not in self._before:
                self._before[known] = denoising_losses(pipe, latents, states, probe)
            own = encode(pipe, query.image[None])
            with forgotten(pipe, own, text_states(pipe, prompt), self.fisher, config):
                after = denoising_losses(pipe, latents, states, probe)
        return strongest(owners, rises(self._before[known], after), gallery)


def key_value_weights(unet) -> dict[str, nn.Parameter]:
    """The weights that forget, by name; ValueError when the UNet has none."""
    weights = {name: weight for name, weight in unet.named_parameters() if CHANGED.search(name)}
    if not weights:
        raise ValueError("this UNet has no cross-attention (attn2), so there is nothing to unlearn in")
    return weights


@contextmanager
def learning(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the block these weights, and whatever else did, take gradients."""
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for weight, wanted in zip(weights, before, strict=True):
            weight.requires_grad_(wanted)


@contextmanager
def forgotten(pipe, latents: Tensor, states: Tensor, fisher: Fisher, config: AbUConfig) -> Iterator[None]:
    """Within the block the pipeline has unlearned `latents` (1, C, h, w) under `states`; afterwards, and after an error, it
    is what it was, bit by bit.

    theta <- theta + rate * gradient / (N * F): F stands for the curvature of one picture's loss, N * F for that of
    the sum over the N pictures of training, so a step at rate 1 is Newton's towards a training without this one.
    """
    weights = key_value_weights(pipe.unet)
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    scale = {name: config.learning_rate / (config.pictures * f) for name, f in damped(fisher, config.damping).items()}
    try:
        for step in range(config.steps):
            probe = even_probe(pipe, config.draws, item_seed("forget", config.seed, step))
            with learning(list(weights.values())):
                loss = denoising_losses(pipe, latents, states, probe).mean()
                gradients = torch.autograd.grad(loss, list(weights.values()))
            with torch.no_grad():
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                    weight += (scale[name] * gradient).to(weight)
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(kept[name])


def damped(fisher: Fisher, share: float) -> dict[str, Tensor]:
    """The Fisher with `share` of its mean over all weights added: where it is next to 0, a step would be endless."""
    mean = sum(f.sum() for f in fisher.values()) / sum(f.numel() for f in fisher.values())
    return {name: f + share * mean for name, f in fisher.items()}


def diagonal_fisher(pipe, latents: Tensor, states: Tensor, passes: int, seed: int) -> dict[str, Tensor]:
    """Squared gradients of the loss of single pictures, mean over `passes` of all of them, each at a random time and noise.

    latents (n, C, h, w); states (n, tokens, width), what the UNet reads of each picture's caption.
    """
    weights = key_value_weights(pipe.unet)
    total = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        times = torch.randint(pipe.scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        for i in range(len(latents)):
            one = slice(i, i + 1)
            with learning(list(weights.values())):
                loss = losses_at(pipe, latents[one], states[one], times[one].to(latents.device), noise[one]).sum()
                gradients = torch.autograd.grad(loss, list(weights.values()))
            for name, gradient in zip(weights, gradients, strict=True):
                total[name] += gradient.double().square() / (passes * len(latents))
    return total


def train_fisher(kit: Kit, config: AbUConfig) -> dict[str, Tensor]:
    """The base generator's Fisher over the pictures of AD+ train and their classes; computed once, then read from its file.

    G_i uses it as well: one picture taught it, too few for a Fisher, and what must not be forgotten is what the base knows.
    """
    def make(path: Path) -> None:
        known, pipe = kit.ad_train, kit.generator
        classes = {s.exemplar_file: s.class_name for s in known.samples["train"]}
        latents = encode(pipe, np.stack([known.pixels(file) for file in classes]))
        states = torch.cat([text_states(pipe, fill("A photo of {}.", name)) for name in classes.values()])
        atomic_write_bytes(path, save(diagonal_fisher(pipe, latents, states, config.fisher_passes, config.seed)))

    known = sha256_bytes((kit.content + sha256_tree(kit.data / "models/generator")).encode())[:16]
    return load_file(kit.kept(f"abu/fisher_{config.fisher_passes}_{config.seed}_{known}.safetensors", make))


def build(kit: Kit, customised: bool, region: bool = False) -> AbU:
    """The base generator's row, or G_i's, over whole pictures or over boxes of the class."""
    config = from_dict(AbUConfig, dict(kit.settings.get("abu", {})), "params.yaml:arena.methods.abu")
    wear = kit.customised if customised else lambda sample: nullcontext(kit.generator)
    views = framed_boxes(kit.proposals_at(config.threshold), config.frame) if region else whole
    return AbU(wear, train_fisher(kit, config), config, customised, views)


GIVEN = ("text", "generator", "gradients", "training")
SOURCE = "Wang et al. 2024, attribution by unlearning"
READS = ("models/generator", "deltas")
ENTRIES = [
    Entry("AbU (base G)", lambda kit: build(kit, False), GIVEN, SOURCE, ("models/generator",), per_query=True),
    Entry("AbU (G_i)", lambda kit: build(kit, True), (*GIVEN, "customised"), SOURCE, READS, per_query=True),
    Entry("AbU (G_i), region", lambda kit: build(kit, True, True), (*GIVEN, "customised"), f"{SOURCE}; class filter",
          (*READS, "models/open_set"), per_query=True),
]
