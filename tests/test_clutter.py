"""Large pictures of several things: the one asked about is whole and small, the others are strangers, and every box is where it says."""

from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest

from ard.clutter import ClutterConfig, area_share, clutter_scene, cluttered, mirrored, retaken
from ard.records import Dataset, positive, read_image
from ard.release import individuals
from ard.rendered import individual_of
from ard.world.collection import SHORT_SIDE, grey_distance, grey_thumbnail
from ard.world.world import Placement
from tests.toy_attribution import ROOT

CONFIG = ClutterConfig(pool=3)


@pytest.fixture(scope="module")
def known():
    return Dataset.load(ROOT / "data/mini-coco")


@pytest.fixture(scope="module")
def made(known, world, tmp_path_factory):
    return cluttered(known, world, "val", tmp_path_factory.mktemp("clutter"), CONFIG)


def test_every_picture_is_large_and_holds_its_individual_among_others(known, made):
    assert len(made.gallery["val"]) == len(known.gallery["val"])
    for sample, before in zip(made.samples["val"], known.samples["val"], strict=True):
        home = positive(sample, made.gallery["val"])
        own, x0, y0, x1, y1 = home.objects[0], *home.objects[0].box
        assert own.individual_id == sample.individual_id and own.box == sample.exemplar_box
        assert min(x1 - x0, y1 - y0) >= SHORT_SIDE and 0 <= x0 and x1 <= home.width == home.height == 128 and 0 <= y0 and y1 <= 128
        assert 2 <= len(home.objects) <= 4 and made.pixels(home.file).shape == (128, 128, 3)
        assert replace(sample, exemplar_file="", exemplar_box=own.box) == replace(before, exemplar_file="", exemplar_box=own.box)


def test_nobody_asked_about_hides(known, world):
    people = list(dict.fromkeys(individual_of(s) for s in known.samples["val"]))
    pools = {name: cycle([p for p in people if p.class_name == name]) for name in world.classes}
    config = replace(CONFIG, area=0.12)  # so large that they cover one another
    for n, person in enumerate(people[::3]):
        scene = clutter_scene(world, person, pools, [n], config)
        assert scene.objects[0].individual == person and scene.objects[0].visible > 0.8
        assert all(o.visible >= 0.35 for o in scene.objects) and scene.medium == "photo"


def test_things_are_small_and_some_pictures_hold_two_of_a_class(made):
    pictures = made.gallery["val"]
    shares = [area_share(image) for image in pictures]
    assert 0.035 <= min(shares) and 0.06 <= np.median(shares) <= 0.13  # of boxes; of masks about two thirds of that
    twins = [sum(o.class_name == image.objects[0].class_name for o in image.objects) > 1 for image in pictures]
    assert 0.1 <= np.mean(twins) <= 0.45
    assert all(len({o.class_name for o in image.objects[1:]}) == len(image.objects) - 1 for image in pictures)


def test_the_others_are_strangers_who_can_be_told_from_everybody_asked_about(known, made, world):
    asked = {s.individual_id: individual_of(s) for s in known.samples["val"]}
    there = {o.individual_id: o for image in made.gallery["val"] for o in image.objects[1:]}
    assert there and not there.keys() & individuals(known)
    for stranger in there.values():
        person = individual_of(replace(known.samples["val"][0], class_name=stranger.class_name, individual_id=stranger.individual_id,
                                       designer=stranger.designer))
        assert stranger.drawing in {d.drawing for d in world.drawings_of(stranger.class_name, "val")}
        for one in asked.values():
            if one.class_name == stranger.class_name:
                apart = grey_distance(grey_thumbnail(world, one), grey_thumbnail(world, person))
                assert person.differs(one) >= 2 and apart >= CONFIG.min_grey_distance


def test_who_stands_in_another_split_is_no_stranger(known, world, made, tmp_path):
    elsewhere = replace(known, gallery={**known.gallery, "train": made.gallery["val"]})
    others = {o.individual_id for image in made.gallery["val"] for o in image.objects[1:]}
    again = cluttered(elsewhere, world, "val", tmp_path, CONFIG)
    assert not others & {o.individual_id for image in again.gallery["val"] for o in image.objects[1:]}


def test_pictures_are_the_same_each_time_and_others_with_another_seed(known, world, made, tmp_path):
    few = replace(known, samples={"val": known.samples["val"][:30]})
    one, two, other = (cluttered(few, world, "val", tmp_path / name, replace(CONFIG, seed=seed))
                       for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    pixels = [[read_image(im.file) for im in d.gallery["val"]] for d in (one, two, other)]
    assert all(np.array_equal(a, b) for a, b in zip(*pixels[:2], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(pixels[0], pixels[2], strict=True))


def test_the_place_in_the_gallery_tells_nothing(made):
    """Names are random and images stand in their order, so neither class nor order of making can be read off it."""
    files = [image.file for image in made.gallery["val"]]
    assert files == sorted(files) and files != list(dict.fromkeys(s.exemplar_file for s in made.samples["val"]))
    order = [image.objects[0].class_name for image in made.gallery["val"]]
    assert sum(a == b for a, b in zip(order, order[1:])) < 15


def test_a_class_can_have_too_few(known, world, tmp_path):
    with pytest.raises(ValueError, match="crowd: found"):
        cluttered(known, world, "val", tmp_path, replace(CONFIG, min_grey_distance=1.0))


def test_which_way_somebody_looks_is_seen(world):
    """Of 60 random individuals in photos; those that look alike both ways are left out."""
    rng, right, asked = np.random.default_rng(0), 0, 0
    for n in range(60):
        person, turned = world.individual(world.classes[n % 10], "base", rng), bool(n % 2)
        thumbnail = grey_thumbnail(world, person)
        if np.sqrt(((thumbnail - thumbnail[:, ::-1]) ** 2).mean()) < 0.1:
            continue
        place = Placement(0.2, 0.5, 0.55, turned, float(rng.normal(0, 5)))
        scene = world.scene(rng, [person], medium="photo", fillers=0, placements=[place])
        right, asked = right + (mirrored(world, person, scene.image, scene.objects[0].box) == turned), asked + 1
    assert asked > 20 and right / asked > 0.95, (right, asked)


def test_individuals_look_the_way_they_did(known, made, world):
    kept = []
    for image in made.gallery["val"]:
        sample, n = next((s, n) for n, s in enumerate(made.samples["val"]) if s.exemplar_file == image.file)
        before = known.samples["val"][n]
        person = individual_of(sample)
        thumbnail = grey_thumbnail(world, person)
        if np.sqrt(((thumbnail - thumbnail[:, ::-1]) ** 2).mean()) >= 0.1:
            kept.append(mirrored(world, person, made.pixels(image.file), sample.exemplar_box)
                        == mirrored(world, person, known.pixels(before.exemplar_file), before.exemplar_box))
    assert len(kept) > 15 and np.mean(kept) > 0.9


def test_a_photo_turned_around_or_taken_again(known, world, tmp_path):
    with pytest.raises(ValueError, match="expected mirrored or again"):
        retaken(known, world, "val", tmp_path, "upside down")
    for way in ("mirrored", "again"):
        other = retaken(known, world, "val", tmp_path, way)
        assert len(other.gallery["val"]) == len(known.gallery["val"]) and other.gallery["test"] == known.gallery["test"]
        for a, b in zip(known.samples["val"][::20], other.samples["val"][::20], strict=True):
            old, new = positive(a, known.gallery["val"]), positive(b, other.gallery["val"])
            assert new.objects[0].individual_id == a.individual_id and b.exemplar_box == new.objects[0].box
            assert replace(b, exemplar_file="", exemplar_box=a.exemplar_box) == replace(a, exemplar_file="")
            turned = np.array_equal(other.pixels(new.file), known.pixels(old.file)[:, ::-1])
            assert turned == (way == "mirrored")
            if turned:
                x0, y0, x1, y1 = old.objects[0].box
                assert new.objects[0].box == (64 - x1, y0, 64 - x0, y1)
