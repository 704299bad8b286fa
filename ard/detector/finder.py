"""The open-set detector as the function that exemplars and queries are located with: image, class -> boxes and scores."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ard.detector.model import AttributionGroundingDinoForObjectDetection, load_detector
from ard.detector.operating import load_threshold
from ard.detector.score import detect


def finder(model: AttributionGroundingDinoForObjectDetection | str | Path, threshold: float = 0.0) -> Callable:
    """`find(image (64, 64, 3) uint8, class_name) -> boxes (n, 4) xyxy px, scores (n,)`, all at least `threshold`.

    model: a loaded open-set detector, or its folder (FileError names the missing file), whose own operating point,
    set on base scenes, is used when `threshold` is 0.
    """
    if isinstance(model, (str, Path)):
        threshold = threshold or load_threshold(model)
        model = load_detector(model)

    def find(image: np.ndarray, class_name: str) -> tuple[np.ndarray, np.ndarray]:
        found = detect(model, image[None], class_name, threshold)[0]
        return found.boxes, found.scores

    return find
