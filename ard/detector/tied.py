"""ARD's reading of a trained detector: the exemplar token scores a region by what the words of its phrase say of it, plus the
likeness head. Words tell the class, the likeness the individual; what the decoder learned of exemplars is left out.

That says which image it is. Some image of the class always has the words, and something that looks like the exemplar; whether the
source is *there* is told by the exemplar's own token (`untied`), which was taught with captions that nothing answers
(`phase1.absent`) and with negatives (phase 2). Not in the paper. Notebook 28 asks what each reading is worth.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ard.detector.joint import JointDetector, Match
from ard.detector.model import AttributionConfig, AttributionGroundingDinoForObjectDetection
from ard.detector.model import load_detector as load_untied
from ard.detector.prompts import EXEMPLAR, TEXT, Prompt
from ard.files import FileError, read_json

READING = ("likeness_weight", "pooling")  # the settings that a tied detector has beyond those of the one it is a copy of


class TiedConfig(AttributionConfig):
    """That of the detector, and how it is read."""

    model_type = "attribution-grounding-dino-tied"

    likeness_weight: float = 1.0  # how much more than the words the likeness counts
    pooling: float = 0.0  # temperature at which an image answers with all of its regions (`ard.detector.pooling`); 0: the strongest

    def reading(self) -> dict[str, float]:
        """The settings of `READING`, by name."""
        return {name: getattr(self, name) for name in READING}


class TiedGroundingDinoForObjectDetection(AttributionGroundingDinoForObjectDetection):
    """The detector of the mini world, weight for weight, but with each exemplar token standing where its words do, and with its
    likeness weighed."""

    config_class = TiedConfig
    config: TiedConfig

    @classmethod
    def of(cls, model: AttributionGroundingDinoForObjectDetection, likeness_weight: float = 1.0,
           pooling: float = 0.0) -> TiedGroundingDinoForObjectDetection:
        """A copy of the detector with its tokens tied, in the same mode."""
        made = cls(TiedConfig(**shared(model.config), likeness_weight=likeness_weight, pooling=pooling))
        made.load_state_dict(model.state_dict())
        return made.train(model.training)

    def match(self, features: Tensor, prompt: Prompt, adapted: bool | None = None) -> Match:
        """As of the detector it is a copy of; `tokens` are tied, `likeness` is weighed, and so are the last decoder layer's logits."""
        found = super().match(features, prompt, adapted)
        tokens, likeness = tied(found.tokens, prompt), self.config.likeness_weight * found.likeness
        adapted = self.config.adapters if adapted is None else adapted
        last = self.score_head(found.regions, tokens, found.present, adapted) + likeness
        logits = torch.cat([found.layer_logits[:, :-1], last[:, None].float()], 1)
        return replace(found, tokens=tokens, likeness=likeness, layer_logits=logits)


def untied(model: JointDetector) -> JointDetector:
    """The detector that a tied one is a copy of, in the same mode, with its exemplars read by their own tokens plus the likeness
    once, as both phases train it. A detector that is not tied is returned as it is."""
    if not isinstance(model, TiedGroundingDinoForObjectDetection):
        return model
    made = AttributionGroundingDinoForObjectDetection(AttributionConfig(**shared(model.config)))
    made.load_state_dict(model.state_dict())
    return made.train(model.training)


def read_as(model: AttributionGroundingDinoForObjectDetection, other: JointDetector) -> AttributionGroundingDinoForObjectDetection:
    """A detector that is not tied, read as another one is: a tied copy with the other's settings, or the model as it is."""
    if not isinstance(other, TiedGroundingDinoForObjectDetection):
        return model
    return TiedGroundingDinoForObjectDetection.of(model, **other.config.reading())


def pooling_at(model: AttributionGroundingDinoForObjectDetection, temperature: float) -> AttributionGroundingDinoForObjectDetection:
    """The detector, which from now on answers with all of an image's regions (`ard.detector.pooling`); with 0, its strongest.

    ValueError: it is not tied, so it does not keep words and likeness apart.
    """
    if isinstance(model, TiedGroundingDinoForObjectDetection):
        model.config.pooling = temperature
    elif temperature:
        raise ValueError(f"pooling {temperature}: only a tied detector pools; its phase 1 needs a likeness_weight")
    return model


def shared(config: AttributionConfig) -> dict:
    """The settings that a detector and a tied copy of it have alike."""
    own = {"backbone_config", "text_config", "model_type", *READING}
    return {key: value for key, value in config.to_dict().items() if key not in own}


def tied(tokens: Tensor, prompt: Prompt) -> Tensor:
    """Tokens (B, T, d) with each exemplar's replaced by the mean of its phrase's words; one without words stays as it is.

    F~ is affine, so its product with a region is then the mean of theirs.
    """
    same = (prompt.phrase[:, :, None] == prompt.phrase[:, None]) & (prompt.kind == TEXT)[:, None]
    count = same.sum(-1, keepdim=True)
    words = same.to(tokens.dtype) @ tokens / count.clamp(min=1)
    return torch.where((prompt.kind == EXEMPLAR)[..., None] & (count > 0), words, tokens)


def load_detector(folder: str | Path) -> AttributionGroundingDinoForObjectDetection:
    """A saved detector, tied or not, as its folder says; in float32 and evaluation mode, from a local folder only. FileError where it
    is torn, or part of it is missing."""
    file = Path(folder) / "config.json"
    try:
        if file.is_file() and read_json(file).get("model_type") == TiedConfig.model_type:
            return TiedGroundingDinoForObjectDetection.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    except (OSError, SafetensorError) as error:
        raise FileError(f"{folder}: no detector's folder ({error})") from None
    return load_untied(folder)
