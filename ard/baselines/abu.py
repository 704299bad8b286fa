"""`AbU`: attribution by unlearning (Wang et al. 2024, section 3). A generator forgets the query; the pictures that it then
knows less well than before are the ones that taught it.

Two rows: the base generator forgets, or G_i does, which drew the query.
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
from ard.config import from_dict
from ard.customize import encode, item_seed
from ard.files import atomic_write_bytes
from ard.records import Attribution, Gallery, GalleryImage, Query, Sample, negatives, positive
from ard.templates import fill

CHANGED = re.compile(r"attn2\.to_[kv]\.weight$")  # what forgets: keys and values of the cross-attention, as published
NEW_WORD = re.compile(r"<[^>]+>")  # the token of a concept in a prompt, which the base generator does not know
Fisher = Mapping[str, Tensor]  # name of a weight of the UNet -> mean squared gradients, shaped as the weight, float64
Wear = Callable[[Sample], AbstractContextManager]  # within the block: the pipeline that is to forget the sample's Q


@dataclass(frozen=True)
class AbUConfig:
    learning_rate: float = 0.4  # of the base generator; 1 is a Newton step; published .01 with one step, .1 with 100
    customised_rate: float = 4.0  # of G_i, which below it does not tell X apart; published: one rate for all
    pictures: int = 40_000  # N: pictures the base generator learned from; published 400,000,000 (LAION)
    steps: int = 1  # of ascent; published 1 (MS COCO), 100 (Custom Diffusion)
    draws: int = 32  # times and noises that the query's gradient is a mean over; published 50,000 and 160
    damping: float = 0.1  # added to the Fisher, as a share of its mean; published: none named
    times: int = 10  # that a picture's loss is a mean over; published 10 (Custom Diffusion), 20 (MS COCO)
    prompt: Literal["photo", "query", "empty"] = "photo"  # of the losses, one for all pictures; published: own captions
    fisher_passes: int = 5  # over the training pictures, each a new time and noise; published 5
    seed: int = 0  # of all times and noises


class AbU:
    """Ranks whole pictures by how much worse a generator knows them once it has forgotten Q. No boxes."""

    def __init__(self, wear: Wear, fisher: Fisher, config: AbUConfig, customised: bool):
        """customised: `wear` gives G_i, another model for each concept, which knows the prompt's new word."""
        self.wear, self.fisher, self.config, self.customised = wear, fisher, config, customised
        self._latents: dict[str, Tensor] = {}  # by image_id, (2, C, h, w): as it is, mirrored
        self._before: dict[tuple, Tensor] = {}  # by model, prompt and gallery, (2n, T)

    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        config, prompt = self.config, self._prompt(query.sample)
        asked = loss_prompt(prompt, query.sample.class_name, config.prompt)
        known = query.sample.concept_id if self.customised else "", asked, tuple(image.image_id for image in gallery)
        rate = config.customised_rate if self.customised else config.learning_rate
        with self.wear(query.sample) as pipe, torch.no_grad():
            views = torch.cat([self._views(pipe, image, gallery) for image in gallery])
            probe, states = even_probe(pipe, config.times, config.seed), text_states(pipe, asked)
            if known not in self._before:
                self._before[known] = denoising_losses(pipe, views, states, probe)
            own = encode(pipe, query.image[None])
            with forgotten(pipe, own, text_states(pipe, prompt), self.fisher, config, rate):
                after = denoising_losses(pipe, views, states, probe)
        scores = influence(self._before[known], after)
        return [Attribution(image.image_id, None, score) for image, score in zip(gallery, scores.tolist(), strict=True)]

    def _prompt(self, sample: Sample) -> str:
        return sample.prompt if self.customised else plain_prompt(sample.prompt, sample.class_name)

    def _views(self, pipe, image: GalleryImage, gallery: Gallery) -> Tensor:
        if image.image_id not in self._latents:
            pixels = gallery.pixels(image)
            self._latents[image.image_id] = torch.cat([encode(pipe, view[None]) for view in (pixels, pixels[:, ::-1])])
        return self._latents[image.image_id]


def influence(before: Tensor, after: Tensor) -> Tensor:
    """Rise of the loss (2n, T) of n pictures, each as it is and mirrored: mean over times, the larger of both views, (n,).

    >>> influence(torch.zeros(4, 2), torch.tensor([[1.0, 3], [0, 0], [0, 1], [4, 4]])).tolist()
    [2.0, 4.0]
    """
    rise = (after.double() - before.double()).mean(1).view(-1, 2).amax(1)
    if not rise.isfinite().all():
        raise ValueError("AbU: a loss is not finite after unlearning; lower learning_rate or raise damping")
    return rise


def plain_prompt(prompt: str, class_name: str) -> str:
    """The prompt for a model that does not know its new word: the class alone.

    >>> plain_prompt("A photo of a <v1> elephant standing in a forest.", "elephant")
    'A photo of an elephant standing in a forest.'
    """
    template = re.sub(rf"{NEW_WORD.pattern} {re.escape(class_name)}\b", "{}", prompt, count=1)
    return fill(template, class_name) if "{}" in template else prompt


def loss_prompt(prompt: str, class_name: str, kind: str) -> str:
    """The prompt under which all pictures are measured, made of the query's alone, so it tells nothing of any of them.

    "photo" is the sentence that concepts are learned with: the gallery is photographs, whatever the query's medium is.

    >>> [loss_prompt("An oil painting of a <v1> cat.", "cat", kind) for kind in ("photo", "query", "empty")]
    ['A photo of a <v1> cat.', 'An oil painting of a <v1> cat.', '']
    """
    if kind == "photo":
        word = NEW_WORD.search(prompt)
        return fill("A photo of {}.", f"{word[0]} {class_name}" if word else class_name)
    return prompt if kind == "query" else ""


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
def forgotten(pipe, latents: Tensor, states: Tensor, fisher: Fisher, config: AbUConfig, rate: float) -> Iterator[None]:
    """Within the block the pipeline has unlearned `latents` (1, C, h, w) under `states`; afterwards, and after an error, it
    is what it was, bit by bit.

    theta <- theta + rate * gradient / (N * F): F stands for the curvature of one picture's loss, N * F for that of
    the sum over the N pictures of training, so a step at rate 1 is Newton's towards a training without this one.
    """
    weights = key_value_weights(pipe.unet)
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    scale = {name: rate / (config.pictures * f) for name, f in damped(fisher, config.damping).items()}
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

    return load_file(kit.kept(f"abu/fisher_{config.fisher_passes}_{config.seed}.safetensors", make))


def build(kit: Kit, customised: bool) -> AbU:
    """The base generator's row, or G_i's."""
    config = from_dict(AbUConfig, dict(kit.settings.get("abu", {})), "arena.abu")
    wear = kit.customised if customised else lambda sample: nullcontext(kit.generator)
    return AbU(wear, train_fisher(kit, config), config, customised)


def abu_check(rows: Mapping[str, Mapping[str, Sequence[Attribution]]], samples: Sequence[Sample],
              gallery: Sequence[GalleryImage], seed: int = 0) -> dict[str, dict[str, bool]]:
    """Does X's influence exceed that of one other gallery image, drawn at random? By row of answers, then by sample_id.

    The other image depends on the sample and the seed alone, so rows are paired; a tie counts against X. A row's share is
    the mean of its values. ValueError: a row lacks an answer, or the gallery has no other image.
    """
    found: dict[str, dict[str, bool]] = {name: {} for name in rows}
    for sample in samples:
        own, others = positive(sample, gallery), negatives(sample, gallery)
        if not others:
            raise ValueError(f"{sample.sample_id}: the gallery holds nothing but its X")
        other = others[item_seed("abu_check", seed, sample.sample_id) % len(others)]
        for name, answers in rows.items():
            scores = {a.image_id: a.score for a in answers.get(sample.sample_id, ())}
            if not {own.image_id, other.image_id} <= scores.keys():
                raise ValueError(f"{name}: no answer to {sample.sample_id} for {own.image_id} and {other.image_id}")
            found[name][sample.sample_id] = scores[own.image_id] > scores[other.image_id]
    return found


GIVEN = ("text", "generator", "gradients", "training")
SOURCE = "Wang et al. 2024, attribution by unlearning"
ENTRIES = [
    Entry("AbU (base G)", lambda kit: build(kit, False), GIVEN, SOURCE, ("models/generator",), per_query=True),
    Entry("AbU (G_i)", lambda kit: build(kit, True), (*GIVEN, "customised"), SOURCE, ("models/generator", "deltas"),
          per_query=True),
]
