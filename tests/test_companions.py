"""A second individual of the class in photos: never instead of the source, never in the base models' way, never on test."""

from dataclasses import replace

import numpy as np
import pytest

from ard.companions import VISIBLE, CompanionWorld, companion, couples_of
from ard.detector.rendered_pairs import rendered_pairs
from ard.geometry import to_xyxy
from ard.records import Attribution, positive
from ard.within_image import found
from ard.world.world import SIZE
from tests.toy_attribution import ROOT, toy_dataset


@pytest.fixture(scope="module")
def person(world):
    return world.individual("cat", "base", np.random.default_rng(3))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_dataset(tmp_path_factory.mktemp("toy"), per_class=1)


def test_a_companion_is_another_one_of_the_class_and_often_of_its_drawing(world, person):
    rng = np.random.default_rng(0)
    others = [companion(world, person, "base", rng) for _ in range(60)]
    assert all(o.class_name == "cat" and person.differs(o) >= 2 for o in others)
    assert {o.drawing for o in others} <= {d.drawing for d in world.drawings_of("cat", "base")}
    assert 20 <= sum(o.drawing == person.drawing for o in others) <= 50


def test_beside_who_is_alone_in_a_photo_there_stands_one_of_its_class(person):
    crowded, rng = CompanionWorld(ROOT / "data/world", 1.0), np.random.default_rng(1)
    for _ in range(20):
        scene = crowded.scene(rng, [person], medium="photo")
        assert scene.objects[0].individual == person and scene.objects[0].visible >= VISIBLE
        assert [o.class_name for o in scene.objects[1:]] in (["cat"], [])  # a companion may be hidden, the source not
    assert len(crowded.scene(rng, [person], medium="oil painting", fillers=0).objects) == 1
    assert len(crowded.scene(rng, [person], fillers=0).objects) == 1  # a query, whatever medium is drawn for it


def test_who_stands_in_front_does_not_tell_which_is_the_source(person):
    crowded, rng = CompanionWorld(ROOT / "data/world", 1.0), np.random.default_rng(4)
    scenes = [crowded.scene(rng, [person], medium="photo", fillers=0) for _ in range(200)]
    hidden = [[o.visible < 0.95 for o in made.objects] for made in scenes if len(made.objects) == 2]
    behind, before = np.mean([own for own, _ in hidden]), np.mean([other for _, other in hidden])
    assert behind > 0.1 and before > 0.1, (behind, before)


def test_without_a_share_every_picture_is_the_mini_worlds(world):
    plain, same = rendered_pairs(world, 3, 1, 0), rendered_pairs(CompanionWorld(ROOT / "data/world", 0.0), 3, 1, 0)
    assert (plain.gallery == same.gallery).all() and (plain.queries == same.queries).all()


def test_a_share_of_the_photos_has_one(person):
    some, rng = CompanionWorld(ROOT / "data/world", 0.3), np.random.default_rng(2)
    two = [len(some.scene(rng, [person], medium="photo", fillers=0).objects) == 2 for _ in range(120)]
    assert 0.15 < np.mean(two) < 0.45
    with pytest.raises(ValueError, match="share from 0 to 1, found 1.5"):
        CompanionWorld(ROOT / "data/world", 1.5)


def test_what_is_to_be_found_in_a_rendered_pair_is_the_source(monkeypatch):
    crowded, photos, scene = CompanionWorld(ROOT / "data/world", 1.0), [], CompanionWorld.scene

    def watched(self, rng, individuals=None, *more, **told):
        made = scene(self, rng, individuals, *more, **told)
        photos.extend([(individuals[0], made)] if told.get("medium") == "photo" else [])
        return made

    monkeypatch.setattr(CompanionWorld, "scene", watched)
    pairs = rendered_pairs(crowded, 6, 1, 0)
    assert len(photos) == 6 and sum(len(made.objects) == 2 for _, made in photos) >= 5
    for (asked, made), box in zip(photos, to_xyxy(pairs.boxes[0], SIZE, SIZE)):
        own = next(o for o in made.objects if o.individual == asked)
        assert np.allclose(box, own.box, atol=1e-4)


def test_validation_is_asked_which_of_two_it_was(toy, world, tmp_path):
    twos = couples_of(toy, world, "val", tmp_path / "a", seed=1)
    assert twos.gallery["test"] == toy.gallery["test"] and len(twos.gallery["val"]) == len(toy.gallery["val"])
    for before, sample in zip(toy.samples["val"], twos.samples["val"]):
        home = positive(sample, twos.gallery["val"])
        own, other = home.objects
        assert own.individual_id == sample.individual_id != other.individual_id and own.class_name == other.class_name
        assert sample.exemplar_box == own.box and other.drawing in {d.drawing for d in world.drawings_of(own.class_name, "val")}
        assert replace(sample, exemplar_file=before.exemplar_file, exemplar_box=before.exemplar_box) == before
        assert twos.pixels(home.file).shape == (SIZE, SIZE, 3)
        assert found(sample, [Attribution(home.image_id, other.box, 1.0)], home) == "other"


def test_a_seed_draws_the_same_couples_again_and_test_has_none(toy, world, tmp_path):
    first, again = (couples_of(toy, world, "val", tmp_path / name) for name in "ab")
    pairs = zip(first.gallery["val"], again.gallery["val"])
    assert all(a.objects == b.objects and (first.pixels(a.file) == again.pixels(b.file)).all() for a, b in pairs)
    with pytest.raises(ValueError, match="test set of their own"):
        couples_of(toy, world, "test", tmp_path / "c")
