import pytest

from ard.detector.model import load_detector, save_detector
from ard.detector.operating import load_threshold, save_operating_point
from ard.files import FileError, atomic_write_json


def test_threshold_travels_with_the_model(tiny, tmp_path):
    folder = save_detector(tiny, tmp_path / "model")
    with pytest.raises(FileError, match="operating_point.json"):
        load_threshold(folder)
    save_operating_point(folder, 0.37, recall=0.9)
    assert load_threshold(folder) == 0.37
    assert load_detector(folder).config.d_model == tiny.config.d_model, "the file beside the model does not disturb it"


def test_a_threshold_out_of_range_is_refused(tmp_path):
    atomic_write_json(tmp_path / "operating_point.json", {"threshold": 7.0})
    with pytest.raises(FileError, match="between 0 and 1"):
        load_threshold(tmp_path)
