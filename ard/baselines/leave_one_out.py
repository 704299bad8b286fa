"""`leave one out (G_i)`: how much worse a picture is known to the generator that never saw X than to the one that did.

G_i without X is the base generator, at hand: what unlearning (`ard.baselines.abu`) approximates for large models is exact
here. Given the very G_i, it does not read Q at all, so it is a mark to hold others against rather than a rival. A rise of the
denoising loss, as in Wang et al. 2024, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ard.baselines.denoising import denoising_losses, even_probe, text_states
from ard.baselines.kit import Kit
from ard.baselines.registry import Entry
from ard.baselines.views import Encoded, Views, framed_boxes, loss_prompt, plain_prompt, rises, strongest, whole
from ard.config import from_dict
from ard.records import Attribution, Gallery, Query, Sample


@dataclass(frozen=True)
class LeaveOneOutConfig:
    times: int = 5  # that a picture's loss is a mean over; half of what AbU takes, for its price
    threshold: float = 0.1  # least score of the class filter's boxes, as for exemplars: a loss is not misled by more of them
    frame: float = 0.39  # share of the picture that a box is brought to, as in `customize.frame`
    seed: int = 0  # of the noise


class LeaveOneOut:
    """base: the pipeline without X; wear(sample): within the block the same pipeline with it."""

    def __init__(self, base, wear: Callable[[Sample], AbstractContextManager], views: Views, config: LeaveOneOutConfig):
        self.base, self.wear, self.config, self.views = base, wear, config, Encoded(views)
        self._without: dict[tuple, Tensor] = {}  # by class and gallery, (V, T)

    @torch.no_grad()
    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        sample = query.sample
        kind = sample.class_name, tuple(image.image_id for image in gallery)
        owners, latents = self.views(self.base, sample, gallery)
        if not owners:
            return strongest((), (), gallery)
        if kind not in self._without:
            self._without[kind] = self._losses(self.base, latents, plain_prompt(sample.prompt, sample.class_name), sample)
        with self.wear(sample) as pipe:
            known = self._losses(pipe, latents, sample.prompt, sample)
        return strongest(owners, rises(known, self._without[kind]), gallery)

    def _losses(self, pipe, latents: Tensor, prompt: str, sample: Sample) -> Tensor:
        states = text_states(pipe, loss_prompt(prompt, sample.class_name, "photo"))
        return denoising_losses(pipe, latents, states, even_probe(pipe, self.config.times, self.config.seed))


def build(kit: Kit, region: bool) -> LeaveOneOut:
    """Whole pictures, or the class filter's boxes, framed as G_i was shown its exemplar."""
    config = from_dict(LeaveOneOutConfig, dict(kit.settings.get("leave_one_out", {})), "params.yaml:arena.methods.leave_one_out")
    views = framed_boxes(kit.proposals_at(config.threshold), config.frame) if region else whole
    return LeaveOneOut(kit.generator, kit.customised, views, config)


GIVEN = ("text", "generator", "customised")
SOURCE = "ours: G_i against the base generator, which is G_i without X"
READS = ("models/generator", "deltas")
ENTRIES = [  # asked one query an exemplar, for all of them have the same answer
    Entry("leave one out (G_i)", lambda kit: build(kit, False), GIVEN, SOURCE, READS, per_query=True),
    Entry("leave one out (G_i), region", lambda kit: build(kit, True), GIVEN, f"{SOURCE}; class filter",
          (*READS, "models/open_set"), per_query=True),
]
