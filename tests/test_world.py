"""The mini world: splits of drawings, individuals, exact boxes and masks, media, and the shipped artwork."""

import itertools

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from ard.world import CLASSES, CONTEXTS, MEDIA, SPLITS
from ard.world.artwork import load_catalogue, load_picture
from ard.world.backgrounds import paint_background
from ard.world.collection import CollectionConfig, build_collection, choose_individuals, grey_distance, grey_thumbnail
from ard.world.media import GREY_MEDIA, apply_medium
from ard.world.world import Placement

EXEMPLAR_SPLITS = ("train", "val", "test")


def test_no_group_of_drawings_is_both_base_and_exemplar(world):
    base = {d.group for d in world.drawings if "base" in d.splits}
    exemplar = {d.group for d in world.drawings if set(d.splits) & set(EXEMPLAR_SPLITS)}
    assert base and exemplar and base.isdisjoint(exemplar)


def test_only_small_classes_share_drawings_among_exemplar_splits(world):
    for name in CLASSES:
        shared = any(len(d.splits) > 1 for d in world.drawings if d.class_name == name)
        groups = {d.group for d in world.drawings if d.class_name == name and "base" not in d.splits}
        assert not shared or len(groups) < 8, name


def test_every_class_has_drawings_in_every_split(world):
    assert all(world.drawings_of(name, split) for name in CLASSES for split in SPLITS)


def test_every_drawing_carries_author_licence_and_source(world):
    assert all(d.author and d.licence and d.source for d in world.drawings)
    free = ("Apache-2.0", "MIT", "CC-BY-", "GPL-", "public domain")
    assert all(d.licence.startswith(free) for d in world.drawings)
    assert not any("SA" in d.licence.split("-") for d in world.drawings), "share-alike sets are left out"


def test_every_class_has_at_least_nine_groups_to_learn_from(world):
    for name in CLASSES:
        assert len({d.group for d in world.drawings_of(name, "base")}) >= 9, name


def _look(world, drawing):
    """Outline and grey values, both 32 x 32 over the tight box, and height by width of the box."""
    alpha = load_picture(str(world.root / drawing.file))[..., 3] > 0.5
    rows, cols = np.nonzero(alpha)
    with Image.open(world.root / drawing.file) as image:
        tight = image.crop((cols.min(), rows.min(), cols.max() + 1, rows.max() + 1))
        small = np.asarray(tight.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    grey = small[..., :3] @ (0.299, 0.587, 0.114) * small[..., 3] + 0.5 * (1 - small[..., 3])
    return small[..., 3] > 0.5, grey, tight.height / tight.width


def _alike(a, b):
    """Same outline, same proportions, same grey values; a mirror image counts."""
    (mask, grey, shape), (other_mask, other_grey, other_shape) = a, b
    return 0.9 < shape / other_shape < 1.1 and any(
        (mask & m).sum() > 0.9 * (mask | m).sum() and np.corrcoef(grey.ravel(), g.ravel())[0, 1] > 0.8
        for m, g in ((other_mask, other_grey), (other_mask[:, ::-1], other_grey[:, ::-1]))
    )


def test_no_base_drawing_is_a_copy_of_an_exemplar(world):
    for name in CLASSES:
        looks = {d: _look(world, d) for d in world.drawings if d.class_name == name}
        for a, b in itertools.product(looks, looks):
            if "base" in a.splits and "base" not in b.splits:
                assert not _alike(looks[a], looks[b]), f"{a.drawing} looks like the exemplar {b.drawing}"


def test_base_individuals_are_drawn_by_group(world):
    """fluent-bear joins six pictures; each of the class's groups is drawn as often as it is."""
    rng, group = np.random.default_rng(0), {d.drawing: d.group for d in world.drawings}
    drawn = [group[world.individual("bear", "base", rng).drawing] for _ in range(1500)]
    groups = {d.group for d in world.drawings_of("bear", "base")}
    expected = len(drawn) / len(groups)
    assert all(abs(drawn.count(g) - expected) < 5 * expected**0.5 for g in groups)


def test_a_missing_picture_is_named(world, tmp_path):
    (tmp_path / "catalogue.csv").write_text((world.root / "catalogue.csv").read_text())
    with pytest.raises(FileNotFoundError, match="artwork/"):
        load_catalogue(tmp_path)


def test_unknown_split_is_named(world):
    with pytest.raises(KeyError, match="holdout"):
        world.drawings_of("cat", "holdout")


def test_scene_depends_on_its_generator_only(world):
    a, b = (world.scene(np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(a.image, b.image) and [o.box for o in a.objects] == [o.box for o in b.objects]


def test_boxes_are_tight_around_visible_masks(world):
    rng = np.random.default_rng(1)
    for placed in itertools.chain.from_iterable(world.scene(rng, n_objects=2).objects for _ in range(10)):
        x0, y0, x1, y1 = (int(v) for v in placed.box)
        assert placed.mask[y0:y1, x0:x1].sum() == placed.mask.sum()
        assert placed.mask[y0].any() and placed.mask[y1 - 1].any() and placed.mask[:, x0].any() and placed.mask[:, x1 - 1].any()


def test_occlusion_is_recorded_and_the_front_object_is_whole(world):
    rng = np.random.default_rng(2)
    pair = [world.individual("bear", "base", rng) for _ in range(2)]
    where = [Placement(0.2, 0.5, 0.5, False, 0.0), Placement(0.12, 0.5, 0.5, False, 0.0)]
    scene = world.scene(rng, pair, fillers=0, placements=where)
    assert scene.objects[0].visible < 0.9 < scene.objects[1].visible
    assert not (scene.objects[0].mask & scene.objects[1].mask).any()


@pytest.mark.parametrize("area", [0.1, 0.2, 0.3])
def test_placement_area_is_met(world, area):
    rng = np.random.default_rng(3)
    individual = world.individual("elephant", "base", rng)
    scene = world.scene(rng, [individual], fillers=0, placements=[Placement(area, 0.5, 0.5, False, 0.0)])
    assert scene.objects[0].mask.mean() == pytest.approx(area, rel=0.12)


def test_a_mirrored_sprite_is_the_mirror_image(world):
    rng = np.random.default_rng(4)
    individual = world.individual("horse", "base", rng)
    masks = [world.scene(np.random.default_rng(0), [individual], fillers=0, context="lake",
                         placements=[Placement(0.2, 0.5, 0.5, mirror, 0.0)]).objects[0].mask for mirror in (False, True)]
    a, b = masks[0], masks[1][:, ::-1]
    assert (a & b).sum() / (a | b).sum() > 0.85


@pytest.mark.parametrize("medium", MEDIA)
def test_media_keep_shape_and_range_and_sketches_are_grey(medium):
    image = paint_background("city street", np.random.default_rng(0), 64)
    out = apply_medium(image, medium)
    assert out.shape == image.shape and 0 <= out.min() and out.max() <= 1
    spread = (out.max(-1) - out.min(-1)).max()
    assert (spread < 0.05) == (medium in GREY_MEDIA)


def test_contexts_differ_from_each_other():
    mean = {c: np.mean([paint_background(c, np.random.default_rng(k), 64) for k in range(5)], 0) for c in CONTEXTS}
    assert all(np.abs(mean[a] - mean[b]).mean() > 0.08 for a, b in itertools.combinations(CONTEXTS, 2))


@pytest.mark.parametrize("function, word", [(paint_background, "moon"), (apply_medium, "fresco")])
def test_unknown_words_are_refused(function, word):
    with pytest.raises(KeyError, match=word):
        function(word, np.random.default_rng(0), 64) if function is paint_background else function(np.zeros((4, 4, 3)), word)


def test_individuals_of_a_gallery_differ_in_two_traits_and_in_grey(world):
    config = CollectionConfig(0, 0, 5, 0.08, 0)
    people = choose_individuals(world, "dog", "test", 5, config, [])
    for a, b in itertools.combinations(people, 2):
        assert a.differs(b) >= 2
        assert grey_distance(grey_thumbnail(world, a), grey_thumbnail(world, b)) >= 0.08


def test_too_many_individuals_is_an_error_that_says_what_to_do(world):
    with pytest.raises(ValueError, match="min_grey_distance"):
        choose_individuals(world, "zebra", "test", 50, CollectionConfig(0, 0, 50, 0.3, 0), [])


def test_collection_opens_in_pycocotools_with_exact_masks(world, tmp_path):
    sizes = build_collection(world, CollectionConfig(1, 1, 1, 0.05, 3), tmp_path)
    assert sizes == {"train": 10, "val": 10, "test": 10}
    seen = set()
    for split in EXEMPLAR_SPLITS:
        coco = COCO(str(tmp_path / f"instances_{split}.json"))
        for a in coco.dataset["annotations"]:
            mask = coco.annToMask(a)
            assert mask.sum() == a["area"]
            assert list(rle.toBbox(rle.encode(np.asfortranarray(mask)))) == a["bbox"]
        people = [a for a in coco.dataset["annotations"] if a["individual_id"]]
        assert all(min(a["bbox"][2:]) >= 24 for a in people) and len({a["image_id"] for a in people}) == len(people)
        assert all(i["medium"] == "photo" for i in coco.dataset["images"])
        assert seen.isdisjoint(a["individual_id"] for a in people)
        seen |= {a["individual_id"] for a in people}
