import copy
import dataclasses

import numpy as np
import pytest
import torch

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
