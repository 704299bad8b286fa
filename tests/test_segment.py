import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from ard.segment import (SamConfig, SamTraining, Segmenter, build_sam, close_up, jitter_boxes, load_sam, mask_iou,
                         predict_masks, sam_loss, save_sam, train_sam, window)

TINY = SamConfig(image_size=64, patch=8, width=16, depth=1, heads=2, prompt_width=32, mlp_width=32)


def discs(rng):
    """One scene of 32 px with two bright discs."""
    image, masks, boxes = rng.integers(0, 60, (32, 32, 3)), [], []
    y, x = np.mgrid[:32, :32]
    for side in (0, 1):
        cy, cx, r = rng.integers(10, 22), rng.integers(7, 10) + 15 * side, rng.integers(4, 7)
        masks.append((y - cy) ** 2 + (x - cx) ** 2 <= r * r)
        image[masks[-1]] = 220
        boxes.append((cx - r, cy - r, cx + r + 1, cy + r + 1))
    return [(image.astype(np.uint8), np.stack(masks), np.array(boxes, float))]


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_sam(TINY).eval()


def test_default_size_fits_the_budget(tmp_path):
    save_sam(build_sam(SamConfig()), SamConfig(), tmp_path)
    assert 0.9e6 < sum(p.numel() for p in load_sam(tmp_path).parameters()) < 1.3e6
    assert (tmp_path / "model.safetensors").stat().st_size < 3e6


def test_a_mask_covers_the_image_and_lies_in_the_window(sam):
    image = np.random.default_rng(0).integers(0, 255, (24, 32, 3)).astype(np.uint8)
    assert Segmenter(sam).segment(image, (2, 2, 20, 20)).shape == (24, 32)
    mask = Segmenter(sam, 1.5).segment(image, (2.0, 2.0, 8.0, 8.0))
    assert mask.shape == (24, 32) and mask.dtype == bool
    x0, y0, x1, y1 = window((2, 2, 8, 8), (24, 32), 1.5)
    mask[y0:y1, x0:x1] = False
    assert not mask.any()


def test_windows_hold_the_box_and_stay_in_the_image():
    rng = np.random.default_rng(0)
    for size in ((64, 64), (48, 80)):
        corners = np.sort(rng.uniform(0, 1, (300, 2, 2)), axis=1) * [size[1], size[0]]
        for x0, y0, x1, y1 in corners.reshape(-1, 4):
            left, top, right, bottom = window((x0, y0, x1, y1), size, 1.5)
            assert 0 <= left <= x0 and x1 <= right <= size[1] and 0 <= top <= y0 and y1 <= bottom <= size[0]
            assert right - left <= np.ceil(max(1.5 * max(x1 - x0, y1 - y0), max(x1 - x0, y1 - y0) + 2))


def test_a_close_up_shows_the_same_thing_enlarged():
    image, masks, boxes = discs(np.random.default_rng(3))[0]
    for mask, box in zip(masks, boxes):
        pixels, target, where = close_up(image, mask, box, 1.5, 96)
        assert pixels.shape == (96, 96, 3) and target.shape == (96, 96) and where.max() <= 96
        rows, cols = np.nonzero(target)
        assert np.abs(where - [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]).max() < 4
        assert pixels[target].mean() > 190 and pixels[~target].mean() < 60, "the disc is where its mask says"
    with pytest.raises(ValueError, match="square windows"):
        close_up(image[:20], masks[0][:20], (2, 2, 30, 18), 1.5, 96)


def test_batched_prediction_equals_the_predictor(sam):
    images = np.random.default_rng(1).integers(0, 255, (3, 64, 64, 3)).astype(np.uint8)
    boxes = torch.tensor([[2.0, 2, 30, 30], [5, 5, 60, 50], [10, 3, 40, 60]])
    with torch.no_grad():
        logits, iou = predict_masks(sam, torch.from_numpy(images).permute(0, 3, 1, 2).float(), boxes)
    assert logits.shape == (3, 64, 64) and iou.shape == (3,)
    predictor = SamPredictor(sam)
    for k in range(3):
        predictor.set_image(images[k])
        alone, score, _ = predictor.predict(box=boxes[k].numpy(), multimask_output=False, return_logits=True)
        assert np.allclose(alone[0], logits[k].numpy(), atol=1e-3) and score[0] == pytest.approx(float(iou[k]), abs=1e-4)


def test_mask_iou():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert mask_iou(a, b) == 1
    a[:2], b[1:3] = True, True
    assert mask_iou(a, b) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="different shapes"):
        mask_iou(a, b[:2])


def test_a_perfect_mask_costs_nothing():
    target = torch.zeros(1, 8, 8)
    target[:, 2:5] = 1
    good = sam_loss((target - 0.5) * 60, torch.ones(1), target)
    assert float(good) < 1e-3 < float(sam_loss((0.5 - target) * 60, torch.ones(1), target))


def test_jitter_keeps_boxes_in_the_image_and_alive():
    boxes = np.tile([[0.0, 0, 31, 31], [10, 10, 13, 13]], (50, 1))
    moved = jitter_boxes(boxes, np.random.default_rng(0), 0.5, 8, (32, 32))
    assert moved.min() >= 0 and moved.max() <= 32 and (moved[:, 2:] - moved[:, :2] >= 2).all()
    assert not np.array_equal(moved, boxes)


def test_training_learns_and_resumes_bit_by_bit(tmp_path):
    training = SamTraining(steps=30, batch=8, lr=3e-3, warmup=3, checkpoint_every=5)
    whole = train_sam(tmp_path / "whole", discs, TINY, training)

    def killed_scenes(rng):
        killed_scenes.calls += 1
        if killed_scenes.calls > 12 * 4:
            raise KeyboardInterrupt
        return discs(rng)

    killed_scenes.calls = 0
    with pytest.raises(KeyboardInterrupt):
        train_sam(tmp_path / "part", killed_scenes, TINY, training)
    assert not (tmp_path / "part/model.safetensors").exists()
    train_sam(tmp_path / "part", discs, TINY, training)
    assert (tmp_path / "part/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="other settings"):
        train_sam(tmp_path / "part", discs, TINY, training, seed=1)
    first = np.mean([mask_iou(Segmenter(build_sam(TINY), 1.5).segment(i, b), m) for r in range(5)
                     for i, ms, bs in discs(np.random.default_rng(r)) for m, b in zip(ms, bs)])
    now = np.mean([mask_iou(Segmenter(whole, 1.5).segment(i, b), m) for r in range(5)
                   for i, ms, bs in discs(np.random.default_rng(r)) for m, b in zip(ms, bs)])
    assert now > max(first + 0.1, 0.2)


def test_bad_input(sam, tmp_path):
    image = np.zeros((16, 16, 3), np.uint8)
    for box, message in (((5, 5, 5, 9), "x1 < x2"), ((0, 0, float("nan"), 4), "x1 < x2"), ((20, 20, 30, 30), "outside")):
        with pytest.raises(ValueError, match=message):
            Segmenter(sam).segment(image, box)
    with pytest.raises(ValueError, match="uint8 image"):
        Segmenter(sam).segment(image.astype(float), (0, 0, 4, 4))
    with pytest.raises(FileNotFoundError, match="config.json"):
        load_sam(tmp_path)
    (tmp_path / "config.json").write_text('{"width": 3}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="not a small SAM"):
        load_sam(tmp_path)
    with pytest.raises(ValueError, match="multiple"):
        build_sam(SamConfig(image_size=100))
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="vit_h"):
        load_sam(tmp_path / "x.pth")
