"""What the caches save: the parts add up to the whole, and a kept gallery asks the backbone for nothing."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ard import bench
from ard.detector.attribute import Attributor
from ard.detector.processor import AttributionProcessor
from ard.detector.published import AttributionDetector
from tests.detector.official import small_config


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return AttributionDetector(small_config()).eval().requires_grad_(False), AttributionProcessor(96, 160)


def test_parts_add_up_and_keeping_both_sides_leaves_the_joint_part(small):
    parts = bench.pair_costs(*small, side=96)
    assert parts["whole"].gflop == pytest.approx(sum(parts[n].gflop for n in ("image", "query", "match")), rel=1e-9)
    rows = {name: gflop for name, gflop, _ in bench.table(parts)}
    assert rows["a pair, both sides kept"] == parts["match"].gflop < rows["a pair, gallery kept"] < rows["a pair, nothing kept"]
    assert parts["query"].gflop > parts["image"].gflop > 0, "the query has text and an exemplar besides"


def test_counted_operations_are_those_of_the_matrices():
    a, b = torch.zeros(20, 30), torch.zeros(30, 50)
    assert bench.cost(lambda: a @ b).gflop == pytest.approx(2 * 20 * 30 * 50 / 1e9)


def test_fusing_fewer_levels_costs_less(small):
    detector, processor = small
    torch.manual_seed(0)
    coarse = AttributionDetector(small_config(fused_levels=3)).eval().requires_grad_(False)
    every, few = (bench.pair_costs(d, processor, side=96)["match"].gflop for d in (detector, coarse))
    assert few < 0.6 * every


def test_a_kept_gallery_is_not_looked_at_again(small):
    detector, processor = small
    rng, calls = np.random.default_rng(0), []
    hook = detector.model.backbone.conv_encoder.register_forward_hook(lambda module, given, out: calls.append(len(given[0])))
    pictures = {f"{i}": rng.integers(0, 255, (96, 96, 3), dtype=np.uint8) for i in range(6)}
    attributor = Attributor(detector, processor, batch=4)
    index = attributor.index(pictures)
    assert calls == [4, 2]
    for name in ("cat", "dog", None):
        attributor.attribute(pictures["0"], [10, 10, 60, 60], name, index)
    hook.remove()
    assert calls == [4, 2, 1, 1, 1], "one look at each query, none at the gallery"


def test_the_command_prints_every_row():
    result = CliRunner().invoke(bench.app, ["detector"])
    assert result.exit_code == 0, result.output
    for row in ("image", "match", "a pair, both sides kept", "a training step, both sides kept", "bit by bit", "1,000 kept pictures ranked"):
        assert row in result.output
    assert CliRunner().invoke(bench.app, ["detector", "--size", "huge"]).exit_code == 2
    for told in (["--fused-layers", "1"], ["--device", "cuda"], ["--bf16"]):
        assert CliRunner().invoke(bench.app, ["detector", *told]).exit_code == 2


def test_a_late_one_of_a_published_size_is_built():
    detector, _ = bench.build("T-B", fused_layers=2, num_queries=20)
    assert len(detector.ahead) == 4 and len(detector.model.encoder.layers) == 2 and detector.config.num_queries == 20


def test_what_is_compiled_is_timed_once_it_is(monkeypatch):
    calls = []
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(len(calls)))
    for warm in (False, True):
        calls.clear()
        found = bench.cost(lambda: calls.append(1) or len(calls), warm)
        assert (found.result, found.seconds) == (3 if warm else 2, 1.0)


def test_a_published_size_runs_in_bfloat16(small, monkeypatch):
    monkeypatch.setattr(bench, "build", lambda size, **told: (AttributionDetector(small_config()).eval().requires_grad_(False), small[1]))
    result = CliRunner().invoke(bench.app, ["detector", "--size", "T-B", "--side", "96", "--bf16", "--no-train"])
    assert result.exit_code == 0 and "cpu, bfloat16" in result.output, result.output
