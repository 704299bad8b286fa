"""`ard.dataset` and `ard.leaks`: samples join their exemplars, splits are checked, and a planted leak is found."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ard import leaks
from ard.dataset import TABLE1_COLUMNS, assemble, card, drop_unreadable, problems, shared_drawings, table1
from ard.exemplars import Exemplar
from ard.generate import Drawn
from ard.leaks import (PROBE_COLUMNS, compare, exemplar_boxes, geometry, hits, leak_probes, medium, near, outside,
                       outside_pixels, probe_row, rankings)
from ard.records import Dataset, GalleryImage, GroundTruth, RecordError

CLASSES = ("cat", "dog", "cow")
N = {"train": 6, "val": 4, "test": 24}


def random_box(rng):
    x, y = rng.uniform(2, 30, 2)
    w, h = rng.uniform(20, 30, 2)
    return tuple(float(round(v, 1)) for v in (x, y, x + w, y + h))


def parts(root: Path, leak: str = "", queries_each: int = 5):
    """Exemplars, kept queries and scenes; everything outside the squares is random unless a leak is planted."""
    rng = np.random.default_rng(1)
    exemplars, queries, scenes = [], [], []

    def write(file, box, background, noise=25):
        image = np.clip(background + rng.normal(0, noise, (64, 64, 3)), 0, 255).astype(np.uint8)
        x0, y0, x1, y1 = map(int, box)
        image[y0:y1, x0:x1] = 128
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / file)

    for split, number in N.items():
        for i in range(number):
            name, kind, box, colour = f"{split}{i}", CLASSES[i % 3], random_box(rng), rng.uniform(0, 255, 3)
            write(f"exemplars/{name}.png", box, colour)
            facts = {"split": split, "individual_id": f"ind-{name}", "drawing": f"{split}-d{i // 2}",
                     "designer": "noto"}
            exemplars.append(Exemplar(name, f"exemplars/{name}.png", kind, box, 0.9, f"masks/{name}.png", 400, facts))
            own = GroundTruth(kind, facts["individual_id"], facts["drawing"], "noto", box)
            scenes.append(GalleryImage(f"exemplars/{name}.png", f"im-{name}", (own,)))
            for q in range(queries_each):
                place = box if leak == "box" else random_box(rng)
                write(f"queries/{name}_{q}.png", place, colour if leak == "pixels" else rng.uniform(0, 255, 3))
                queries.append(Drawn(f"{name}_{q}", name, kind, q, "p", 0, f"{name}_{q}.png", place, 0.8, "", 0.1))
    return exemplars, queries, scenes


def build(root, leak=""):
    return assemble(root, *parts(root, leak))


def test_assemble_joins_and_survives_its_files(tmp_path):
    data = build(tmp_path)
    data.save()
    assert Dataset.load(tmp_path) == data and problems(data) == []
    sample = next(s for s in data.samples["test"] if s.sample_id == "test3_2")
    assert sample.exemplar_file == "exemplars/test3.png" and sample.query_file == "queries/test3_2.png"
    assert (sample.context, sample.medium, sample.individual_id) == ("beach", "photo", "ind-test3")
    assert data.query(sample).image.shape == (64, 64, 3)


def test_place_and_medium_are_those_of_the_sentences_in_use(tmp_path):
    exemplars, queries, scenes = parts(tmp_path)
    data = assemble(tmp_path, exemplars, queries, scenes, setting=lambda name, number: (f"with {name}", f"medium {number}"))
    for sample in data.samples["val"]:
        assert (sample.context, sample.medium) == (f"with {sample.class_name}", f"medium {sample.template}")


def test_table1_counts_pairs(tmp_path):
    rows = table1(build(tmp_path), "toy")
    assert all(tuple(r) == TABLE1_COLUMNS for r in rows) and [r["split"] for r in rows] == ["train", "val", "test"]
    assert rows[2] == {"dataset": "toy", "split": "test", "n_classes": 3, "n_concepts": 24, "n_drawings": 12,
                       "n_positive": 120, "n_negative": 120 * 23, "gallery_size": 24}


def test_order_says_nothing_and_does_not_depend_on_the_input(tmp_path):
    exemplars, queries, scenes = parts(tmp_path)
    data = assemble(tmp_path, exemplars, queries, scenes)
    again = assemble(tmp_path, exemplars[::-1], queries[::-1], scenes[::-1])
    assert again.samples == data.samples and again.gallery == data.gallery
    assert [s.concept_id for s in data.samples["test"]][:5] != ["test0"] * 5


def test_images_without_surviving_queries_stay_negatives(tmp_path):
    exemplars, queries, scenes = parts(tmp_path)
    data = assemble(tmp_path, exemplars, [q for q in queries if q.exemplar_id != "test0"], scenes)
    assert len(data.gallery["test"]) == 24 and "im-test0" in [im.image_id for im in data.gallery["test"]]


def test_broken_input_is_refused(tmp_path):
    exemplars, queries, scenes = parts(tmp_path)
    with pytest.raises(RecordError, match="1 queries without an exemplar.*ghost"):
        assemble(tmp_path, exemplars, [*queries, replace(queries[0], sample_id="ghost", exemplar_id="x")], scenes)
    with pytest.raises(RecordError, match="train0"):
        assemble(tmp_path, exemplars, queries, scenes[1:])
    with pytest.raises(RecordError, match=r"facts lack \['drawing'\]"):
        facts = {k: v for k, v in exemplars[0].facts.items() if k != "drawing"}
        assemble(tmp_path, [replace(exemplars[0], facts=facts), *exemplars[1:]], queries, scenes)
    with pytest.raises(RecordError, match="ind-train0 stands in 2 gallery images"):
        twin = replace(scenes[-1], objects=scenes[-1].objects + scenes[0].objects)
        assemble(tmp_path, exemplars, queries, [*scenes[:-1], twin])
    with pytest.raises(RecordError, match="sample test0_0 stands 2 times"):
        assemble(tmp_path, exemplars, [*queries, next(q for q in queries if q.sample_id == "test0_0")], scenes)


def test_shared_drawings_are_reported(tmp_path):
    data = build(tmp_path)
    assert shared_drawings(data) == {}
    moved = replace(data.samples["train"][0], drawing=data.samples["test"][0].drawing)
    shared = shared_drawings(replace(data, samples=data.samples | {"train": (moved,)}))
    assert shared == {moved.drawing: ("train", "test")}


def test_unreadable_images_are_left_out_and_listed(tmp_path):
    data = build(tmp_path)
    (tmp_path / "queries/test1_0.png").write_bytes(b"nothing")
    (tmp_path / "exemplars/test2.png").unlink()
    kept = drop_unreadable(data)
    gone = {s.sample_id for s in data.samples["test"]} - {s.sample_id for s in kept.samples["test"]}
    assert gone == {"test1_0"} | {f"test2_{q}" for q in range(5)}
    assert len(kept.gallery["test"]) == 23 and len(kept.bad) == 7
    assert any("queries/test1_0.png: not a readable image" in b for b in kept.bad)


def test_card_names_counts_and_probes(tmp_path):
    text = card(build(tmp_path), "toy", [{"probe": "file order", "leaks": False}], ["made by a test"])
    assert "| test | 3 | 24 | 12 | 120 | 2760 | 24 |" in text and "| file order | False |" in text
    assert "made by a test" in text


def test_probes_are_quiet_on_a_clean_dataset(tmp_path):
    rows = leak_probes(build(tmp_path), shuffles=300)
    assert len(rows) == 14 and all(tuple(r) == PROBE_COLUMNS for r in rows)
    assert [r["probe"] for r in rows if r["leaks"]] == []
    assert rows[0]["chance"] == pytest.approx(1 / 24, abs=1e-6) and rows[1]["chance"] == pytest.approx(1 / 8, abs=1e-6)


@pytest.mark.parametrize("leak, probes", [
    ("box", {"box geometry"}), ("pixels", {"pixels outside the regions", "colours outside the regions"})])
def test_a_planted_leak_is_found(tmp_path, leak, probes):
    found = {r["probe"] for r in leak_probes(build(tmp_path, leak), shuffles=300) if r["leaks"]}
    assert probes <= found and "file order" not in found


def test_file_order_leak_is_found(tmp_path):
    data = build(tmp_path)
    ordered = replace(data, samples={"test": tuple(sorted(data.samples["test"], key=lambda s: s.sample_id))},
                      gallery={"test": tuple(sorted(data.gallery["test"], key=lambda im: im.file))})
    assert "file order" in {r["probe"] for r in leak_probes(ordered, shuffles=300) if r["leaks"]}


def test_ties_are_shared_and_chance_is_shuffled():
    assert hits(np.zeros((2, 4))).tolist() == [[0.25] * 4] * 2
    row = probe_row("flat", "all", np.zeros((40, 4)), np.arange(40) % 4, np.arange(40) % 4, np.zeros(4, int), 50)
    assert row["recall_1"] == row["chance"] == row["chance_low"] == row["chance_high"] == 0.25 and not row["leaks"]


def test_outside_pixels_sees_only_cells_outside_both_regions():
    rng = np.random.default_rng(0)
    q, x = rng.integers(0, 255, (2, 3, 64, 64, 3), dtype=np.uint8)
    boxes = [random_box(rng) for _ in range(6)]
    before = outside_pixels(list(q), boxes[:3], list(x), boxes[3:])
    for image, box in zip([*q, *x], boxes, strict=True):
        x0, y0, x1, y1 = map(int, box)
        image[y0:y1, x0:x1] = 0
    assert np.allclose(before, outside_pixels(list(q), boxes[:3], list(x), boxes[3:]))
    assert (before < 0).all()


def test_a_probe_leaks_where_it_lies_above_what_chance_gives_however_wide_its_interval():
    scores = np.zeros((3, 40))
    scores[0, 0] = scores[1, 1] = scores[2, 9] = 1  # two of three exemplars found among forty
    row = probe_row("p", "all", scores, np.arange(3), np.arange(3), np.zeros(40, int), shuffles=300)
    assert row["ci_low"] <= row["chance_high"] < row["recall_1"] and row["leaks"]


def test_knowing_the_class_is_a_leak_among_all_images_and_not_among_those_of_the_class(tmp_path, monkeypatch):
    def by_class(dataset, samples, gallery):
        return {"class": np.array([[float(im.objects[0].class_name == s.class_name) for im in gallery] for s in samples])}

    monkeypatch.setattr(leaks, "rankings", by_class)
    whole, within = leak_probes(build(tmp_path), shuffles=300)
    assert whole["leaks"] and not within["leaks"] and whole["recall_1"] == within["recall_1"] == pytest.approx(1 / 8)
    assert whole["chance_high"] < within["chance_low"] == within["chance_high"]


def test_distances_count_each_feature_by_its_spread():
    a, b = np.array([[0.0, 0.0], [1000.0, 1.0]]), np.array([[600.0, 0.0], [0.0, 0.9]])
    spread = np.concatenate([a, b]).std(0)
    assert np.allclose(near(a, b), -np.linalg.norm((a[:, None] - b[None]) / spread, axis=-1))
    assert np.isfinite(near(np.ones((2, 1)), np.ones((3, 1)))).all(), "a feature that never changes"


def test_the_region_of_a_picture_is_r_x_and_where_none_asks_its_largest_object(tmp_path):
    large, small = (0.0, 0.0, 60.0, 60.0), (1.0, 1.0, 9.0, 9.0)
    data = build(tmp_path)
    sample = data.samples["test"][0]
    own = GroundTruth(sample.class_name, sample.individual_id, "d", "g", sample.exemplar_box)
    shown = (GalleryImage(sample.exemplar_file, "a", (own, GroundTruth("dog", "", "", "", large))),
             GalleryImage("none.png", "b", (GroundTruth("dog", "", "", "", small), GroundTruth("dog", "", "", "", large))),
             GalleryImage("empty.png", "c", (), 30, 20))
    assert exemplar_boxes((sample,), shown) == [sample.exemplar_box, large, (0.0, 0.0, 30.0, 20.0)]


def test_the_geometry_of_a_box_is_a_share_of_its_own_picture():
    wide = np.zeros((20, 40, 3), np.uint8)
    assert geometry([(0, 0, 20, 5)], [wide])[0] == pytest.approx([0.25, 0.125, np.log(0.5 * 0.25), np.log(0.5 / 0.25)])


def test_each_probe_reads_the_feature_it_is_named_after(tmp_path):
    data = build(tmp_path)
    samples, gallery = data.samples["test"][:6], data.gallery["test"]
    found = rankings(data, samples, gallery)
    queries, images = [data.pixels(s.query_file) for s in samples], [data.pixels(im.file) for im in gallery]
    asked, boxes = [s.query_box for s in samples], exemplar_boxes(samples, gallery)
    assert np.allclose(found["medium outside the regions"], compare(medium, queries, asked, images, boxes))
    assert not np.allclose(found["medium outside the regions"], found["colours outside the regions"])


def test_the_medium_is_the_same_turned_on_its_side():
    rng = np.random.default_rng(0)
    image = np.zeros((16, 16, 3), np.uint8)
    image[::2] = 200  # stripes
    mask = rng.random((16, 16)) < 0.8
    assert np.allclose(medium(image, mask), medium(image.swapaxes(0, 1), mask.T)) and medium(image, mask)[3] >= 0
    image[::4] = 255
    assert np.allclose(medium(image, mask), medium(image.swapaxes(0, 1), mask.T))


def test_outside_pixels_is_the_mean_over_the_cells_that_both_show():
    rng = np.random.default_rng(0)
    q, x = rng.integers(0, 255, (2, 3, 16, 16, 3), dtype=np.uint8)  # cells are pixels
    boxes = [tuple(v / 4 for v in random_box(rng)) for _ in range(6)]
    found = outside_pixels(list(q), boxes[:3], list(x), boxes[3:])
    for i in range(3):
        for j in range(3):
            both = outside(q[i], boxes[i]) & outside(x[j], boxes[3 + j])
            gap = ((q[i] / 255 - x[j] / 255) ** 2).sum(-1)
            assert found[i, j] == pytest.approx(-gap[both].mean())


def test_what_would_make_results_wrong_is_named(tmp_path):
    data = build(tmp_path)
    assert problems(data) == []
    first = data.gallery["test"][0]
    own = next(s for s in data.samples["test"] if s.exemplar_file == first.file)

    def told(samples=None, gallery=None):
        return problems(replace(data, samples=data.samples | (samples or {}), gallery=data.gallery | (gallery or {})))

    bare = (replace(first, objects=()), *data.gallery["test"][1:])
    assert told(gallery={"test": bare}) == [f"individual {own.individual_id} stands in 0 gallery images"]
    moved = (replace(first, file="elsewhere.png"), *data.gallery["test"][1:])
    assert f"{own.sample_id}: no {first.file} in its gallery" in told(gallery={"test": moved})
    twice = (*data.gallery["test"], GalleryImage(first.file, "other", ()))
    assert told(gallery={"test": twice}) == [f"gallery file {first.file} stands 2 times"]
    lost = (replace(own, split="val"), *(s for s in data.samples["test"] if s != own))
    assert told(samples={"test": lost}) == [f"{own.sample_id}: of split val, listed in test"]
