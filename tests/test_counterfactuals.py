"""Taking a region out of what a generator learns from: what is painted over, with what, and how much a box changes by it."""

from dataclasses import replace

import numpy as np
import pytest

from ard import counterfactuals as cf
from ard.fine_tune import FineTuneConfig, fine_tune
from ard.generate import GenerateConfig
from tests.baselines.test_abu import same_bytes, sample, snapshot
from tests.tiny_pipeline import tiny_pipeline

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 255, (3, 16, 16, 3), np.uint8)


def people(*kinds):
    return [replace(sample(n), class_name=kind, concept_id=f"{kind}{n}") for n, kind in enumerate(kinds)]


def test_collections_are_of_one_class_and_share_nobody():
    everyone = people(*["cat"] * 5, *["dog"] * 3, "bear")
    found = cf.collections([*everyone, everyone[0]], size=2, per_class=2)
    assert [(c.name, c.class_name, [m.concept_id for m in c.members]) for c in found] == [
        ("cat-0", "cat", ["cat0", "cat1"]), ("cat-1", "cat", ["cat2", "cat3"]), ("dog-0", "dog", ["dog5", "dog6"])]
    with pytest.raises(ValueError, match="no class has 6 exemplars.*'cat': 5"):
        cf.collections(everyone, size=6, per_class=1)
    with pytest.raises(ValueError, match="at least 2 exemplars, found size 1"):
        cf.collections(everyone, size=1, per_class=1)


def test_a_box_covers_the_pixels_it_touches():
    assert np.argwhere(cf.covered((1.0, 2.0, 3.0, 3.0), 5, 5)).tolist() == [[2, 1], [2, 2]]
    assert np.argwhere(cf.covered((1.5, 2.0, 3.1, 3.0), 5, 5)).tolist() == [[2, 1], [2, 2], [2, 3]]
    assert cf.covered((-3.0, -3.0, 99.0, 99.0), 5, 5).all()


@pytest.mark.parametrize("box", [(0, 0, 4, 4), (3, 5, 9, 11), (0, 0, 16, 12)])
def test_elsewhere_is_as_much_and_not_the_region(box):
    region = cf.covered(box, 16, 16)
    other = cf.elsewhere(region)
    assert not (other & region).any() and other.sum() == min(region.sum(), 256 - region.sum())
    ys, xs = np.nonzero(region)
    distance = np.hypot(*(axis - middle for axis, middle in zip(np.indices((16, 16)), (ys.mean(), xs.mean()))))
    rest = ~region & ~other
    assert not rest.any() or distance[other].min() >= distance[rest].max() - 1e-9


def test_paint_is_the_mean_of_its_neighbours_and_touches_nothing_else():
    hole = cf.covered((3, 4, 9, 12), 16, 16)
    hole[0, 0] = True  # a corner has two neighbours
    out = cf.painted_over(PICTURES[0], hole)
    assert (out[~hole] == PICTURES[0][~hole]).all() and not (out[hole] == PICTURES[0][hole]).all()
    padded, there = np.pad(out.astype(float), ((1, 1), (1, 1), (0, 0))), np.pad(np.ones((16, 16)), 1)
    for y, x in np.argwhere(hole):
        around = [(y + dy + 1, x + dx + 1) for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))]
        mean = sum(padded[p] for p in around) / sum(there[p] for p in around)
        assert np.abs(mean - out[y, x]).max() <= 1, "up to rounding"


def test_paint_continues_a_plane_exactly():
    ramp = np.repeat((np.arange(16)[None, :] * 10 + np.arange(16)[:, None]).astype(np.uint8)[..., None], 3, 2)
    assert (cf.painted_over(ramp, cf.covered((4, 4, 10, 12), 16, 16)) == ramp).all()
    assert (cf.painted_over(ramp, np.zeros((16, 16), bool)) == ramp).all()
    with pytest.raises(ValueError, match="whole picture"):
        cf.painted_over(ramp, np.ones((16, 16), bool))


def test_a_variant_lacks_one_region_and_the_control_as_much_elsewhere():
    boxes = [(0, 0, 4, 4), (3, 5, 9, 11), (8, 8, 16, 16)]
    made = cf.variants(PICTURES, boxes)
    assert made.shape == (5, 3, 16, 16, 3) and (made[0] == PICTURES).all()
    for n, box in enumerate(boxes):
        differs, region = (made[n + 1] != PICTURES).any(-1), cf.covered(box, 16, 16)
        assert not differs[n][~region].any() and differs[n][region].mean() > 0.9
        assert not np.delete(differs, n, 0).any()
        control = (made[-1][n] != PICTURES[n]).any(-1)
        assert not control[region].any() and control.sum() > 0.9 * region.sum()


def test_change_equals_brute_force():
    pictures, box = PICTURES.copy(), (2.0, 3.0, 7.0, 9.0)
    found = cf.change(pictures, box)
    for n in (1, 2):
        squares = [((float(pictures[n, y, x, c]) - float(pictures[0, y, x, c])) / 255) ** 2
                   for y in range(3, 9) for x in range(2, 7) for c in range(3)]
        assert found[n - 1] == pytest.approx(np.sqrt(np.mean(squares)))
    outside = pictures[[0, 0]].copy()
    outside[1, 12:] = 0
    assert cf.change(outside, box).tolist() == [0.0]


def test_equal_generators_draw_the_same_and_the_base_comes_back(tmp_path):
    pipe = tiny_pipeline(tmp_path)
    before = snapshot(pipe)
    shown = RNG.integers(0, 255, (2, 32, 32, 3), np.uint8)
    learned = fine_tune(pipe, np.stack([shown, shown, shown[::-1] // 2]), "a photo of a cat .", FineTuneConfig(rank=2, steps=4, lr=0.05), 0)
    wanted = [cf.Drawing("a photo of a cat .", 3, "", "photo"), cf.Drawing("a cat on the beach .", 4, "beach", "photo")]
    made = cf.draw(pipe, learned, wanted, GenerateConfig(steps=2))
    assert made.shape == (3, 2, 32, 32, 3) and same_bytes(before, snapshot(pipe))
    assert (made[0] == made[1]).all() and (made[0] != made[2]).any()


def test_each_drawing_of_each_collection_has_its_own_seed():
    one, two = cf.collections(people("cat", "cat", "cat", "cat"), size=2, per_class=2)
    found = cf.drawings(one, 2, 0)
    assert len(found) == 12 and found[0].prompt == "A photo of a cat standing in a forest."
    assert (found[0].context, found[0].medium) == ("forest", "photo") and found[7].medium == "charcoal sketch"
    assert [(d.prompt, d.context, d.medium) for d in found[10:]] == [("A photo of a cat.", "", "photo")] * 2
    assert len({d.seed for d in [*found, *cf.drawings(two, 2, 0), *cf.drawings(one, 2, 1)]}) == 36
