"""More of each class in validation's gallery: strangers all, told apart as exemplars are, and asked about by nobody."""

import itertools

import numpy as np
import pytest

from ard.crowd import crowded, newcomers
from ard.records import Dataset, read_image
from ard.release import individuals
from ard.rendered import individual_of
from ard.world.collection import grey_distance, grey_thumbnail
from tests.toy_attribution import ROOT

FAR = 0.08  # `world.min_grey_distance`


@pytest.fixture(scope="module")
def dataset():
    return Dataset.load(ROOT / "data/mini-coco")


def test_the_gallery_grows_by_as_many_strangers_of_each_class(dataset, world, tmp_path):
    made = crowded(dataset, world, "val", tmp_path, 2, FAR)
    mine, more = made.gallery["val"][:40], made.gallery["val"][40:]
    assert mine == dataset.gallery["val"] and made.samples == dataset.samples and made.gallery["test"] == dataset.gallery["test"]
    names = sorted({s.class_name for s in dataset.samples["val"]})
    assert [image.objects[0].class_name for image in more] == [name for name in names for _ in range(2)]
    strangers = {o.individual_id for image in more for o in image.objects}
    assert len(strangers) == 2 * len(names) and not strangers & individuals(dataset)
    assert {o.drawing for image in more for o in image.objects} <= {d.drawing for n in names for d in world.drawings_of(n, "val")}
    for image in more:
        x0, y0, x1, y1 = image.objects[0].box
        assert made.pixels(image.file).shape == (64, 64, 3) and min(x1 - x0, y1 - y0) >= 24
    again = crowded(dataset, world, "val", tmp_path / "again", 2, FAR)
    assert all(np.array_equal(read_image(a.file), read_image(b.file)) for a, b in zip(more, again.gallery["val"][40:]))


def test_all_of_a_class_can_be_told_apart(dataset, world):
    there = list(dict.fromkeys(individual_of(s) for s in dataset.samples["val"] if s.class_name == "dog"))
    people = [*there, *newcomers(world, "dog", "val", there, individuals(dataset), 6, FAR, np.random.default_rng(0))]
    assert len(people) == 10
    for one, other in itertools.combinations(people, 2):
        assert one.differs(other) >= 2 and grey_distance(grey_thumbnail(world, one), grey_thumbnail(world, other)) >= FAR


def test_test_is_left_alone_and_a_class_can_be_too_small(dataset, world, tmp_path):
    with pytest.raises(ValueError, match="test is asked among its own images"):
        crowded(dataset, world, "test", tmp_path, 2, FAR)
    with pytest.raises(ValueError, match="of 2 more dog individuals"):
        newcomers(world, "dog", "val", [], set(), 2, 1.0, np.random.default_rng(0))
