"""`python -m ard.bench detector`: what a pair of query and gallery picture costs, part by part, with and without caches.

Counts floating-point operations and takes seconds of the same run: as released (both backbones for every pair, FACTS 1.7,
DESIGN 10), with gallery features kept, and with both sides kept. Seconds depend on the machine, operations do not.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

from ard.backbones import freeze
from ard.detector.criterion import detection_loss, make_targets
from ard.detector.features import IMAGE_SIZE
from ard.detector.late import LateFusedConfig, LateFusedDetector
from ard.detector.model import AttributionConfig, AttributionGroundingDinoForObjectDetection
from ard.detector.processor import AttributionProcessor
from ard.detector.prompts import phrase_map
from ard.detector.published import SIZES, AttributionDetector, Pictures, published_config
from ard.detector.readings import read
from ard.detector.tied import TiedGroundingDinoForObjectDetection
from ard.precision import bfloat16

app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Cost:
    """Of one part: operations in billions (None: not counted), seconds, and what it returned."""

    gflop: float | None
    seconds: float
    result: Any = None


def cost(run: Callable[[], Any], warm: bool = False) -> Cost:
    """Count one call and time another, or (`warm`) the one after that: what is compiled is not compiled while it is counted.

    Sampling of deformable attention is not counted: it has no products of matrices.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    if warm:
        run()
    seconds, result = timed(run)
    return Cost(counter.get_total_flops() / 1e9, seconds, result)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it returned; a GPU has done all that was asked before and of it."""
    def done() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    start, result = done(), run()
    return done() - start, result


def peak_memory(device: str) -> float:
    """GiB that this process has held at most, on its GPU or in all."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def build(size: str, seed: int = 0, **changes):
    """A detector with random weights, which ask for no gradient, and its processor: "mini", "T-B", "B-B" or "B-L".

    `changes` go over its configuration; with `fused_layers` a published one fuses late.
    """
    torch.manual_seed(seed)
    if size == "mini":
        return freeze(AttributionGroundingDinoForObjectDetection(AttributionConfig(**changes))), AttributionProcessor.mini()
    fused_layers = changes.pop("fused_layers", 0)
    config = published_config(size, **changes)
    detector = LateFusedDetector(LateFusedConfig.of(config, fused_layers)) if fused_layers else AttributionDetector(config)
    return freeze(detector), AttributionProcessor()


def pair_costs(detector, processor: AttributionProcessor, side: int = 800, seed: int = 0, warm: bool = False) -> dict[str, Cost]:
    """The parts "image", "query", "match" of one pair of `side` px squares, and "whole", which keeps nothing.

    Raises AssertionError when the parts give another answer than the whole, in any bit.
    """
    rng = np.random.default_rng(seed)
    gallery, query = (rng.integers(0, 255, (side, side, 3), dtype=np.uint8) for _ in range(2))
    box = [[0.2 * side, 0.2 * side, 0.7 * side, 0.8 * side]]
    ready = processor(query, box)
    pixels, asked = (batch.to(detector.device) if isinstance(batch, Pictures) else batch
                     for batch in (processor.collate([processor(gallery)]), processor.collate([ready])))
    where = torch.from_numpy(ready.boxes).float()
    with torch.no_grad():
        parts = {"image": cost(lambda: detector.encode_image(pixels)), "query": cost(lambda: detector.encode_query(asked, where, ["cat"]))}
        parts["match"] = cost(lambda: detector.match(parts["image"].result, parts["query"].result), warm)
        parts["whole"] = cost(lambda: detector.match(detector.encode_image(pixels), detector.encode_query(asked, where, ["cat"])))
    one, other = parts["match"].result, parts["whole"].result
    assert torch.equal(one.logits, other.logits) and torch.equal(one.layer_boxes, other.layer_boxes), "a cache changed the answer"
    return parts


def ranking_seconds(count: int = 1000, seed: int = 0) -> float:
    """Seconds in which the mini detector, read as ARD is, ranks `count` kept pictures for one query."""
    model = TiedGroundingDinoForObjectDetection.of(build("mini", seed, likeness=True)[0], likeness_weight=1.5, pooling=2.0)
    pictures = np.random.default_rng(seed).integers(0, 255, (1, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    kept, asked = model.encode_image(pictures).repeat(count, 1), model.encode_query(pictures, [[8.0, 8.0, 56.0, 48.0]], ["cat"])
    start = time.perf_counter()
    found = read(model, asked, kept, [f"{i}" for i in range(count)], (True,))[0]
    assert len(found.ranked) == count
    return time.perf_counter() - start


def step_cost(detector, kept: Any, prompt: Any) -> Cost:
    """One training step on a pair whose features are kept: match, loss, gradients; timed alone, since the counter fails there."""
    targets = make_targets([np.array([[0.5, 0.5, 0.5, 0.6]])], [[0]], phrase_map(prompt))
    detector.train().requires_grad_(True)
    done = Cost(None, timed(lambda: detection_loss(detector.match(kept, prompt), targets)[0].backward())[0])
    freeze(detector).zero_grad(set_to_none=True)
    return done


def table(parts: dict[str, Cost], step: Cost | None = None) -> list[tuple[str, float | None, float]]:
    """(what, GFLOP, seconds) of the ways to answer one pair, and of a training step."""
    image, query, match = (parts[name] for name in ("image", "query", "match"))
    rows = [(name, parts[name].gflop, parts[name].seconds) for name in ("image", "query", "match")]
    ways = {"a pair, nothing kept": (image, query, match), "a pair, gallery kept": (query, match), "a pair, both sides kept": (match,)}
    if step is not None:
        ways |= {"a training step, nothing kept": (image, query, step), "a training step, both sides kept": (step,)}
    for name, costs in ways.items():
        counted = None if any(c.gflop is None for c in costs) else sum(c.gflop for c in costs)
        rows.append((name, counted, sum(c.seconds for c in costs)))
    return rows


@app.callback()
def main() -> None:
    """Benchmarks that a person runs; none of them is a test."""


@app.command()
def detector(size: str = typer.Option("mini", help=f"mini, {', '.join(SIZES)}"),
             side: int = typer.Option(0, help="px of a square picture; 0: 64 for mini, 800 else"),
             fused: int = typer.Option(0, help="how many of the coarsest maps go through the fusion encoder; 0: as configured"),
             fused_layers: int = typer.Option(0, help="how many encoder layers, the last ones, mix image and query; 0: all"),
             bf16: bool = typer.Option(False, help="bfloat16, where the device multiplies it in hardware"),
             device: str = typer.Option("cpu", help="or cuda, for published sizes"),
             compiled: bool = typer.Option(False, help="torch.compile what image and query meet in; the first call takes minutes"),
             train: bool = typer.Option(True, help="also a training step")) -> None:
    """Operations and seconds of one pair, part by part."""
    if size not in ("mini", *SIZES):
        raise typer.BadParameter(f"expected mini or one of {', '.join(SIZES)}, found {size}")
    if size == "mini" and fused_layers:
        raise typer.BadParameter("only published sizes are cut where image and query first meet")
    if size == "mini" and (bf16 or device != "cpu"):
        raise typer.BadParameter("the mini detector's backbone runs in float32 on the processor")
    side = side or (64 if size == "mini" else 800)
    changes = {"fused_levels": fused, "fused_layers": fused_layers}
    model, processor = build(size, **{name: value for name, value in changes.items() if value})
    model.to(device)
    if compiled:
        model.match = torch.compile(model.match)
    with bfloat16(device, bf16):
        parts = pair_costs(model, processor, side, warm=compiled)
        step = step_cost(model, parts["image"].result, parts["query"].result) if train else None
    rows = table(parts, step)
    print(f"{size}, {side} px, {device}{', bfloat16' * bf16}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    for name, gflop, seconds in rows:
        against = [row for row in rows if row[0].startswith(name.partition(",")[0]) and row[0].endswith("nothing kept")]
        gain = "".join(f"{row[2] / seconds:9.2f} x faster" + (f", {row[1] / gflop:.2f} x fewer" if gflop else "") for row in against)
        print(f"{name:36}{'' if gflop is None else f'{gflop:.2f} GFLOP':>16}{seconds:10.4f} s{gain}")
    print(f"{1 / rows[5][2]:.1f} gallery pictures a second, one at a time; peak memory "
          f"{peak_memory(device):.1f} GiB; kept and not kept answer alike, bit by bit")
    if size == "mini":
        print(f"1,000 kept pictures ranked for one query in {ranking_seconds():.1f} s on {torch.get_num_threads()} threads")


if __name__ == "__main__":
    app()
