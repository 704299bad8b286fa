import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from ard.detector import train as t
from ard.detector.pretrain import exemplar_batches, other_individual, text_batches
from ard.files import FileError
from tests.detector.conftest import NAMES

SETTINGS = t.TrainSettings(
    steps=6, batch_size=3, warmup=2, log_every=2, checkpoint_every=2, ema=0.9, learning_rate=1e-3
)


def fresh(tiny):
    return copy.deepcopy(tiny)


def test_resume_equals_uninterrupted_bit_for_bit(tiny, pool, tmp_path):
    make = exemplar_batches(pool, NAMES, 3)
    whole, killed = fresh(tiny), fresh(tiny)
    t.train(whole, make, SETTINGS, tmp_path / "whole")

    calls = []

    def dying(rng):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return make(rng)

    with pytest.raises(KeyboardInterrupt):
        t.train(killed, dying, SETTINGS, tmp_path / "killed")
    resumed = fresh(tiny)
    t.train(resumed, make, SETTINGS, tmp_path / "killed")
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters()):
        assert torch.equal(a, b), name
    assert (tmp_path / "whole/log.jsonl").read_bytes() == (tmp_path / "killed/log.jsonl").read_bytes()


def test_a_checkpoint_of_other_settings_is_refused(tiny, pool, tmp_path):
    short = dataclasses.replace(SETTINGS, steps=2)
    t.train(fresh(tiny), text_batches(pool, NAMES, 2), short, tmp_path)
    with pytest.raises(FileError, match="other settings"):
        t.train(fresh(tiny), text_batches(pool, NAMES, 2), SETTINGS, tmp_path)


def test_a_toy_detector_learns(tiny, pool, tmp_path):
    settings = dataclasses.replace(SETTINGS, steps=24, log_every=6, ema=0.0, learning_rate=5e-3)
    rows = t.train(tiny, text_batches(pool, NAMES, 4), settings, tmp_path)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


def test_schedules():
    cosine = t.TrainSettings(steps=100, warmup=1, learning_rate=1.0)
    assert t.learning_rate(cosine, 0) == 1.0 and t.learning_rate(cosine, 50) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="'cosine' or 'step'"):
        t.TrainSettings(steps=1, schedule="linear")


def test_an_exemplar_is_another_individual_in_another_scene(pool):
    rng = np.random.default_rng(0)
    same = dataclasses.replace(pool, individual=np.where(np.arange(12) == 4, "individual 0", pool.individual))
    candidates = np.flatnonzero(pool.label == 0)
    assert {other_individual(rng, same, candidates, 0) for _ in range(50)} == {8}
    assert other_individual(rng, same, np.array([0]), 0) is None


def test_text_batches_label_each_box_with_its_phrase(pool):
    batch = text_batches(pool, NAMES, 32)(np.random.default_rng(1))
    assert batch.targets.real.any() and not batch.targets.real.all(), (
        "some scenes are asked only for what they do not show"
    )
    lit = batch.targets.tokens[batch.targets.real]
    kinds = batch.prompt.kind[torch.nonzero(batch.targets.real)[:, 0]]
    assert (kinds[lit.bool()] == 1).all() and (lit.sum(1) >= 1).all()


def test_a_checkpoint_of_another_recipe_or_other_frozen_weights_or_torn_is_refused(tiny, pool, tmp_path):
    def trained(model, **told):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("score_head."))
        return t.train(model, text_batches(pool, NAMES, 2), dataclasses.replace(SETTINGS, steps=2), tmp_path, **told)

    rows = trained(fresh(tiny), recipe={"k": 2})
    assert trained(fresh(tiny), recipe={"k": 2}) == rows
    with pytest.raises(FileError, match="other recipe"):
        trained(fresh(tiny), recipe={"k": 4})
    other = fresh(tiny)
    torch.nn.init.normal_(other.exemplar_projection.weight)
    with pytest.raises(FileError, match="other frozen weights"):
        trained(other, recipe={"k": 2})
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="checkpoint.pt: no checkpoint"):
        trained(fresh(tiny), recipe={"k": 2})


def test_killed_while_the_last_log_is_written_it_is_written_then(tiny, pool, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    make, whole = text_batches(pool, NAMES, 2), t.train(fresh(tiny), text_batches(pool, NAMES, 2), SETTINGS, tmp_path / "whole")
    with monkeypatch.context() as torn, pytest.raises(KeyboardInterrupt):
        torn.setattr(t, "write_jsonl", lambda path, rows, write=t.write_jsonl: killed() if len(rows) == len(whole) else write(path, rows))
        t.train(fresh(tiny), make, SETTINGS, tmp_path / "killed")
    t.train(fresh(tiny), make, SETTINGS, tmp_path / "killed")
    assert (tmp_path / "killed/log.jsonl").read_bytes() == (tmp_path / "whole/log.jsonl").read_bytes()


class Slope(nn.Module):
    """One weight whose loss is `pull` times itself; keeps what it was at each step."""

    def __init__(self, pull=1.0):
        super().__init__()
        self.weight, self.pull, self.seen, self.draws = nn.Parameter(torch.tensor([2.0])), pull, [], []

    def train_with(self, folder, **changes):
        settings = t.TrainSettings(**{"steps": 6, "warmup": 0, "schedule": "step", "drop_at": 1.0, "learning_rate": 0.1, "weight_decay": 0.0,
                                      "log_every": 4, "checkpoint_every": 4, **changes})
        rows = t.train(self, lambda rng: self.draws.append(rng.random()), settings, folder, lambda model, _: self.loss())
        return rows, float(self.weight.detach())

    def loss(self):
        self.seen.append(float(self.weight.detach()))
        return self.pull * self.weight.sum(), {"loss": self.seen[-1]}


def test_a_row_of_the_log_is_a_mean_over_its_steps_also_the_last_and_each_step_draws_anew(tmp_path):
    model = Slope()
    rows, _ = model.train_with(tmp_path)
    assert [row["step"] for row in rows] == [4, 6] and len(set(model.draws)) == 6
    assert [row["loss"] for row in rows] == pytest.approx([np.mean(model.seen[:4]), np.mean(model.seen[4:])], abs=1e-6)


def test_the_average_follows_quickly_at_first_and_is_what_remains(tmp_path):
    model = Slope()
    _, kept = model.train_with(tmp_path, ema=0.9)
    after, average = model.seen[1:], 2.0  # what was seen at a step is what the one before left
    after.append(float(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["weights"]["weight"]))
    for step, weight in enumerate(after):
        average += (1 - min(0.9, (1 + step) / (10 + step))) * (weight - average)
    assert kept == pytest.approx(average, rel=1e-5) and abs(kept - after[-1]) > 0.01


def test_weights_decay_as_told_and_a_clipped_gradient_moves_nothing(tmp_path):
    assert Slope(0.0).train_with(tmp_path / "a", weight_decay=0.5)[1] == pytest.approx(2 * (1 - 0.1 * 0.5) ** 6)
    assert Slope().train_with(tmp_path / "b", clip=0.0)[1] == 2.0 and Slope().train_with(tmp_path / "c")[1] < 1.5


def test_a_loss_that_is_no_number_stops_the_training(tmp_path):
    with pytest.raises(FloatingPointError, match="at step 0; lower the learning rate"):
        Slope(float("nan")).train_with(tmp_path)
