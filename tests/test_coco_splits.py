"""An annotated file dealt into splits: each picture and annotation once, nothing of other classes, the same whatever else is there."""

import pytest

from ard import collection
from ard.coco_splits import split_coco, split_of, write_splits
from ard.config import ConfigError
from ard.dataset import problems
from ard.files import atomic_write_json
from ard.records import Dataset

SHARES = {"train": 6.0, "val": 1.0, "test": 3.0}


def coco(n=300):
    """Each picture shows a cat, the first one Tom; every third a dog as well, every fifth a crowd of dogs, every second a car, and every
    seventh a dog of no width."""
    rows = [(i, 5, {"individual_id": None if i else "Tom"}) for i in range(n)] + [(i, 6, {}) for i in range(0, n, 3)] + [(i, 6, {"iscrowd": 1}) for i in range(0, n, 5)]
    rows += [(i, 7, {}) for i in range(0, n, 2)] + [(n, 7, {})] + [(i, 6, {"bbox": [1, 2, 0, 4]}) for i in range(0, n, 7)]
    return {"images": [{"id": i, "file_name": f"{i:04d}.jpg", "width": 40, "height": 30} for i in range(n + 1)],
            "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog_(animal)"}, {"id": 7, "name": "car"}],
            "annotations": [{"id": k, "image_id": i, "category_id": c, "bbox": [1, 2, 3, 4], "area": 12, **more}
                            for k, (i, c, more) in enumerate(rows)]}


def test_each_picture_and_each_thing_of_the_classes_stands_in_one_split():
    splits = split_coco(coco(), ["cat", "dog"], SHARES)
    images = [im["id"] for split in splits.values() for im in split["images"]]
    assert sorted(images) == list(range(300)), "the one with nothing but a car is left out"
    things = [a for split in splits.values() for a in split["annotations"]]
    assert len({a["individual_id"] for a in things}) == len(things) == 300 + 100 and "Tom" in {a["individual_id"] for a in things}
    for split in splits.values():
        assert {a["image_id"] for a in split["annotations"]} == {im["id"] for im in split["images"]}
        assert [c["name"] for c in split["categories"]] == ["cat", "dog"]
    sizes = [len(split["images"]) / 300 for split in splits.values()]
    assert sizes == pytest.approx([0.6, 0.1, 0.3], abs=0.08)


def test_a_picture_stays_in_its_split_when_others_come_or_go():
    few, many = (split_coco(coco(n), ["cat"], SHARES) for n in (100, 300))
    for split in SHARES:
        assert {im["id"] for im in few[split]["images"]} == {im["id"] for im in many[split]["images"] if im["id"] < 100}
    assert any(split_of(f"{i}", SHARES) != split_of(f"{i}", SHARES, seed=1) for i in range(20))
    assert {split_of(f"{i}", {"train": 0, "val": 2, "test": 0}) for i in range(50)} == {"val"}


def test_what_cannot_be_dealt_is_named():
    with pytest.raises(ConfigError, match="no class 'dgo' among the categories; did you mean 'dog'"):
        split_coco(coco(3), ["dgo"], SHARES)
    some = split_coco(coco(30), ["dgo", "dog"], SHARES, missing=True)
    assert {c["name"] for split in some.values() for c in split["categories"]} == {"dog"}
    for shares in ({}, {"train": 0.0}, {"train": 2.0, "test": -1.0}):
        with pytest.raises(ConfigError, match="shares of the splits"):
            split_coco(coco(3), ["cat"], shares)


def test_a_split_without_a_picture_is_not_written(tmp_path):
    atomic_write_json(tmp_path / "all.json", coco(9))
    assert set(write_splits(tmp_path / "all.json", tmp_path, ["cat"], {"train": 1, "val": 0})) == {"train"}
    assert not (tmp_path / "instances_val.json").exists()


def test_the_written_files_are_a_collection_whose_individuals_the_dataset_finds(tmp_path):
    atomic_write_json(tmp_path / "all.json", coco(30))
    sizes = write_splits(tmp_path / "all.json", tmp_path, ["cat", "dog"], SHARES)
    assert sum(sizes.values()) == 30
    for split in sizes:
        pairs, images = collection.pairs(tmp_path, split, "pictures"), collection.gallery(tmp_path, split, "pictures")
        assert {p.file for p in pairs} == {im.file for im in images}
        known = {o.individual_id for im in images for o in im.objects}
        assert {p.facts["individual_id"] for p in pairs} <= known
        assert not problems(Dataset(tmp_path, {split: ()}, {split: images}))
