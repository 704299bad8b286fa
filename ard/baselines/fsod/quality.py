"""Whether the base training of VFA and ICPE came to something: their rows say what a real few-shot detector finds only then."""

from __future__ import annotations

from ard.baselines.fsod.rows import build
from ard.baselines.fsod.train import base_map50
from ard.baselines.kit import Kit
from ard.detector.pool import build_pool
from ard.world import World


def base_quality(kit: Kit, name: str, scenes: int) -> float:
    """Mean average precision at IoU .5 over the base classes, in new scenes of base drawings, with one support a class.

    name: vfa or icpe. Trains the detector first where `kit.work` does not hold it.
    """
    method = build(kit, name, binary=False)
    fresh = build_pool(World.load(kit.data / "world"), scenes, method.settings.seed + 1, kit.work / "fsod/pool")
    return base_map50(method.model, fresh, method.supports)
