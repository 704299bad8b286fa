import json

import pytest

from ard import floors
from ard.files import read_json


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setattr(floors, "_rows", {})
    monkeypatch.chdir(tmp_path)


def stage(monkeypatch, profile):
    monkeypatch.setenv("ARD_PROVENANCE", json.dumps({"notebook": "12_x", "profile": profile}))


def test_rows_are_shown_and_written_even_when_missed(monkeypatch, tmp_path):
    stage(monkeypatch, "mini")
    assert floors.check("AP50", 0.9, 0.8, required=True)
    assert not floors.check("recall", 0.7, 0.8)
    assert floors.check("false positives", 0.05, 0.1, at_most=True)
    assert not floors.check("nothing", float("nan"), 0.1, at_most=True)
    table = floors.report()
    assert list(table["status"]) == ["reached, required", "below floor", "reached", "above ceiling"]
    written = read_json(tmp_path / "data/metrics/12_x.json")
    assert written["recall"] == {"value": 0.7, "floor": 0.8, "at_most": False, "passed": False}
    assert written["nothing"]["value"] is None
    assert floors.missed() == ["recall", "nothing"]


def test_a_required_floor_stops_mini_only(monkeypatch):
    stage(monkeypatch, "smoke")
    assert not floors.check("AP50", 0.1, 0.8, required=True)
    stage(monkeypatch, "mini")
    with pytest.raises(AssertionError, match="AP50: 0.1 is below floor 0.8"):
        floors.check("AP50", 0.1, 0.8, required=True)


def test_a_repeated_name_replaces_its_row_and_by_hand_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.delenv("ARD_PROVENANCE", raising=False)
    floors.check("AP50", 0.1, 0.8)
    floors.check("AP50", 0.9, 0.8)
    assert len(floors.report()) == 1 and floors.missed() == []
    assert not (tmp_path / "data").exists()
