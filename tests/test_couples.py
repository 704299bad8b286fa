"""The third test set: two individuals of a class in each image, nobody known, each with a region of its own."""

import numpy as np
import pytest

from ard import couples
from ard.dataset import problems
from ard.exemplars import ExemplarConfig, read_mask
from ard.records import Dataset
from ard.release import individuals
from ard.world.collection import SHORT_SIDE, CollectionConfig, choose_individuals
from ard.within_image import lies_on
from tests.toy_attribution import ROOT


@pytest.fixture(scope="module")
def people(world):
    return choose_individuals(world, "cat", "test", 14, CollectionConfig(0, 0, 14, 0.08, 5), [])


def test_nobody_is_in_two_couples_and_every_other_one_shares_its_drawing(people):
    made = couples.couples(people, 6)
    ids = [i.individual_id for couple in made for i in couple]
    assert len(made) == 6 and len(set(ids)) == 12
    assert [a.drawing == b.drawing for a, b in made[:4]] == [True, False] * 2  # later ones have fewer to choose from
    assert all(a.differs(b) >= 2 for a, b in made)
    with pytest.raises(ValueError, match="16 individuals, found 14"):
        couples.couples(people, 8)


def test_both_are_large_and_stand_apart(world, people):
    for n, couple in enumerate(couples.couples(people, 4)):
        scene = couples.couple_scene(world, couple, [n])
        assert {o.individual for o in scene.objects} == set(couple) and scene.medium == "photo"
        for one in scene.objects:
            assert min(one.box[2] - one.box[0], one.box[3] - one.box[1]) >= SHORT_SIDE and one.visible > 0.8
        assert not (scene.objects[0].mask & scene.objects[1].mask).any()


def test_those_who_are_known_stay_out_and_a_seed_draws_the_same_again(world, tmp_path):
    config = CollectionConfig(0, 0, 1, 0.0, 5)
    first = couples.draw_couples(world, config, (), tmp_path / "a")
    known = {first[0].objects[0].individual_id}
    second = couples.draw_couples(world, config, known, tmp_path / "b")
    assert len(first) == 10 and all(len({o.individual_id for o in im.objects}) == 2 for im in first)
    assert known.isdisjoint(o.individual_id for im in second for o in im.objects)
    again = couples.draw_couples(world, config, (), tmp_path / "c")
    assert again == first
    assert all((tmp_path / "a" / im.file).read_bytes() == (tmp_path / "c" / im.file).read_bytes() for im in first)


def test_each_gets_its_own_box_however_sure_the_detector_is_of_the_other(world, tmp_path):
    image = couples.draw_couples(world, CollectionConfig(0, 0, 1, 0.0, 5), (), tmp_path)[0]
    boxes = np.array([o.box for o in image.objects])

    def detect(pixels, class_name):
        return boxes, np.array([0.9, 0.2])

    def segment(pixels, box):
        mask = np.zeros(pixels.shape[:2], bool)
        mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
        return mask

    kept, dropped = couples.couple_exemplars([image], tmp_path, detect, segment, ExemplarConfig(), 10)
    assert not dropped and len({e.exemplar_id for e in kept}) == 2
    for exemplar, one in zip(kept, image.objects):
        assert exemplar.box == one.box and exemplar.facts["individual_id"] == one.individual_id
        assert read_mask(tmp_path / exemplar.mask_file).sum() == exemplar.mask_area
    kept, dropped = couples.couple_exemplars([image], tmp_path, detect, segment, ExemplarConfig(), 1)
    assert len(kept) == 1 and dropped[0].reason == "not needed"
    kept, dropped = couples.couple_exemplars([image], tmp_path, lambda *_: (boxes[:1], np.array([0.9])), segment,
                                             ExemplarConfig(), 10)
    assert len(kept) == 1 and dropped[0].reason == "not found"


def test_the_shipped_set_holds_two_new_individuals_of_a_class_in_each_image(world):
    made = Dataset.load(ROOT / "data/couples")
    known = individuals(Dataset.load(ROOT / "data/mini-coco"), Dataset.load(ROOT / "data/release"))
    gallery, samples = made.gallery["test"], made.samples["test"]
    assert not problems(made) and known.isdisjoint(individuals(made))
    base = {d.group for name in world.classes for d in world.drawings_of(name, "base")}
    group = {d.drawing: d.group for d in world.drawings}
    for image in gallery:
        assert len({o.individual_id for o in image.objects}) == 2 and len({o.class_name for o in image.objects}) == 1
        assert all(min(o.box[2] - o.box[0], o.box[3] - o.box[1]) >= SHORT_SIDE for o in image.objects)
        assert base.isdisjoint(group[o.drawing] for o in image.objects)
    homes = {im.file: im for im in gallery}
    for sample in samples:
        n = lies_on(sample.exemplar_box, homes[sample.exemplar_file].objects)
        assert homes[sample.exemplar_file].objects[n].individual_id == sample.individual_id
    assert len({s.individual_id for s in samples}) >= 80 and len({s.query_file for s in samples}) == len(samples)
