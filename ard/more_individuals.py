"""AD+ train of individuals beyond those of `mini-coco`: more to learn from than ships, made as that was, with other seeds.

Notebook 17 makes them, fits close-ups to them (`ard.detector.closeup`) and keeps what it fitted; pictures and deltas are not kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ard import dataset
from ard.collection import gallery, pairs
from ard.customize_all import customize_all
from ard.detector.finder import finder
from ard.exemplars import ExemplarConfig, build_exemplars
from ard.files import Ledger
from ard.generate import GenerateConfig, generate_all
from ard.generator import load_pipeline
from ard.records import Dataset
from ard.release import customize_config
from ard.segment import Segmenter
from ard.templates import COCO_TEMPLATES
from ard.world import World
from ard.world.collection import CollectionConfig, build_collection


def more_individuals(root: str | Path, world: World, models: str | Path, recipe: Mapping[str, Any], known: Collection[str],
                     seed: int) -> Dataset:
    """Exemplars of train's drawings, a generator customised to each, and what each draws of the ten sentences: AD+ train, in `root`.

    models: folder of `generator`, `open_set` and `sam`. recipe: `images_per_class` scenes of which `per_class` become exemplars, all
    `min_grey_distance` apart, and the sections `exemplars`, `customize` and `generate` of params.yaml. known: ids of individuals that
    are not taken. Killed, the next call goes on where it was. Raises ValueError where the drawings do not give as many individuals.
    """
    root, models = Path(root), Path(models)
    found, learning, drawing = (recipe[section] for section in ("exemplars", "customize", "generate"))
    build_collection(world, CollectionConfig(recipe["images_per_class"], 0, 0, recipe["min_grey_distance"], seed), root / "collection")
    fresh = [pair for pair in pairs(root / "collection", "train") if pair.facts["individual_id"] not in known]
    gates = ExemplarConfig(*(found[name] for name in ("min_side", "min_fill", "min_inside")))
    kept, _ = build_exemplars(fresh, root, finder(models / "open_set", found["threshold"]), Segmenter.load(models / "sam"), gates,
                              quota={"train": recipe["per_class"]})
    learned, _ = customize_all(models / "generator", kept, root, root / "deltas", customize_config(learning),
                               Ledger(root / "deltas.ledger.jsonl"), seed, max_bytes=learning["max_bytes"],
                               workers=learning["workers"], together=learning["together"])
    settings = GenerateConfig(drawing["sampling_steps"], drawing["guidance"], drawing["min_side"])
    queries, _, _ = generate_all(load_pipeline(models / "generator"), kept, learned, root, root / "deltas", root / "queries",
                                 COCO_TEMPLATES, finder(models / "open_set", drawing["threshold"]), settings,
                                 Ledger(root / "queries.ledger.jsonl"), seed)
    return dataset.assemble(root, kept, queries, gallery(root / "collection", "train", "collection/images"))
