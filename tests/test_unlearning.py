"""The controls of unlearning: who is forgotten, what comes back, and the shares against brute force; the test split is refused."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from ard import unlearning
from ard.baselines.abu import AbUConfig
from tests.baselines.test_abu import flat_fisher, sample, same_bytes, snapshot
from tests.tiny_pipeline import tiny_pipeline

CONFIG = AbUConfig(pictures=1, draws=4, times=3)
RNG = np.random.default_rng(0)


def test_forgetting_a_picture_raises_its_own_loss_most_and_is_undone(tmp_path):
    pipe, pictures = tiny_pipeline(tmp_path), RNG.integers(0, 255, (4, 32, 32, 3), np.uint8)
    pipe.unet.requires_grad_(False)
    before = snapshot(pipe)
    found = unlearning.losses(nullcontext(pipe), "a photo of a cat .", pictures, {"R_Q": pictures[2], "noise": None}, (1e-4, 1e-3),
                              flat_fisher(pipe), CONFIG)
    assert list(found) == ["nothing", "R_Q at 0.0001", "R_Q at 0.001", "noise at 0.0001", "noise at 0.001"]
    assert same_bytes(before, snapshot(pipe))
    first, small, large = (np.array(found[what]) for what in list(found)[:3])
    assert small[2] > first[2] and large[2] > small[2]
    assert not np.allclose(found["R_Q at 0.001"], found["noise at 0.001"], rtol=1e-5)


def test_a_region_stands_in_the_middle_of_its_frame():
    class Pictures:
        def pixels(self, file):
            picture = np.zeros((64, 64, 3), np.uint8)
            picture[4:20, 4:20] = 255
            return picture

    [framed] = unlearning.framed_regions(Pictures(), [sample()], "query", 0.25)
    ys, xs = np.nonzero(framed[..., 0] > 127)
    assert framed.shape == (64, 64, 3) and abs(ys.mean() - 31.5) < 1 and abs(xs.mean() - 31.5) < 1
    assert len(ys) == pytest.approx(0.25 * 64 * 64, rel=0.15)


def test_a_partner_is_of_the_class_and_another_concept():
    kinds = [("c0", "cat"), ("c1", "dog"), ("c0", "cat"), ("c2", "cat"), ("c3", "horse")]
    samples = [replace(sample(i), concept_id=c, class_name=n) for i, (c, n) in enumerate(kinds)]
    assert [unlearning.partner(samples, i) for i in range(5)] == [3, 2, 3, 0, 0]
    with pytest.raises(ValueError, match="second concept"):
        unlearning.partner(samples[:1], 0)


def test_shares_are_those_of_counting():
    n, rng = 5, np.random.default_rng(1)
    queries = [{what: rng.random(n).tolist() for what in ("R_Q at 0.1", "nothing", "noise at 0.1")} for _ in range(n)]
    classes = ["cat", "cat", "dog", "dog", "bird"]
    rows = {row["forgets"]: row for row in unlearning.table({"G_i": queries}, classes)}
    assert next(iter(rows)) == "nothing", "the loss itself comes first"
    for what, row in rows.items():
        every, same = [], []
        for i, q in enumerate(queries):
            rise = [(q[what][j] - q["nothing"][j]) if what != "nothing" else -q["nothing"][j] for j in range(n)]
            every.append(np.mean([rise[j] < rise[i] for j in range(n) if j != i]))
            same += [rise[j] < rise[i] for j in range(n) if j != i and classes[j] == classes[i]]
        assert row["above"] == pytest.approx(np.mean(every)) and row["above_class"] == pytest.approx(np.mean(same))
        assert row["first"] == pytest.approx(np.mean(np.array(every) == 1)) and row["n_queries"] == n
    assert rows["R_Q at 0.1"]["minus"] == pytest.approx(rows["R_Q at 0.1"]["above"] - rows["noise at 0.1"]["above"])
    assert rows["noise at 0.1"]["minus"] is None and rows["nothing"]["rise"] is None
    own = np.median([(q["R_Q at 0.1"][i] - q["nothing"][i]) / q["nothing"][i] for i, q in enumerate(queries)])
    assert rows["R_Q at 0.1"]["rise"] == pytest.approx(own)


def test_a_tie_counts_against():
    same = [{"nothing": [1.0, 1.0]}] * 2
    assert unlearning.table({"G_i": same}, ["cat", "cat"])[0]["above"] == 0


def test_the_test_split_is_refused():
    with pytest.raises(ValueError, match="choose by it"):
        unlearning.asked_of(None, "test")
