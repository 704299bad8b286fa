import itertools

import numpy as np
import pytest
import torch
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from ard.detector import criterion as c
from ard.detector.joint import Match


def random_problem(seed: int, b: int = 3, n: int = 5, m: int = 3, t: int = 4):
    g = torch.Generator().manual_seed(seed)
    boxes, true = (torch.rand(b, k, 4, generator=g) * 0.5 + 0.2 for k in (n, m))
    tokens = torch.zeros(b, m, t).scatter_(2, torch.randint(t, (b, m, 1), generator=g), 1.0)
    real = torch.ones(b, m, dtype=torch.bool)
    real[0, 1:] = False
    return torch.randn(b, n, t, generator=g), boxes, c.Targets(true, tokens, real)


@pytest.mark.parametrize("setting", c.SETTINGS)
def test_matcher_against_brute_force(setting):
    for seed in range(5):
        logits, boxes, targets = random_problem(seed)
        cost = c.matching_cost(logits, boxes, targets, c.SETTINGS[setting])
        i, n, m = c.hungarian(cost, targets.real)
        for image, count in enumerate(targets.real.sum(1).tolist()):
            best = min(
                sum(cost[image, r, k] for k, r in enumerate(rows)) for rows in itertools.permutations(range(5), count)
            )
            assert torch.isclose(cost[image, n[i == image], m[i == image]].sum(), best, atol=1e-5)


def test_cost_is_the_published_sum():
    logits, boxes, targets = random_problem(1)
    cost = c.matching_cost(logits, boxes, targets, c.SETTINGS["groundingdino"])
    token = int(targets.tokens[1, 2].argmax())
    p = float(logits[1, 4, token].sigmoid())
    by_class = 0.25 * (1 - p) ** 2 * -np.log(p) - 0.75 * p**2 * -np.log(1 - p)
    by_box = float((boxes[1, 4] - targets.boxes[1, 2]).abs().sum())
    by_giou = -float(c.giou(c.corners(boxes[1, 4]), c.corners(targets.boxes[1, 2])))
    assert float(cost[1, 4, 2]) == pytest.approx(by_class + 5 * by_box + 2 * by_giou, abs=1e-5)


def test_an_image_matched_alone_equals_it_in_a_batch():
    logits, boxes, targets = random_problem(2)
    i, n, m = c.hungarian(c.matching_cost(logits, boxes, targets, c.SETTINGS["groundingdino"]), targets.real)
    for image in range(3):
        one = c.Targets(*(t[image : image + 1] for t in (targets.boxes, targets.tokens, targets.real)))
        cost = c.matching_cost(logits[image : image + 1], boxes[image : image + 1], one, c.SETTINGS["groundingdino"])
        _, rows, columns = c.hungarian(cost, one.real)
        assert set(zip(rows.tolist(), columns.tolist())) == set(zip(n[i == image].tolist(), m[i == image].tolist()))


def test_giou_against_torchvision():
    from torchvision.ops import generalized_box_iou

    _, boxes, targets = random_problem(3)
    a, b = c.corners(boxes[0]), c.corners(targets.boxes[0])
    assert torch.allclose(c.giou(a[:, None], b[None]), generalized_box_iou(a, b), atol=1e-6)


def test_focal_loss_against_torchvision():
    from torchvision.ops import sigmoid_focal_loss

    logits, target = torch.randn(4, 5), torch.randint(2, (4, 5)).float()
    assert torch.allclose(c.focal_loss(logits, target), sigmoid_focal_loss(logits, target, 0.25, 2.0), atol=1e-6)


def test_images_without_objects_give_only_a_class_loss():
    targets = c.make_targets([np.empty((0, 4))] * 2, [[], []], torch.zeros(2, 1, 3))
    loss = c.set_loss(torch.randn(2, 4, 3), torch.rand(2, 4, 4), targets, c.SETTINGS["groundingdino"], 1.0)
    assert float(loss["class"]) > 0 and float(loss["box"]) == 0 and float(loss["giou"]) == 0


def test_boxes_without_labels_are_refused():
    with pytest.raises(ValueError, match="image 0: 1 boxes but 0 labels"):
        c.make_targets([np.ones((1, 4))], [[]], torch.zeros(1, 1, 3))


def test_a_class_cost_is_a_mean_over_the_tokens_of_the_object():
    logits, boxes, targets = random_problem(1)
    one, two = (torch.zeros_like(targets.tokens) for _ in range(2))
    one[..., 0], two[..., :2] = 1, 1
    twin = logits.clone()
    twin[..., 1] = twin[..., 0]  # both tokens say the same
    found = [c.matching_cost(twin, boxes, c.Targets(targets.boxes, t, targets.real), c.SETTINGS["groundingdino"]) for t in (one, two)]
    assert torch.allclose(*found, atol=1e-5)


def by_hand(logits, boxes, targets, image, weights):
    """Class, box and GIoU loss of one image's regions, summed: (N, T), (N, 4)."""
    one = c.Targets(*(t[image : image + 1] for t in (targets.boxes, targets.tokens, targets.real)))
    _, rows, objects = c.hungarian(c.matching_cost(logits[None], boxes[None], one, weights), one.real)
    wanted = torch.zeros_like(logits)
    for row, m in zip(rows, objects):
        wanted[row] = one.tokens[0, m]
    pairs = [(c.corners(boxes[r]), c.corners(one.boxes[0, m])) for r, m in zip(rows, objects)]
    return torch.tensor([float(sigmoid_focal_loss(logits, wanted, 0.25, 2.0).sum()),
                         sum(float((boxes[r] - one.boxes[0, m]).abs().sum()) for r, m in zip(rows, objects)),
                         sum(1 - float(generalized_box_iou(a[None], b[None])) for a, b in pairs)])


@pytest.mark.parametrize("setting", c.SETTINGS)
def test_the_whole_loss_is_a_sum_over_layers_and_the_best_of_the_first_stage(setting):
    weights, layers, top, targets = c.SETTINGS[setting], 2, 4, random_problem(0)[2]
    answers = [random_problem(seed)[:2] for seed in (5, 6)]
    first_logits, first_boxes = random_problem(7, n=9)[:2]
    match = Match(torch.stack([b for _, b in answers], 1), torch.stack([x for x, _ in answers], 1), first_boxes, first_logits,
                  *[torch.empty(0)] * 5)
    total, log = c.detection_loss(match, targets, setting, top)
    objects = int(targets.real.sum())
    decoder = sum(by_hand(x[i], b[i], targets, i, weights) for x, b in answers for i in range(3)) / objects
    encoder = torch.zeros(3)
    for i in range(3):
        best = sorted(range(9), key=lambda k: -float(first_logits[i, k].max()))[:top]
        encoder += by_hand(first_logits[i][best], first_boxes[i][best], targets, i, weights) / objects
    assert float(total) == pytest.approx(float((torch.tensor(weights.loss) * (decoder + encoder)).sum()), rel=1e-4)
    assert [log[k] for k in ("class", "box", "giou")] == pytest.approx((decoder / layers).tolist(), rel=1e-4)
    assert [log[f"encoder_{k}"] for k in ("class", "box", "giou")] == pytest.approx(encoder.tolist(), rel=1e-4)
    assert np.isclose(log["loss"], float(total))
