"""Tokens and projections of regions: geometry, masks, closed forms and shares against brute force; the test split is refused."""

import numpy as np
import pytest
import torch

from ard import tokens
from ard.detector.features import IMAGE_SIZE, REGION
from ard.detector.phases import PhaseData
from tests.detector.conftest import square
from tests.tiny_pipeline import tiny_pipeline

RNG = np.random.default_rng(0)
BOXES = torch.tensor([[8.0, 8, 40, 40], [16, 4, 60, 36], [0, 0, 64, 64]])


@pytest.fixture(scope="module")
def regions():
    return tokens.Regions(np.stack([square(np.random.default_rng(i), (200, 40 * i, 30))[0] for i in range(3)]), BOXES)


def whole(regions):
    return np.ones((len(regions.boxes), IMAGE_SIZE, IMAGE_SIZE), bool)


def test_parts_tile_the_box():
    for side in (1, 2, 3):
        cut = tokens.parts(BOXES, side)
        assert cut.shape == (3, side * side, 4)
        assert torch.allclose(torch.cat([cut[..., :2].amin(1), cut[..., 2:].amax(1)], 1), BOXES)
        area = ((cut[..., 2] - cut[..., 0]) * (cut[..., 3] - cut[..., 1])).sum(1)
        assert torch.allclose(area, (BOXES[:, 2] - BOXES[:, 0]) * (BOXES[:, 3] - BOXES[:, 1]))


def test_a_grid_of_one_is_the_one_token_and_a_part_is_the_token_of_its_box(regions):
    assert torch.equal(tokens.grid(1)(regions), tokens.one(regions)) and tokens.one(regions).shape == (3, 1, REGION)
    corner = tokens.Regions(regions.pictures, tokens.parts(BOXES, 2)[:, 3])
    assert torch.allclose(tokens.grid(2)(regions)[:, 3], tokens.one(corner)[:, 0], atol=1e-5)


def test_a_mask_of_everything_changes_nothing(regions):
    everything = whole(regions)
    assert np.array_equal(tokens.painted(regions, everything).pictures, regions.pictures)
    assert torch.allclose(tokens.pooled(regions, everything), tokens.one(regions), atol=1e-3)


def test_what_is_not_under_the_mask_does_not_count(regions):
    masks = whole(regions)
    masks[:, :, 32:] = False
    other = regions.features.clone().float()
    fine, middle, coarse = (m.clone() for m in tokens.unpack(other))
    for seen in (fine, middle, coarse):
        seen[..., seen.shape[-1] // 2 :] += 100.0  # the right half of every map, where no mask is
    changed = tokens.Regions(regions.pictures, regions.boxes)
    vars(changed)["features"] = torch.cat([m.flatten(1) for m in (fine, middle, coarse)], 1)
    assert torch.allclose(tokens.pooled(changed, masks), tokens.pooled(regions, masks), atol=1e-2)
    assert not torch.allclose(tokens.one(changed), tokens.one(regions), atol=1.0)


def test_a_mask_of_next_to_nothing_is_the_box(regions):
    found = tokens.masks_of(regions, lambda picture, box: np.zeros(picture.shape[:2], bool))
    assert [int(mask.sum()) for mask in found] == [32 * 32, 44 * 32, 64 * 64]


def test_the_generator_sees_the_box_and_not_the_rest(tmp_path):
    pipe, noise = tiny_pipeline(tmp_path), RNG.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    layer = next(name for name, m in pipe.unet.named_modules() if hasattr(m, "transformer_blocks"))
    token = tokens.unet_token(pipe, layer, 100, cells=2)
    here, there = (token(tokens.Regions(noise, torch.tensor([box] * 2))) for box in ([0.0, 0, 16, 16], [16.0, 16, 32, 32]))
    assert here.shape == there.shape and here.shape[:2] == (2, 1) and not torch.allclose(here, there, atol=1e-3)
    both = tokens.beside(here, there)
    assert both.shape[-1] == 2 * here.shape[-1] and torch.equal(both[..., : here.shape[-1]], here)


def test_whitening_takes_from_each_token_what_its_individuals_do_not_keep():
    owner = np.repeat(np.arange(40), 5)
    kept, moved = torch.randn(40, 2, 4, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)

    def seen(who):  # the first four numbers say who it is, the others are loud and say nothing
        return torch.cat([kept[who] + 0.05 * torch.randn(len(who), 2, 4, generator=moved),
                          30 * torch.randn(len(who), 2, 4, generator=moved)], -1)

    x, q, again = seen(np.arange(40)), seen(owner), seen(np.arange(40))
    asked = tokens.Asked(None, None, np.arange(40), ("cat",) * 40)
    shares = [tokens.firsts(-torch.cdist(f(again)[:, 0], f(x)[:, 0]), asked)["recall_1"].mean()
              for f in (tokens.standardised(x), tokens.whitened(x, q, owner, 0.0))]
    assert shares[0] < 0.6 and shares[1] > 0.95
    assert tokens.whitened(x, q, owner, 0.0)(again).shape == again.shape


def test_the_contrastive_map_learns_which_directions_tell_individuals_apart():
    who, rng = np.repeat(np.arange(60), 4), torch.Generator().manual_seed(0)
    kept = torch.randn(60, 6, generator=rng)

    def seen(index):
        return torch.cat([kept[index], torch.randn(len(index), 6, generator=rng)], 1)[:, None]

    x, q = seen(np.arange(60)), seen(who)
    asked, again = tokens.Asked(None, None, np.arange(60), ("cat",) * 60), seen(np.arange(60))
    learned = tokens.contrastive(x, q, who, steps=150, learning_rate=1e-2, batch=32)
    before, after = (tokens.firsts(tokens.likeness(f(again), f(x)), asked)["recall_1"].mean()
                     for f in (tokens.standardised(x), learned))
    assert after > before + 0.3
    same = tokens.contrastive(x, q, who, steps=150, learning_rate=1e-2, batch=32)
    assert torch.equal(same(again), learned(again)), "the seed decides"


def test_rendered_pairs_become_exemplars_queries_and_owners(regions):
    queries = torch.randn(2, 6, REGION).half()
    centred = np.tile([0.5, 0.5, 0.5, 0.5], (2, 6, 1)).astype(np.float32)
    data = PhaseData(regions.features[None].repeat(2, 1, 1), queries, centred, np.repeat(np.arange(3), 2), ("cat",) * 6,
                     (frozenset(["cat"]),) * 3)
    x, q, owner = tokens.rendered_tokens(data)
    middle = tokens.Regions(regions.pictures, torch.tensor([[16.0, 16, 48, 48]] * 3))
    assert torch.allclose(x, tokens.one(middle), atol=1e-5) and torch.equal(q[:, 0], queries[0].float())
    assert owner.tolist() == [0, 0, 1, 1, 2, 2]


def test_likeness_is_the_best_match_both_ways():
    q, x = torch.randn(4, 3, 5), torch.randn(2, 3, 5)
    found = tokens.likeness(q, x)
    for i in range(4):
        for j in range(2):
            near = np.array([[torch.cosine_similarity(a, b, dim=0) for b in x[j]] for a in q[i]])
            assert float(found[i, j]) == pytest.approx((near.max(1).mean() + near.max(0).mean()) / 2, abs=1e-5)
    assert torch.allclose(tokens.likeness(x, x).diagonal(), torch.ones(2))


def test_shares_count_ties_against_and_look_within_the_class():
    asked = tokens.Asked(None, None, np.array([0, 1, 2, 2]), ("cat", "cat", "dog"))
    scores = torch.tensor([[0.9, 0.1, 0.8], [0.5, 0.5, 0.2], [0.9, 0.3, 0.7], [0.1, 0.3, 0.7]])
    found = tokens.firsts(scores, asked)
    assert found["recall_1"].tolist() == [1, 0, 0, 1] and found["same_class_recall_1"].tolist() == [1, 0, 1, 1]
    rows = tokens.table({"one": found, "two": {name: 1 - v for name, v in found.items()}}, asked.owner)
    assert rows[0]["recall_1"] == 0.5 and rows[0]["difference"] == 0 and rows[1]["difference"] == 0.0
    assert rows[0]["n_queries"] == 4 and rows[0]["n_exemplars"] == 3 and rows[1]["same_class_recall_1"] == 0.25


def test_the_test_split_is_refused():
    with pytest.raises(ValueError, match="choose by it"):
        tokens.asked_of(None, "test")
