"""The second test set, `release`: individuals that nobody looked at before they were asked about.

Notebook 30 makes it with the settings of the main job, notebook 31 asks it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ard.collection import pairs
from ard.customize import MODULES, CustomizeConfig
from ard.dataset import TABLE1_COLUMNS, markdown, table1
from ard.evaluation import asked_samples
from ard.exemplars import Pair
from ard.files import atomic_write_text
from ard.precision import computes_bfloat16
from ard.records import Dataset, GalleryImage

ABOUT = """A second test set: new individuals of the drawings that test exemplars use, in new scenes, made
with the settings of `mini-coco` once these were fixed. It is asked again whenever the default changes."""


def customize_config(settings: Mapping[str, Any]) -> CustomizeConfig:
    """The recipe that notebook 03 makes of its section of params.yaml; settings that are no part of a recipe are left out."""
    known = {field.name for field in fields(CustomizeConfig)}
    recipe = {name: value for name, value in settings.items() if name in known}
    return CustomizeConfig(**{**recipe, "modules": MODULES[settings["modules"]], "bf16": settings["autocast"] and computes_bfloat16()})


def fresh_pairs(root: str | Path, known: Dataset) -> list[Pair]:
    """Pairs of the test split of the collection in `root`/collection whose individual stands in no image of `known`."""
    taken = individuals(known)
    return [pair for pair in pairs(Path(root) / "collection", "test") if pair.facts["individual_id"] not in taken]


def individuals(*datasets: Dataset) -> set[str]:
    """Ids of everybody in the pictures of some datasets, asked about or not."""
    return {o.individual_id for known in datasets for images in known.gallery.values() for im in images for o in im.objects} - {""}


def keep_asked(made: Dataset, folder: str | Path, per_exemplar: int) -> Dataset:
    """The dataset with `per_exemplar` queries of each exemplar, saved in `folder` with the pictures that it needs alone.

    The folder can be moved: all files lie in its images/ and queries/.
    """
    folder = Path(folder)

    def moved(file: str, kind: str) -> str:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made.root / file, folder / kind / Path(file).name)
        return f"{kind}/{Path(file).name}"

    scenes = {image.file: moved(image.file, "images") for image in made.gallery["test"]}
    samples = tuple(replace(s, query_file=moved(s.query_file, "queries"), exemplar_file=scenes[s.exemplar_file])
                    for s in asked_samples(made, "test", per_exemplar))
    kept = Dataset(folder, {"test": samples}, {"test": _renamed(made.gallery["test"], scenes)})
    kept.save()
    return kept


def joined(train: Dataset, test: Dataset) -> Dataset:
    """The train split of one dataset and the test split of another as one dataset, for methods that learn from the first."""
    way = os.path.relpath(test.root, train.root)
    samples = tuple(replace(s, query_file=f"{way}/{s.query_file}", exemplar_file=f"{way}/{s.exemplar_file}")
                    for s in test.samples["test"])
    gallery = _renamed(test.gallery["test"], {im.file: f"{way}/{im.file}" for im in test.gallery["test"]})
    return Dataset(train.root, {"train": train.samples["train"], "test": samples},
                   {"train": train.gallery["train"], "test": gallery})


def _renamed(images: Sequence[GalleryImage], names: Mapping[str, str]) -> tuple[GalleryImage, ...]:
    return tuple(replace(image, file=names[image.file]) for image in images)


def write_card(dataset: Dataset, drawn: int, file: str | Path, name: str = "release", about: str = ABOUT,
               stage: str = "30_release") -> None:
    """What the folder holds, in Markdown. drawn: queries that passed the gates, of which the asked ones are kept."""
    lines = [f"# {name}", "", about, "", "## Files", "",
             "- `samples_test.jsonl`: AD+, one sample a line; boxes are xyxy in pixels.",
             "- `gallery_test.json`: the images to rank, in COCO form, with individual ids.",
             f"- `images/`, `queries/`: the pictures. Of {drawn} queries that passed the gates the asked ones are here; deltas",
             f"  are not: `python -m ard.run {stage}` makes all again.", "", "## Counts", "",
             *markdown(table1(dataset, name), TABLE1_COLUMNS[1:])]
    atomic_write_text(file, "\n".join(lines) + "\n")
