import numpy as np
import pytest
import torch

from ard.detector import rendered_pairs as module
from ard.detector.features import PACKED, REGION
from ard.detector.rendered_pairs import joined, rendered_pairs
from ard.rendered import base_individuals
from ard.world import World


@pytest.fixture(scope="module")
def pairs(world):
    return rendered_pairs(world, 12, views=2, seed=0)


def test_pairs_are_of_base_drawings_and_no_individual_comes_twice(world):
    people = base_individuals(world, 60, np.random.default_rng(0))
    assert len({p.individual_id for p in people}) == 60
    drawings = {d.drawing: d for d in world.drawings}
    for person in people:
        assert drawings[person.drawing].splits == ("base",) or "base" in drawings[person.drawing].splits
    assert {p.class_name for p in people} == set(world.classes)


def test_each_individual_is_one_image_and_its_queries_point_to_it(pairs):
    assert pairs.gallery.shape == (2, 12, PACKED) and pairs.queries.shape == (2, 24, REGION)
    assert pairs.source.tolist() == np.repeat(np.arange(12), 2).tolist()
    assert all(pairs.names[row] in pairs.shown[image] for row, image in enumerate(pairs.source))


def test_boxes_are_mirrored_with_the_pictures(pairs):
    straight, mirrored = pairs.boxes
    assert np.allclose(straight[:, 0], 1 - mirrored[:, 0], atol=1e-6) and np.allclose(straight[:, 1:], mirrored[:, 1:])
    assert not torch.equal(pairs.gallery[0], pairs.gallery[1])


def test_a_killed_run_goes_on_and_gives_the_same(world, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    whole = rendered_pairs(world, 4, 1, 3, tmp_path / "a")
    rendered_pairs(world, 2, 1, 3, tmp_path / "b")
    made = {f.name for f in (tmp_path / "b").iterdir()}
    parts = rendered_pairs(world, 4, 1, 3, tmp_path / "b")
    assert len(made) == 1 and torch.equal(whole.gallery, parts.gallery) and torch.equal(whole.queries, parts.queries)


def test_joined_keeps_every_query_with_its_own_image(pairs):
    both = joined(pairs, pairs)
    assert both.source.tolist() == [*pairs.source, *(pairs.source + 12)]
    row = 24 + 5
    assert torch.equal(both.gallery[:, both.source[row]], pairs.gallery[:, pairs.source[5]])
    assert both.names[row] == pairs.names[5] and both.boxes.shape == (2, 48, 4)


def test_too_many_individuals_are_refused(world, monkeypatch):
    monkeypatch.setattr(type(world), "individual", lambda *a: individual)
    individual = World.load("data/world").drawings_of("cat", "base") and _one(world)
    with pytest.raises(ValueError, match="only 1"):
        base_individuals(world, 2, np.random.default_rng(0))


def _one(world):
    from ard.world import Individual

    drawing = world.drawings_of("cat", "base")[0]
    return Individual("cat", drawing.drawing, drawing.designer, "natural", "plain", "none")


def test_every_second_query_is_blemished_and_nothing_else(world, pairs):
    def inverted(scenes, seed):
        return np.stack([255 - scene.image for scene in scenes])

    blemished = rendered_pairs(world, 12, views=2, seed=0, blemish=inverted)
    assert torch.equal(blemished.gallery, pairs.gallery) and np.array_equal(blemished.boxes, pairs.boxes)
    assert torch.equal(blemished.queries[:, ::2], pairs.queries[:, ::2])
    assert not any(torch.equal(a, b) for a, b in zip(blemished.queries[0, 1::2], pairs.queries[0, 1::2]))
