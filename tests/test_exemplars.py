import numpy as np
import pytest
from PIL import Image

from ard.exemplars import (Exemplar, ExemplarConfig, Pair, best_box, build_exemplars, load_exemplars, read_mask, reasons,
                           save_exemplars, take)
from ard.files import read_jsonl, write_jsonl

BOX = (10.0, 10.0, 50.0, 50.0)


def detect(image, class_name):
    boxes = {"cat": [BOX, (0, 0, 5, 5)], "bird": [(1, 1, 9, 40)], "cow": []}.get(class_name, [BOX])
    return np.array(boxes, float).reshape(-1, 4), np.linspace(0.9, 0.5, len(boxes))


def segment(image, box):
    mask = np.zeros(image.shape[:2], bool)
    if image[0, 0, 0] == 1:
        return mask
    if image[0, 0, 0] == 2:
        return ~mask
    mask[15:45, 15:45] = True
    return mask


@pytest.fixture
def root(tmp_path):
    for n in range(3):
        Image.fromarray(np.full((64, 64, 3), n, np.uint8)).save(tmp_path / f"{n}.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    return tmp_path


def test_every_pair_ends_in_one_of_the_two_lists_with_its_reason(root):
    pairs = [Pair("a", "0.png", "cat", {"split": "test"}), Pair("b", "0.png", "cow"), Pair("c", "0.png", "bird"),
             Pair("d", "1.png", "dog"), Pair("e", "2.png", "dog"), Pair("f", "torn.png", "cat"), Pair("g", "no.png", "cat")]
    kept, dropped = build_exemplars(pairs, root, detect, segment)
    assert [k.exemplar_id for k in kept] == ["a"] and len(dropped) == 6
    assert kept[0].box == BOX and kept[0].score == 0.9  # R_X is the detected box itself
    assert kept[0].mask_area == 900 and kept[0].facts == {"split": "test"}
    assert reasons(dropped) == {"bad image": 2, "not found": 1, "too small": 1, "mask empty": 1, "mask outside box": 1}
    assert "torn.png" in dropped[4].detail and "no.png" in dropped[5].detail
    assert np.array_equal(read_mask(root / kept[0].mask_file), segment(np.zeros((64, 64, 3), np.uint8), BOX))
    save_exemplars(kept, dropped, root)
    assert load_exemplars(root / "exemplars.jsonl") == (kept, [])
    assert len(read_jsonl(root / "discarded.jsonl")[0]) == 6


def test_a_class_has_no_more_exemplars_than_its_quota_and_a_miss_does_not_count(root):
    pairs = [Pair("a", "torn.png", "cat", {"split": "test"}), *(Pair(f"b{n}", "0.png", "cat", {"split": "test"}) for n in range(3)),
             Pair("c", "0.png", "cat", {"split": "val"}), Pair("d", "0.png", "dog", {"split": "test"})]
    kept, dropped = build_exemplars(pairs, root, detect, segment, quota={"test": 2})
    assert [k.exemplar_id for k in kept] == ["b0", "b1", "d"]
    assert {d.exemplar_id: d.reason for d in dropped} == {"a": "bad image", "b2": "not needed", "c": "not needed"}
    assert not (root / "masks/b2.png").exists()


def test_bad_rows_are_listed(root):
    (root / "exemplars.jsonl").write_text('{"exemplar_id": "x"}\nnot json\n')
    good, bad = load_exemplars(root / "exemplars.jsonl")
    assert not good and len(bad) == 2 and any("x: missing fields" in line for line in bad)
    record = {"exemplar_id": "x", "file": "a.png", "class_name": "cat", "box": [1, 2, 3, 4], "score": 0.5, "mask_file": "m.png",
              "mask_area": 9, "facts": {}}
    for name, value in (("box", [9, 9, 1, 1]), ("box", "1234"), ("score", "high"), ("mask_area", None)):
        write_jsonl(root / "exemplars.jsonl", [{**record, name: value}, record])
        good, bad = load_exemplars(root / "exemplars.jsonl")
        assert len(good) == 1 and len(bad) == 1 and name in bad[0]


def test_a_picture_that_the_detector_refuses_is_one_discard(root):
    def refusing(image, name):
        raise ValueError("expected 64 x 64")

    kept, dropped = build_exemplars([Pair("b", "0.png", "cat")], root, refusing, segment)
    assert not kept and [(d.reason, d.detail) for d in dropped] == [("bad image", "expected 64 x 64")]


def test_best_box_breaks_ties_by_place():
    boxes = np.array([[5, 0, 9, 9], [1, 3, 9, 9], [1, 2, 9, 9]], float)
    assert best_box(boxes, np.array([0.5, 0.5, 0.5]))[0] == (1.0, 2.0, 9.0, 9.0)
    assert best_box(np.zeros((0, 4)), np.zeros(0)) is None
    with pytest.raises(ValueError, match="2 scores"):
        best_box(boxes[:1], np.zeros(2))


def test_empty_or_double_sets_are_refused(root):
    with pytest.raises(ValueError, match="no .* pairs"):
        build_exemplars([], root, detect, segment)
    with pytest.raises(ValueError, match="stand twice"):
        build_exemplars([Pair("a", "0.png", "cat")] * 2, root, detect, segment, ExemplarConfig())


def found(box):
    return lambda image, name: (np.array([box], float), np.array([0.9]))


def test_a_mask_lies_in_its_box_also_where_that_is_off_the_middle_or_leaves_the_picture(root):
    def corner(image, box):  # 26 wide, 30 high, at the left below
        mask = np.zeros(image.shape[:2], bool)
        mask[34:64, 0:26] = True
        return mask

    for box, reasons in (((0, 34, 26, 64), []), ((-3, 30, 30, 70), []), ((34, 0, 64, 26), ["mask outside box"])):
        kept, dropped = build_exemplars([Pair("a", "0.png", "dog")], root, found(box), corner)
        assert [d.reason for d in dropped] == reasons, box


def test_a_mask_that_covers_too_little_of_its_box_is_empty(root):
    def speck(image, box):
        mask = np.zeros(image.shape[:2], bool)
        mask[20:30, 20:30] = True
        return mask

    pair, square = [Pair("a", "0.png", "dog")], found((10, 10, 50, 50))  # 100 of 1,600 px
    for share, reasons in ((0.06, []), (0.07, ["mask empty"])):
        assert [d.reason for d in build_exemplars(pair, root, square, speck, ExemplarConfig(min_fill=share))[1]] == reasons


def test_the_first_of_each_class_and_split_are_taken():
    rows = [Exemplar(f"{split}-{name}{i}", "a.png", name, (0.0, 0.0, 9.0, 9.0), 0.5, "m.png", 9, {"split": split})
            for i in range(3) for name in ("cat", "dog", "cow") for split in ("train", "test", "val")]
    taken = take(rows, {"train": 2, "test": 1}, ["cat", "dog"])
    assert [e.exemplar_id for e in taken] == ["train-cat0", "test-cat0", "train-dog0", "test-dog0", "train-cat1", "train-dog1"]
    with pytest.raises(ValueError, match="no exemplar of"):
        take(rows, {"train": 2}, ["horse"])
