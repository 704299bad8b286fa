"""The open-set detector as the function that exemplars and queries are located with: image, class -> boxes and scores."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ard.detector.model import AttributionGroundingDinoForObjectDetection, load_detector
from ard.detector.score import detect


def finder(model: AttributionGroundingDinoForObjectDetection | str | Path, threshold: float) -> Callable:
    """`find(image (64, 64, 3) uint8, class_name) -> boxes (n, 4) xyxy px, scores (n,)`, all at least `threshold`.

    model: a loaded open-set detector, or its folder (FileError names the missing file).
    """
    model = load_detector(model) if isinstance(model, (str, Path)) else model

    def find(image: np.ndarray, class_name: str) -> tuple[np.ndarray, np.ndarray]:
        found = detect(model, image[None], class_name, threshold)[0]
        return found.boxes, found.scores

    return find
