"""A detector by the words alone: what they say of an image is the same whichever picture of a thing is asked about.

Not in the paper. Where several pictures are asked about together, their likenesses are as many witnesses, their words are one
(`ard.together`).
"""

from __future__ import annotations

from ard.detector.joint import JointDetector
from ard.detector.tied import TiedGroundingDinoForObjectDetection


def words_alone(model: JointDetector) -> TiedGroundingDinoForObjectDetection | None:
    """A copy of a tied detector whose scores leave the likeness out; None for one that does not keep words and likeness apart."""
    if not isinstance(model, TiedGroundingDinoForObjectDetection):
        return None
    return TiedGroundingDinoForObjectDetection.of(model, **{**model.config.reading(), "likeness_weight": 0.0})
