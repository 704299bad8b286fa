"""Ranking objectives against brute force; only the strongest negatives count where they are mined."""

import math

import numpy as np
import pytest
import torch

from ard.detector import phases
from ard.detector.objectives import image_scores, infonce, ranking_loss, strongest
from ard.detector.prompts import EXEMPLAR
from ard.detector.train import TrainSettings

SCORES = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])


def test_losses_against_brute_force():
    rows = SCORES.tolist()
    pairs = [math.log(1 + math.exp(n - x)) for x, *negatives in rows for n in negatives]
    assert float(ranking_loss(SCORES)) == pytest.approx(sum(pairs) / 4, abs=1e-6)
    shares = [math.exp(row[0]) / sum(map(math.exp, row)) for row in rows]
    assert float(infonce(SCORES)) == pytest.approx(-sum(map(math.log, shares)) / 2, abs=1e-6)


def test_the_strongest_negatives_are_kept_and_x_always():
    scores = torch.tensor([[0.0, 5.0, 1.0, 3.0], [9.0, 1.0, 2.0, 0.0]])
    assert strongest(scores, 2).tolist() == [0, 1, 3, 4, 6, 5]


def test_an_image_scores_as_its_strongest_region(phase_data, tiny):
    batch = phases.phase2_batches(phase_data, 2, 2)(np.random.default_rng(0))
    with torch.no_grad():
        logits = tiny.match(batch.features, batch.prompt).logits
    found = image_scores(logits, batch.prompt, "exemplar", 3)
    brute = [float(logits[i][:, batch.prompt.kind[i] == EXEMPLAR].max()) for i in range(6)]
    assert torch.allclose(found.flatten(), torch.tensor(brute), atol=1e-3) and found.shape == (2, 3)


@pytest.mark.parametrize("objective", ["focal", "ranking", "infonce"])
def test_every_objective_moves_f_alone_and_falls(phase_data, tiny, tmp_path, objective):
    settings = TrainSettings(steps=1, batch_size=2, warmup=0, learning_rate=1e-3, log_every=1, clip=10.0)
    before = {name: p.detach().clone() for name, p in tiny.named_parameters()}
    batches = phases.phase2_batches(phase_data, 2, 2)
    phases.train_phase2(tiny, phase_data, settings, tmp_path, k=2, lambda_reg=0.0, objective=objective)
    moved = {name for name, p in tiny.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith(("score_head.region.", "score_head.token.")) for name in moved)
    loss, batch = phases.phase2_loss(settings, 1.0, 0.0, objective), batches(np.random.default_rng([0, 0]))
    after = float(loss(tiny, batch)[0])
    with torch.no_grad():
        for name, p in tiny.named_parameters():
            p.copy_(before[name])
    assert after < float(loss(tiny, batch)[0])


def test_mined_negatives_are_the_hardest_of_those_drawn(phase_data, tiny):
    settings = TrainSettings(steps=1)
    batch = phases.phase2_batches(phase_data, 2, 4)(np.random.default_rng(0))
    losses = [float(phases.phase2_loss(settings, 1.0, 0.0, "infonce", keep)(tiny, batch)[0]) for keep in (1, 2, 4, 0)]
    assert losses[2] == losses[3], "all of them are all of them"
    with torch.no_grad():
        logits = tiny.match(batch.features, batch.prompt, adapted=True).logits
        scores = image_scores(logits, batch.prompt, tiny.config.score_rule, 5)
    hardest = torch.cat([scores[:, :1], scores[:, 1:].sort(1, descending=True).values], 1)
    assert losses[:2] == pytest.approx([float(infonce(hardest[:, : keep + 1])) for keep in (1, 2)], abs=1e-5)
