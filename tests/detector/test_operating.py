import numpy as np
import pytest

from ard.detector.model import save_detector
from ard.detector.operating import load_detect, load_threshold, save_operating_point
from ard.files import FileError, atomic_write_json


def test_threshold_travels_with_the_model(tiny, toy, tmp_path):
    folder = save_detector(tiny, tmp_path / "model")
    with pytest.raises(FileError, match="operating_point.json"):
        load_threshold(folder)
    save_operating_point(folder, 0.0, recall=0.9)
    assert load_threshold(folder) == 0.0
    boxes, scores = load_detect(folder)(toy[0][0], "cat")
    assert boxes.shape == (len(scores), 4) and len(scores) > 0 and (np.diff(scores) <= 0).all()
    save_operating_point(folder, 1.0)
    assert len(load_detect(folder)(toy[0][0], "cat")[0]) == 0


def test_a_threshold_out_of_range_is_refused(tmp_path):
    atomic_write_json(tmp_path / "operating_point.json", {"threshold": 7.0})
    with pytest.raises(FileError, match="between 0 and 1"):
        load_threshold(tmp_path)
