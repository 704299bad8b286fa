"""The second test set: the recipe is the main job's, nobody is taken twice, the folder stands alone, methods learn from the first."""

import shutil

import numpy as np
import pytest

from ard import release
from ard.collection import gallery
from ard.config import load_params
from ard.customize import MODULES
from ard.dataset import problems
from ard.precision import computes_bfloat16
from ard.records import Dataset
from ard.world import World
from ard.world.collection import CollectionConfig, build_collection
from tests.toy_attribution import ROOT, toy_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return toy_dataset(tmp_path_factory.mktemp("toy"), per_class=1)


def test_the_recipe_is_the_one_of_the_main_job():
    told = load_params(ROOT / "params.yaml", "customize")
    recipe = release.customize_config(load_params(ROOT / "params.yaml", "release")["customize"])
    assert recipe.modules == MODULES[told["modules"]] and recipe.bf16 == (told["autocast"] and computes_bfloat16())
    same = ("rank", "token_steps", "weight_steps", "token_lr", "weight_lr", "batch", "frame", "flip", "keep", "loss")
    assert [getattr(recipe, name) for name in same] == [told[name] for name in same]


def test_nobody_who_is_known_is_taken(tmp_path):
    build_collection(World.load(ROOT / "data/world"), CollectionConfig(0, 0, 1, 0.0, 5), tmp_path / "collection")
    nobody = Dataset(tmp_path, {"test": ()}, {"test": ()})
    everyone = release.fresh_pairs(tmp_path, nobody)
    assert len(everyone) == 10
    images = gallery(tmp_path / "collection", "test")
    known = Dataset(tmp_path, {"test": ()}, {"test": images[:4]})
    met = {o.individual_id for image in images[:4] for o in image.objects}
    assert [p for p in everyone if p.facts["individual_id"] not in met] == release.fresh_pairs(tmp_path, known)
    assert len(release.fresh_pairs(tmp_path, known)) == 6


def test_the_folder_holds_what_is_asked_and_nothing_else(dataset, tmp_path):
    made = Dataset(dataset.root, {"test": dataset.samples["test"]}, {"test": dataset.gallery["test"]})
    release.keep_asked(made, tmp_path / "work", 1)
    shutil.move(tmp_path / "work", tmp_path / "elsewhere")
    kept = Dataset.load(tmp_path / "elsewhere")
    assert not problems(kept) and len(kept.samples["test"]) == len(kept.gallery["test"]) == 3
    assert len(list((kept.root / "queries").iterdir())) == len(list((kept.root / "images").iterdir())) == 3
    before = {s.sample_id: s for s in dataset.samples["test"]}
    for sample in kept.samples["test"]:
        old = before[sample.sample_id]
        assert np.array_equal(kept.pixels(sample.query_file), dataset.pixels(old.query_file))
        assert np.array_equal(kept.pixels(sample.exemplar_file), dataset.pixels(old.exemplar_file))
        assert (sample.query_box, sample.individual_id) == (old.query_box, old.individual_id)


def test_joined_learns_from_one_and_asks_the_other(dataset, tmp_path):
    made = Dataset(dataset.root, {"test": dataset.samples["test"]}, {"test": dataset.gallery["test"]})
    both = release.joined(dataset, release.keep_asked(made, tmp_path / "release", 1))
    assert not problems(both) and set(both.samples) == {"train", "test"}
    assert both.samples["train"] == dataset.samples["train"] and len(both.samples["test"]) == 3
    for sample in both.samples["test"]:
        assert (both.root / sample.query_file).resolve().is_relative_to(tmp_path / "release")
        assert both.pixels(sample.exemplar_file).shape == (64, 64, 3)
    assert both.open_gallery("test").pixels(both.gallery["test"][0]).shape == (64, 64, 3)


def test_the_shipped_set_is_of_the_first_ones_size_and_holds_nobody_of_it():
    first, second, world = Dataset.load(ROOT / "data/mini-coco"), Dataset.load(ROOT / "data/release"), World.load(ROOT / "data/world")
    met = {o.individual_id for images in first.gallery.values() for im in images for o in im.objects}
    asked = {s.individual_id for s in second.samples["test"]}
    assert not problems(second) and met.isdisjoint(asked)
    assert len(asked) == len(second.gallery["test"]) == len(first.gallery["test"])
    base = {d.group for name in world.classes for d in world.drawings_of(name, "base")}
    group = {d.drawing: d.group for d in world.drawings}
    assert base.isdisjoint(group[s.drawing] for s in second.samples["test"])
    assert len({s.sample_id for s in second.samples["test"]}) == len(second.samples["test"]) <= 2 * len(asked)
