"""Matching of regions: attention by hand-made features whose right answer is known, and the tiny pipeline's own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ard.baselines import diffusion_matching
from ard.baselines.diffusion_matching import (
    DiffSim, Heads, MatchingConfig, aligned, covered, densest_box, looks_at, self_attention, self_attention_of, weights)
from ard.customize import encode
from ard.records import Gallery, GalleryImage, Query, Sample

LAYERS = ("down_blocks.0.attentions.0", "up_blocks.1.attentions.1")
BOX, ELSEWHERE = (16.0, 8.0, 40.0, 32.0), (32.0, 32.0, 56.0, 56.0)  # 3 x 3 cells of 8 px each
SAMPLE = Sample("s", "q.png", BOX, "p", "cat", "c", "x.png", (0.0, 0, 8, 8), 0, "beach", "photo", "test", "i", "d", "g")


def heads(rng, box):
    """A picture with something in `box` before a plain background. Features say what is in a cell and nothing of where it is:
    query, key and value are the same."""
    content = torch.tensor(rng.normal(size=(1, 64, 16))).float() * torch.where(cells_of(box), 3.0, 0.1)[:, None]
    return Heads(content, content, content)


def cells_of(box):
    return covered(box, 64, 64, 64) > 0


def with_copy(mine, rng):
    """Another picture that holds what is in BOX of mine, at ELSEWHERE."""
    content = heads(rng, ELSEWHERE).value.clone()
    content[:, cells_of(ELSEWHERE)] = mine.value[:, cells_of(BOX)]
    return Heads(content, content, content)


def test_features_are_the_same_alone_and_in_a_batch(pipe):
    pictures = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    together = self_attention(pipe, encode(pipe, pictures), LAYERS, 150, seed=0)
    for picture, found in zip(pictures, together, strict=True):
        [alone] = self_attention(pipe, encode(pipe, picture[None]), LAYERS, 150, seed=0)
        for layer in LAYERS:
            for part in ("query", "key", "value"):
                one = getattr(found[layer], part)
                assert one.shape[1] == 64 and torch.allclose(one, getattr(alone[layer], part), atol=1e-4)
    assert not torch.allclose(together[0][LAYERS[0]].query, together[1][LAYERS[0]].query, atol=1e-2)
    assert all(not module._forward_hooks for module in pipe.unet.modules())


def test_unknown_layers_are_named_with_those_there_are(pipe):
    with pytest.raises(ValueError, match="layer 'up_blocks.9': .*mid_block.attentions.0"):
        self_attention_of(pipe.unet, "up_blocks.9")


def test_alignment_is_a_cosine_of_what_attention_takes_weighed_by_shares_of_cells():
    mine, theirs = (Heads(*torch.randn(3, 2, 9, 4, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1))
    region, other = torch.linspace(0.1, 0.9, 9), torch.linspace(1.0, 0.2, 9)
    own, taken = (torch.nn.functional.scaled_dot_product_attention(mine.query, one.key, one.value, share.log().expand(9, 9))
                  for one, share in ((mine, region), (theirs, other)))
    assert torch.allclose(weights(mine.query, theirs.key, other) @ theirs.value, taken, atol=1e-6)
    product, *squares = ((region[:, None] * a * b).sum() for a, b in ((own, taken), (own, own), (taken, taken)))
    assert float(aligned(mine, region, theirs, other)) == pytest.approx(float(product / (squares[0] * squares[1]).sqrt()), abs=1e-5)


def test_a_picture_tells_itself_and_a_copy_better_than_anything_else():
    rng = np.random.default_rng(0)
    mine, region = heads(rng, BOX), covered(BOX, 64, 64, 64)
    copy, other = with_copy(mine, rng), heads(rng, ELSEWHERE)
    assert float(aligned(mine, region, mine, region)) == pytest.approx(1, abs=1e-5)
    assert float(aligned(mine, region, copy)) > 0.95 > 0.7 > float(aligned(mine, region, other))
    shares = torch.stack([covered(ELSEWHERE, 64, 64, 64)] * 2)
    both = aligned(Heads.stack([copy, other]), shares, mine, region)
    assert both.shape == (2,) and both[0] > 0.999 and both[1] < 0.7


def test_what_lies_outside_both_regions_does_not_count():
    rng = np.random.default_rng(1)
    mine, theirs = heads(rng, BOX), heads(rng, ELSEWHERE)
    region, other = covered(BOX, 64, 64, 64), covered(ELSEWHERE, 64, 64, 64)

    def changed(one, box):
        content = torch.where(cells_of(box)[:, None], one.value, 9 * heads(rng, BOX).value)
        return Heads(content, content, content)

    want = float(aligned(mine, region, theirs, other))
    assert float(aligned(changed(mine, BOX), region, changed(theirs, ELSEWHERE), other)) == pytest.approx(want, abs=1e-4)
    assert float(aligned(mine, region, changed(theirs, (0.0, 0, 8, 8)), other)) != pytest.approx(want, abs=1e-3)


def test_attention_is_shared_out_among_regions_and_the_copy_looks_at_its_own():
    rng = np.random.default_rng(2)
    mine, region = heads(rng, BOX), covered(BOX, 64, 64, 64)
    theirs = Heads.stack([with_copy(mine, rng), heads(rng, ELSEWHERE)])
    looks = looks_at(theirs, mine, region)
    assert torch.allclose(looks + looks_at(theirs, mine, 1 - region), torch.ones(2, 64), atol=1e-5)
    assert densest_box(looks[0].numpy().reshape(8, 8), 64, 64) == ELSEWHERE


def test_the_densest_box_is_that_of_trying_all():
    rng = np.random.default_rng(3)
    for _ in range(5):
        cells = rng.normal(size=(4, 6))
        above = cells - cells.mean()
        tried = {(x0, y0, x1, y1): above[y0:y1, x0:x1].sum() for y0 in range(4) for y1 in range(y0 + 1, 5)
                 for x0 in range(6) for x1 in range(x0 + 1, 7)}
        assert densest_box(cells, 12, 8) == tuple(2.0 * v for v in max(tried, key=tried.get))
    assert densest_box(np.ones((8, 8)), 64, 64) == (0, 0, 64, 64)


def test_shares_of_cells_add_up_to_the_box_and_boxes_outside_are_refused():
    assert float(covered((3.5, 9, 21.25, 30), 64, 64, 64).sum()) * 64 == pytest.approx(17.75 * 21, rel=1e-5)
    assert covered((0, 0, 64, 32), 64, 32, 16).tolist() == [1.0] * 16
    with pytest.raises(ValueError, match="outside its picture of 64 x 64"):
        covered((70, 0, 80, 9), 64, 64, 64)


@pytest.fixture
def planted(monkeypatch):
    """Q and three pictures of 64 px, each with something before grey, the second with R_Q's content elsewhere; a picture's
    features are its patches' colours."""
    rng = np.random.default_rng(4)
    things = rng.integers(0, 255, (4, 3, 3, 3)).repeat(8, 1).repeat(8, 2)
    images = np.full((4, 64, 64, 3), 128, np.uint8)
    images[0, 8:32, 16:40], images[2, 32:56, 32:56] = things[0], things[0]
    images[1, 32:56, 32:56], images[3, 8:32, 16:40] = things[1], things[3]

    def features(pipe, latents, layers, time, seed):
        content = (latents[:, ::8, ::8].flatten(1, 2)[:, None] - 128) / 20
        return [{layer: Heads(c, c, c) for layer in layers} for c in content]

    monkeypatch.setattr(diffusion_matching, "encode", lambda pipe, pictures: torch.from_numpy(pictures).float())
    monkeypatch.setattr(diffusion_matching, "self_attention", features)
    gallery = Gallery([GalleryImage(str(i), f"x{i}", ()) for i in (1, 2, 3)], lambda file: images[int(file)])
    return Query(SAMPLE, images[0]), gallery


def test_a_planted_copy_is_found_with_its_box(planted):
    found = {a.image_id: a for a in DiffSim(None, MatchingConfig()).rank(*planted)}
    best = max(found.values(), key=lambda a: a.score)
    assert best.image_id == "x2" and best.box == ELSEWHERE and set(found) == {"x1", "x2", "x3"}


def test_answers_do_not_depend_on_what_was_asked_before_or_on_the_truth(planted):
    query, gallery = planted
    method = DiffSim(None, MatchingConfig())
    first = method.rank(query, gallery)
    hidden = replace(SAMPLE, exemplar_file="z", exemplar_box=(1.0, 1, 2, 2), individual_id="z", drawing="z", class_name="dog")
    assert method.rank(Query(hidden, query.image), gallery) == first


def test_proposals_are_the_only_regions_where_they_are_given(planted):
    wrong = (0.0, 0.0, 24.0, 24.0)
    boxes = {"x1": [wrong], "x2": [wrong, ELSEWHERE, wrong], "x3": np.zeros((0, 4))}
    asked = []
    method = DiffSim(None, MatchingConfig(), lambda image_id, name: asked.append(name) or np.array(boxes[image_id]))
    found = {a.image_id: a for a in method.rank(*planted)}
    assert found["x2"].box == ELSEWHERE and found["x1"].box == wrong and found["x2"].score > found["x1"].score
    assert found["x3"].box is None and found["x3"].score == float("-inf") and set(asked) == {"cat"}
    none = DiffSim(None, MatchingConfig(), lambda image_id, name: np.zeros((0, 4))).rank(*planted)
    assert all(a.box is None and a.score == float("-inf") for a in none)
