"""How a detector's exemplars are read: one way for which image it is, another for whether the source is there at all.

Words and likeness say which (`ard.detector.tied`). But some image of the class always has the words, and something that looks like
the exemplar; whether it is *there* is told by the exemplar's own token, which was taught with captions that nothing answers
(`phase1.absent`) and with negatives (phase 2). Not in the paper; notebook 28 asks what each reading is worth.
"""

from __future__ import annotations

from ard.detector.joint import JointDetector
from ard.detector.model import AttributionConfig, AttributionGroundingDinoForObjectDetection
from ard.detector.tied import TiedGroundingDinoForObjectDetection, shared


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
