"""Rows that need no training of their own: GroundingDINO by its words, the exemplar-prompted detector by its exemplar alone."""

from __future__ import annotations

from ard.baselines.kit import Kit
from ard.baselines.registry import Entry
from ard.detector.model import load_detector
from ard.detector.variants import Variant, VariantMethod


def words_alone(kit: Kit) -> VariantMethod:
    """The open-set detector asked for the class name: what a detector of classes knows, with its best box in each image."""
    return VariantMethod(kit.finder, Variant(parts="text"), kit.features)


def exemplar_alone(kit: Kit) -> VariantMethod:
    """The exemplar-prompted detector asked without words: CountGD's exemplar-only use (its section on inference)."""
    model = load_detector(kit.data / "models/exemplar_prompted")
    return VariantMethod(model, Variant(parts="exemplar"), kit.features)


ENTRIES = [
    Entry("GroundingDINO (words alone)", words_alone, ("text",), "GroundingDINO, class name as caption", ("models/open_set",)),
    Entry("CountGD (exemplar alone)", exemplar_alone, ("box",), "CountGD, exemplar-only", ("models/exemplar_prompted",)),
]
