"""The open-set detector's operating point, kept in its model folder, and the detector as the stages ask it."""

from pathlib import Path
from typing import Callable

import numpy as np

from ard.detector.model import load_detector
from ard.detector.score import detect
from ard.files import FileError, atomic_write_json, read_json

FILE = "operating_point.json"


def save_operating_point(folder: str | Path, threshold: float, **measured: float) -> Path:
    """Write the score from which a box counts, with what was measured there, into a model's folder."""
    return atomic_write_json(Path(folder) / FILE, {"threshold": threshold, **measured})


def load_threshold(folder: str | Path) -> float:
    """The score from which a box of this detector counts. Raises FileError naming the file."""
    threshold = read_json(Path(folder) / FILE).get("threshold")
    if not isinstance(threshold, float) or not 0 <= threshold <= 1:
        raise FileError(f"{Path(folder) / FILE}: expected a threshold between 0 and 1, found {threshold!r}")
    return threshold


def load_detect(folder: str | Path) -> Callable[[np.ndarray, str], tuple[np.ndarray, np.ndarray]]:
    """`ard.exemplars.Detect` by a saved detector: image uint8 (64, 64, 3) and class name -> boxes xyxy px, scores."""
    model, threshold = load_detector(folder), load_threshold(folder)

    def ask(image: np.ndarray, class_name: str) -> tuple[np.ndarray, np.ndarray]:
        found = detect(model, image[None], class_name, threshold)[0]
        return found.boxes, found.scores

    return ask
