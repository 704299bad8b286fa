"""A test set of its own is asked in the same words as the first one: by the methods of notebook 08 and by some of the arena.

Between `ard.release`, which makes such sets, and the tables of notebooks 31 and 33 (DESIGN 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ard import arena, arena_tables, report
from ard.baselines import abc
from ard.baselines.colour_histogram import colour_histogram
from ard.baselines.cosine import CropRanker, ImageRanker
from ard.baselines.kit import Kit
from ard.baselines.registry import entries
from ard.detector.method import DetectorMethod
from ard.detector.operating import load_threshold
from ard.detector.tied import load_detector
from ard.evaluation import Answers, Ask, alone, asked_samples, collect, train_abc
from ard.metrics import Outcome
from ard.records import Dataset, Query, Sample
from ard.release import joined
from ard.rendered import rendered_query
from ard.world import World


def opened(known: str | Path, held_out: str | Path, max_exemplars: int = 0) -> Dataset:
    """The dataset in `known` with the test split of the one in `held_out`, of whose queries only those of the first
    `max_exemplars` exemplars are asked (0: all)."""
    dataset = joined(Dataset.load(known), Dataset.load(held_out))
    return replace(dataset, samples={**dataset.samples, "test": asked_samples(dataset, "test", 0, max_exemplars)})


def evaluated(kit: Kit, threshold: float = 0.0, abc_epochs: int = 60, boxes_only: bool = False) -> dict[str, Ask]:
    """The methods of notebook 08: rivals that see frozen features or colours, then the detectors.

    threshold: score from which a box of the class counts for crop rows; 0: the open-set detector's own. boxes_only: without the
    methods that compare whole pictures.
    """
    proposals, encode = kit.proposals_at(threshold or load_threshold(kit.data / "models/open_set")), kit.efficientnet
    methods = {"colour histogram": CropRanker(colour_histogram, proposals), "crop cosine": CropRanker(encode, proposals)}
    if not boxes_only:
        mappers = train_abc(kit.dataset, encode, abc.AbCConfig(epochs=abc_epochs), kit.work / "abc.safetensors")
        methods |= {"image cosine": ImageRanker(encode), "AbC": abc.abc_method(mappers, encode)}
    methods["CountGD (untrained)"] = DetectorMethod(load_detector(kit.data / "models/exemplar_prompted"), kit.features)
    return {name: alone(name, methods[name]) for name in arena_tables.EVALUATED if name in methods}


def ask_generated(kit: Kit, asks: Mapping[str, Ask], others: Sequence[str] = ()) -> Answers:
    """Answers of `asks`, of the arena's `others` and of ARD to all test queries of the kit's dataset. Kept query by query in the kit's
    folder, so a killed run goes on. ValueError: two of them answer for the same row."""
    samples, known, answers = kit.dataset.samples["test"], entries(), {}
    for name, ask in asks.items():
        _add(answers, _asked(kit, name, ask, kit.dataset.query))
    for name in others:
        _add(answers, {name: arena.ask(known[name], kit, samples, kit.work / f"{name}.jsonl")[0]})
    return _add(answers, _asked(kit, "ARD", _ard(kit).rank_both, kit.dataset.query))


def ask_all(kit: Kit, asks: Mapping[str, Ask], others: Sequence[str] = (), rendered_seed: int = 0) -> Answers:
    """`ask_generated`, and ARD's answers to rendered queries too."""
    load = partial(rendered_query, World.load(kit.data / "world"), seed=rendered_seed)
    return ask_generated(kit, asks, others) | _asked(kit, report.RENDERED, alone(report.RENDERED, _ard(kit)), load)


def _add(answers: Answers, more: Answers) -> Answers:
    """The answers with more put into them, which must be of other rows."""
    if twice := sorted(answers.keys() & more.keys()):
        raise ValueError(f"asked twice: {', '.join(twice)}; a second row of a method needs a name of its own")
    answers |= more
    return answers


def _asked(kit: Kit, name: str, ask: Ask, load: Callable[[Sample], Query]) -> Answers:
    gallery = kit.dataset.open_gallery("test")
    return collect(ask, kit.dataset.samples["test"], load, gallery, kit.work / f"{name}.jsonl", name)[0]


def _ard(kit: Kit) -> DetectorMethod:
    return DetectorMethod(load_detector(kit.data / "models/ard"), kit.features)


def table(answers: Answers, dataset: Dataset, name: str) -> tuple[dict[str, list[Outcome]], list[dict]]:
    """Outcomes of all methods, and Table 2 of them (`arena_tables.table`) for the set called `name`."""
    outcomes, known = report.outcomes_of(answers, dataset), entries()
    given = {method: known[method].given for method in answers if method in known} | arena_tables.EVALUATED
    given[report.RENDERED] = given["ARD"]
    return outcomes, arena_tables.table(outcomes, given, name)
