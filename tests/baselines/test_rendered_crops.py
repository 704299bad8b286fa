"""Rendered crops: different base individuals, each with its queries, none of an exemplar's drawings."""

import numpy as np
import pytest

from ard.baselines.abc_rows import ENTRIES, beside
from ard.baselines.rendered_crops import rendered_crops
from ard.world import World


def test_each_individual_has_one_photo_and_its_queries(world):
    found = rendered_crops(world, 12, 2, seed=0)
    assert len(found.real) == 12 and len(found.queries) == 24 and found.owner.tolist() == [i // 2 for i in range(24)]
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 and min(picture.shape) >= 1 for picture in found.real)
    again = rendered_crops(world, 12, 2, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(found.queries, again.queries))
    assert not np.array_equal(found.real[0], rendered_crops(world, 12, 2, seed=1).real[0])


def test_only_base_individuals_are_drawn(world, monkeypatch):
    asked = []
    draw = World.individual
    monkeypatch.setattr(World, "individual", lambda self, name, split, rng: asked.append(split) or draw(self, name, split, rng))
    rendered_crops(world, 10, 1, seed=0)
    assert set(asked) == {"base"}


def test_every_second_query_is_blemished(world):
    plain = rendered_crops(world, 4, 2, seed=0)
    black = rendered_crops(world, 4, 2, seed=0, blemish=lambda scenes, seed: np.zeros((len(scenes), 64, 64, 3), np.uint8))
    for i, (a, b) in enumerate(zip(plain.queries, black.queries)):
        assert np.array_equal(a, b) if i % 2 == 0 else not b.any()


def test_too_many_are_refused(world, monkeypatch):
    one = world.individual("cat", "base", np.random.default_rng(0))
    monkeypatch.setattr(World, "individual", lambda *_: one)
    with pytest.raises(ValueError, match="do not give 2 different individuals, only 1"):
        rendered_crops(world, 2, 1, seed=0)


def test_rendered_pairs_stand_beside_ad_plus():
    def pairs(exemplars, queries, owner, value):
        return {"real": np.full((2, exemplars, 3), value), "synthetic": np.full((2, queries, 3), value),
                "owner": np.array(owner), "kind": np.full(queries, value)}

    both = beside(pairs(2, 3, [0, 1, 1], 0), pairs(1, 2, [0, 0], 1))
    assert both["real"].shape == (2, 3, 3) and both["synthetic"].shape == (2, 5, 3)
    assert both["owner"].tolist() == [0, 1, 1, 2, 2] and both["kind"].tolist() == [0, 0, 0, 1, 1]
    assert both["real"][:, 2].all() and not both["real"][:, :2].any()


def test_what_a_row_is_taught_it_declares():
    known = {entry.name: entry for entry in ENTRIES}
    taught = [name for name, entry in known.items() if "rendered" in entry.given]
    assert taught == ["class filter + AbC, efficientnet, rendered pairs"]
    assert "world" in known[taught[0]].reads and "pairs" in known["AbC, unet"].given and "pairs" not in known["class filter + unet"].given
