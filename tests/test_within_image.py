"""Within-image accuracy against cases counted by hand."""

from dataclasses import replace

import pytest

from ard.records import Attribution, GroundTruth
from ard.within_image import found, lies_on, within_image
from tests.toy_attribution import toy_dataset

LEFT, RIGHT = (0.0, 0.0, 20.0, 20.0), (30.0, 0.0, 50.0, 20.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Each test image holds its individual on the left and a second one of the class, of another drawing, on the right."""
    made = toy_dataset(tmp_path_factory.mktemp("toy"), per_class=1)
    gallery = []
    for image in made.gallery["test"]:
        own = replace(image.objects[0], box=LEFT)
        other = GroundTruth(own.class_name, f"{own.individual_id}-2", f"{own.drawing}-2", "", RIGHT)
        gallery.append(replace(image, objects=(own, other)))
    return replace(made, gallery={**made.gallery, "test": tuple(gallery)})


def answers(dataset, boxes):
    """The n-th query's box in every image is the n-th of `boxes`, again and again."""
    return {s.sample_id: [Attribution(im.image_id, boxes[n % len(boxes)], 0.5) for im in dataset.gallery["test"]]
            for n, s in enumerate(dataset.samples["test"])}


def test_a_box_lies_on_what_it_overlaps_most():
    objects = [GroundTruth("cat", "a", "", "", LEFT), GroundTruth("cat", "b", "", "", RIGHT)]
    assert lies_on((1, 1, 20, 20), objects) == 0 and lies_on((29, 0, 50, 20), objects) == 1
    assert lies_on((0, 0, 50, 20), objects) is None and lies_on((10, 0, 40, 20), objects) is None


def test_right_other_neither_and_none(dataset):
    sample = dataset.samples["test"][0]
    image = next(im for im in dataset.gallery["test"] if im.file == sample.exemplar_file)
    cases = {LEFT: "right", RIGHT: "other", (0.0, 30.0, 9.0, 40.0): "neither", None: "no box"}
    for box, where in cases.items():
        assert found(sample, [Attribution(image.image_id, box, 1.0)], image) == where


def test_objects_of_other_classes_are_nobody(dataset):
    sample = dataset.samples["test"][0]
    image = next(im for im in dataset.gallery["test"] if im.file == sample.exemplar_file)
    beside = replace(image, objects=(image.objects[0], replace(image.objects[1], class_name="something else")))
    assert found(sample, [Attribution(image.image_id, RIGHT, 1.0)], beside) == "neither"


def test_shares_are_those_counted_by_hand(dataset):
    n = len(dataset.samples["test"])
    rows = {row["method"]: row for row in within_image({
        "ARD": answers(dataset, [LEFT]), "wrong": answers(dataset, [RIGHT]), "no box": answers(dataset, [None]),
        "mixed": answers(dataset, [LEFT, RIGHT, (0.0, 30.0, 9.0, 40.0)])}, dataset)}
    assert (rows["ARD"]["within_image"], rows["wrong"]["within_image"], rows["wrong"]["other"]) == (1, 0, 1)
    assert rows["no box"]["no_box"] == 1 and rows["no box"]["of_two"] is None
    counts = [len(range(k, n, 3)) for k in range(3)]
    mixed = rows["mixed"]
    assert [mixed[k] for k in ("within_image", "other", "neither")] == pytest.approx([c / n for c in counts], abs=1e-6)
    assert mixed["of_two"] == pytest.approx(counts[0] / (counts[0] + counts[1]), abs=1e-6)
    assert mixed["same_drawing"] is None and mixed["other_drawing"] == mixed["of_two"]
    assert mixed["ours_minus"] == pytest.approx(1 - counts[0] / n, abs=1e-6) and rows["ARD"]["ours_minus"] == 0
    assert mixed["n_queries"] == n and mixed["n_images"] == len({s.exemplar_file for s in dataset.samples["test"]})
