"""More individuals to learn from: of train alone, nobody who is known, and a killed run goes on where it was."""

import pytest

from ard import customize_all
from ard.dataset import problems
from ard.more_individuals import more_individuals
from ard.release import individuals
from ard.world import World
from tests.toy_attribution import ROOT

RECIPE = {
    "images_per_class": 2, "per_class": 1, "min_grey_distance": 0.05,
    "exemplars": {"threshold": 0.001, "min_side": 1.0, "min_fill": 0.0, "min_inside": 0.0},
    "customize": {"modules": "up", "rank": 1, "token_steps": 1, "weight_steps": 1, "batch": 1, "autocast": False, "max_bytes": 60000,
                  "workers": 1, "together": 8},
    "generate": {"sampling_steps": 2, "threshold": 0.001, "min_side": 1.0, "guidance": 3.0}}


@pytest.fixture(scope="module")
def world():
    world = World.load(ROOT / "data/world")
    world.classes = ("cat", "dog")
    return world


def test_they_are_train_s_and_new_and_a_second_call_learns_nothing_again(world, tmp_path, monkeypatch):
    made = more_individuals(tmp_path / "a", world, ROOT / "data/models", RECIPE, set(), 7)
    assert not problems(made) and list(made.samples) == list(made.gallery) == ["train"]
    assert sorted(s.class_name for s in {s.concept_id: s for s in made.samples["train"]}.values()) == ["cat", "dog"]
    drawn = {s.drawing for s in made.samples["train"]}
    assert drawn <= {d.drawing for name in world.classes for d in world.drawings_of(name, "train")}

    monkeypatch.setattr(customize_all, "customize_together", lambda *_: pytest.fail("learned twice"))
    again = more_individuals(tmp_path / "a", world, ROOT / "data/models", RECIPE, set(), 7)
    assert again.samples == made.samples and again.gallery == made.gallery
    monkeypatch.undo()

    known = individuals(made)
    others = more_individuals(tmp_path / "b", world, ROOT / "data/models", RECIPE, known, 7)
    assert others.samples["train"] and not known & {s.individual_id for s in others.samples["train"]}
