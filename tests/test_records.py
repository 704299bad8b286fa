"""`ard.records`: a dataset survives its files, opens in pycocotools, and bad rows are named, counted and left out."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from ard.records import (
    Dataset,
    Gallery,
    GalleryImage,
    GroundTruth,
    RecordError,
    Sample,
    from_row,
    images_from_coco,
    images_to_coco,
    negatives,
    positive,
    read_image,
)


def make_image(i, class_name="cat", more=()):
    own = GroundTruth(class_name, f"ind{i}", f"draw{i}", "noto", (4.5, 4.0, 40.0, 44.25))
    return GalleryImage(f"images/{i}.png", f"x{i}", (own, *more))


def make_sample(i, q=0, **change):
    values = dict(
        sample_id=f"s{i}-{q}", query_file=f"queries/{i}-{q}.png", query_box=(1.0, 2.0, 30.0, 40.0),
        prompt="a photo of a cat", class_name="cat", concept_id=f"c{i}", exemplar_file=f"images/{i}.png",
        exemplar_box=(4.5, 4.0, 40.0, 44.0), template=q, context="beach", medium="photo", split="test",
        individual_id=f"ind{i}", drawing=f"draw{i}", designer="noto")
    return Sample(**(values | change))


@pytest.fixture
def dataset(tmp_path):
    filler = GroundTruth("apple", "", "apple-noto", "noto", (50.0, 50.0, 60.0, 60.0))
    images = (make_image(0), make_image(1, more=(filler,)), make_image(2, "dog"))
    data = Dataset(tmp_path, {"test": (make_sample(0), make_sample(1))}, {"test": images})
    data.save()
    return data


def test_round_trip_is_exact(dataset):
    again = Dataset.load(dataset.root)
    assert again == dataset


def test_pycocotools_opens_the_gallery(dataset):
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(dataset.root / "gallery_test.json"))
    assert len(coco.imgs) == 3 and len(coco.anns) == 4
    assert {c["name"] for c in coco.loadCats(coco.getCatIds())} == {"cat", "dog", "apple"}
    first = coco.loadAnns(coco.getAnnIds(imgIds=[1]))[0]
    assert first["bbox"] == [4.5, 4.0, 35.5, 40.25] and first["individual_id"] == "ind0"
    assert coco.annToMask(first | {"segmentation": [[4, 4, 40, 4, 40, 44, 4, 44]]}).shape == (64, 64)


def test_positive_and_negatives_split_the_gallery(dataset):
    sample, images = dataset.samples["test"][1], dataset.gallery["test"]
    assert positive(sample, images).image_id == "x1"
    assert [im.image_id for im in negatives(sample, images)] == ["x0", "x2"]
    with pytest.raises(RecordError, match="images/9.png is not in the gallery"):
        positive(make_sample(9), images)


@pytest.mark.parametrize("change, reason", [
    ({"query_box": [1, 2, 1, 5]}, "query_box: expected a box"),
    ({"query_box": [1, 2, 3]}, "query_box: expected a box"),
    ({"query_box": [0, 0, float("nan"), 3]}, "query_box: expected a box"),
    ({"template": "3"}, "template: expected int, found '3'"),
    ({"prompt": None}, "prompt: expected str"),
    ({"colour": 1}, r"unknown \['colour'\]"),
])
def test_bad_fields_are_named(change, reason):
    with pytest.raises(RecordError, match=reason):
        from_row(Sample, dataclasses.asdict(make_sample(0)) | change, "here")


def test_bad_lines_are_left_out_and_listed(dataset):
    path = dataset.root / "samples_test.jsonl"
    row = dataclasses.asdict(make_sample(2))
    del row["prompt"]
    path.write_text(path.read_text() + json.dumps(row) + "\n{torn")
    with pytest.warns(UserWarning, match="2 of 4 rows left out"):
        again = Dataset.load(dataset.root)
    assert again.samples == dataset.samples
    assert len(again.bad) == 2 and any("missing fields ['prompt']" in b for b in again.bad)


def test_nothing_usable_is_an_error(dataset, tmp_path):
    (dataset.root / "samples_test.jsonl").write_text("")
    with pytest.raises(RecordError, match="samples_test.jsonl: no usable Sample"):
        Dataset.load(dataset.root)
    with pytest.raises(RecordError, match="found none"):
        Dataset.load(tmp_path / "nowhere")
    with pytest.raises(RecordError, match="not a gallery in COCO form"):
        images_from_coco({"images": []}, "g.json")


def test_images_are_read_or_named(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 5, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == pixels).all()
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    for name, reason in (("b.png", "not a readable image"), ("c.png", "not found")):
        with pytest.raises(RecordError, match=f"{name}: .*{reason}"):
            read_image(tmp_path / name)


def test_plain_coco_is_read_without_individuals():
    coco = {"images": [{"id": 7, "file_name": "a/b.jpg", "width": 640, "height": 480}],
            "categories": [{"id": 3, "name": "dog"}],
            "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "individual_id": None}]}
    dog = GroundTruth("dog", "", "", "", (1.0, 2.0, 4.0, 6.0))
    assert images_from_coco(coco, "here") == (GalleryImage("a/b.jpg", "a/b", (dog,), 640, 480),)
    with pytest.raises(RecordError, match="here annotation 1: box"):
        images_from_coco(coco | {"annotations": [coco["annotations"][0] | {"bbox": [1, 2, 0, 4]}]}, "here")


def test_gallery_loads_each_image_once():
    calls = []
    gallery = Gallery([make_image(0), make_image(1)], lambda file: calls.append(file) or np.zeros((2, 2, 3), np.uint8))
    for _ in range(3):
        [gallery.pixels(image) for image in gallery]
    assert calls == ["images/0.png", "images/1.png"]


def test_coco_round_trip_keeps_order_and_empty_images():
    images = (make_image(3), GalleryImage("images/e.png", "e", ()), make_image(1))
    assert images_from_coco(images_to_coco(images), "here") == images


@pytest.mark.parametrize("change, reason", [
    ({"query_box": [True, 2, 9, 5]}, "query_box: expected a box"),
    ({"query_box": [1, 5, 9, 5]}, "query_box: expected a box"),
    ({"query_box": [1, 5, 9, 2]}, "query_box: expected a box"),
    ({"template": True}, "template: expected int, found True"),
])
def test_truth_values_are_no_numbers_and_boxes_have_height(change, reason):
    with pytest.raises(RecordError, match=reason):
        from_row(Sample, dataclasses.asdict(make_sample(0)) | change, "here")


def test_coco_keeps_every_digit_of_a_box_and_its_area():
    low, high = np.random.default_rng(0).uniform([[[0.0]], [[32.0]]], [[[32.0]], [[64.0]]], (2, 500, 2)).round(2).tolist()
    boxes = [(*a, *b) for a, b in zip(low, high) if a[0] < b[0] and a[1] < b[1]]
    assert any(x0 + (x1 - x0) != x1 for x0, _, x1, _ in boxes), "a width of its own would lose digits"
    image = GalleryImage("a.png", "a", tuple(GroundTruth("cat", "i", "d", "g", box) for box in boxes))
    coco = images_to_coco([image])
    assert images_from_coco(coco, "here") == (image,)
    assert [a["area"] for a in coco["annotations"]] == pytest.approx([a["bbox"][2] * a["bbox"][3] for a in coco["annotations"]])
