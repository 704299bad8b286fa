"""A detector's operating point, kept in its model folder: the score from which a box counts, set on base scenes.

`ard.detector.finder.finder(folder, load_threshold(folder))` is the open-set detector as the stages 02 and 04 ask it.
"""

from pathlib import Path

from ard.files import FileError, atomic_write_json, read_json

FILE = "operating_point.json"


def save_operating_point(folder: str | Path, threshold: float, **measured: float) -> Path:
    """Write the score from which a box counts, with what was measured there, into a model's folder."""
    return atomic_write_json(Path(folder) / FILE, {"threshold": threshold, **measured})


def load_threshold(folder: str | Path) -> float:
    """The score from which a box of this detector counts. Raises FileError naming the file."""
    threshold = read_json(Path(folder) / FILE).get("threshold")
    if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise FileError(f"{Path(folder) / FILE}: expected a threshold between 0 and 1, found {threshold!r}")
    return threshold
