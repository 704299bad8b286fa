"""Another reading of a trained detector: the exemplar token scores a region by what the words of its phrase say of it, plus the
likeness head. Words tell the class, the likeness the individual; what the decoder learned of exemplars is left out.

Not in the paper. Notebook 28 asks what each part is worth.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ard.detector.joint import Match
from ard.detector.model import AttributionConfig, AttributionGroundingDinoForObjectDetection
from ard.detector.prompts import EXEMPLAR, TEXT, Prompt


class TiedGroundingDinoForObjectDetection(AttributionGroundingDinoForObjectDetection):
    """The detector of the mini world, weight for weight, but with each exemplar token standing where its words do."""

    @classmethod
    def of(cls, model: AttributionGroundingDinoForObjectDetection) -> TiedGroundingDinoForObjectDetection:
        """A copy of the detector with its tokens tied, in the same mode."""
        told = model.config.to_dict()
        made = cls(AttributionConfig(**{key: told[key] for key in told.keys() - {"backbone_config", "text_config", "model_type"}}))
        made.load_state_dict(model.state_dict())
        return made.train(model.training)

    def match(self, features: Tensor, prompt: Prompt, adapted: bool | None = None) -> Match:
        """As of the detector it is a copy of; `tokens` are tied, and so are the last decoder layer's logits."""
        found = super().match(features, prompt, adapted)
        tokens = tied(found.tokens, prompt)
        adapted = self.config.adapters if adapted is None else adapted
        last = self.score_head(found.regions, tokens, found.present, adapted) + found.likeness
        return replace(found, tokens=tokens, layer_logits=torch.cat([found.layer_logits[:, :-1], last[:, None].float()], 1))


def tied(tokens: Tensor, prompt: Prompt) -> Tensor:
    """Tokens (B, T, d) with each exemplar's replaced by the mean of its phrase's words; one without words stays as it is.

    F~ is affine, so its product with a region is then the mean of theirs.
    """
    same = (prompt.phrase[:, :, None] == prompt.phrase[:, None]) & (prompt.kind == TEXT)[:, None]
    count = same.sum(-1, keepdim=True)
    words = same.to(tokens.dtype) @ tokens / count.clamp(min=1)
    return torch.where((prompt.kind == EXEMPLAR)[..., None] & (count > 0), words, tokens)
