import numpy as np
import pytest

from ard import collection
from ard.exemplars import take
from ard.files import FileError, atomic_write_json
from ard.world import World
from ard.world.collection import CollectionConfig, build_collection


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("collection")
    build_collection(World.load("data/world"), CollectionConfig(1, 1, 1, 0.0, 0), target)
    return target


def test_each_object_gives_a_pair_with_its_facts_and_truth(folder):
    pairs, truths = collection.pairs(folder, "test"), collection.truths(folder, "test")
    assert len(pairs) == 10 and {p.class_name for p in pairs} == set(World.classes)
    for pair in pairs:
        assert set(pair.facts) == {"split", "individual_id", "drawing", "designer", "context"}
        truth = truths[pair.exemplar_id]
        x0, y0, x1, y1 = map(int, truth.box)
        assert truth.mask.shape == (64, 64) and truth.mask[y0:y1, x0:x1].sum() == truth.mask.sum() > 0
        assert pair.file == f"collection/images/{pair.exemplar_id.rsplit('-', 1)[1]}.png"


def test_the_gallery_holds_fillers_too_but_they_are_no_pairs(folder):
    images = collection.gallery(folder, "train")
    assert {im.file for im in images} == {p.file.replace("collection/", "") for p in collection.pairs(folder, "train")}
    assert all(not o.individual_id for im in images for o in im.objects if o.class_name == "filler")


@pytest.mark.parametrize("named", [{"file_name": "val/a.jpg"}, {"coco_url": "http://here/val/a.jpg"}], ids=["COCO", "LVIS"])
def test_plain_coco_gives_each_class_of_an_image_once_and_polygons_become_masks(tmp_path, named):
    square = [[10, 10, 20, 10, 20, 20, 10, 20]]
    rows = [{"id": n, "image_id": 1, "category_id": c, "bbox": [10, 10, 10, 10], "area": area, "segmentation": square}
            for n, c, area in ((1, 5, 50), (2, 5, 100), (3, 6, 10))]
    atomic_write_json(tmp_path / "instances_val.json", {
        "images": [{"id": 1, "width": 64, "height": 48} | named], "annotations": rows,
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "teddy bear"}]})
    pairs = collection.pairs(tmp_path, "val")
    assert [p.exemplar_id for p in pairs] == ["cat-val_a", "teddy-bear-val_a"] and pairs[0].file == "collection/images/val/a.jpg"
    assert [im.file for im in collection.gallery(tmp_path, "val", "collection/images")] == [pairs[0].file]
    assert pairs[0].facts["individual_id"] == "val-annotation-2", "the largest cat stands for its class"
    mask = collection.truths(tmp_path, "val")["cat-val_a"].mask
    assert mask.shape == (48, 64) and np.array_equal(np.flatnonzero(mask.any(0)), np.arange(10, 20))


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(FileError, match="instances_val.json"):
        collection.pairs(tmp_path, "val")
    atomic_write_json(tmp_path / "instances_val.json", {"images": []})
    with pytest.raises(FileError, match="no 'images' in it"):
        collection.pairs(tmp_path, "val")


def test_take_keeps_to_its_limits():
    from ard.exemplars import Exemplar
    everyone = [Exemplar(f"{c}-{s}-{n}", "", c, (0, 0, 1, 1), 1.0, "", 1, {"split": s})
                for c in ("cat", "dog") for s in ("train", "test") for n in range(3)]
    assert [e.exemplar_id for e in take(everyone, {"train": 2, "test": 1}, ["cat"])] == ["cat-train-0", "cat-train-1",
                                                                                         "cat-test-0"]
    with pytest.raises(ValueError, match="raise limit_per_class"):
        take(everyone, {"val": 3}, ["cat"])
