"""One annotated file of pictures, in COCO's or LVIS's form, dealt into the splits of a collection that `ard.collection` reads.

For pictures of one's own, in the place of the mini world's (paper, section 4.3). COCO names no individuals: each annotation is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from ard.collection import read_annotations
from ard.config import ConfigError, nearest
from ard.files import atomic_write_json, sha256_bytes
from ard.templates import words


def split_of(name: str, shares: Mapping[str, float], seed: int = 0) -> str:
    """The split that a picture is dealt to, by the hash of its name: each in proportion to its share, whatever else there is.

    >>> {split_of(f"{n}.jpg", {"train": 1, "test": 0}) for n in range(9)}
    {'train'}
    """
    place = int(sha256_bytes(f"{seed}\n{name}".encode())[:16], 16) / 16**16 * sum(shares.values())
    ends = dict(zip(shares, accumulate(shares.values())))
    return next(split for split, end in ends.items() if place < end)


def split_coco(coco: Mapping, classes: Sequence[str], shares: Mapping[str, float], seed: int = 0, missing: bool = False) -> dict[str, dict]:
    """{split: COCO JSON} of the pictures that show one of the `classes`, with their things of these classes.

    classes: as a caption says them (`ard.templates.words`). shares: of the splits, in any unit. Crowds, boxes without area and
    other classes are left out. ConfigError: a class that the file does not have, unless some may be `missing`, or shares that are
    not positive.
    """
    if min(shares.values(), default=0) < 0 or not sum(shares.values()):
        raise ConfigError(f"shares of the splits: expected numbers of 0 or more, not all 0, found {dict(shares)}")
    categories = {c["id"]: words(c["name"]) for c in coco["categories"]}
    unknown = sorted(set(classes) - set(categories.values()))
    if unknown and not missing:
        raise ConfigError(f"no class {unknown[0]!r} among the categories; {nearest(unknown[0], categories.values())}")
    kept = [{**a, "individual_id": a.get("individual_id") or f"annotation-{a['id']}"} for a in coco["annotations"]
            if not a.get("iscrowd") and categories[a["category_id"]] in classes and min(a["bbox"][2:]) > 0]
    shown = {a["image_id"] for a in kept}
    found = {}
    for split in shares:
        images = [im for im in coco["images"] if im["id"] in shown and split_of(im["file_name"], shares, seed) == split]
        mine = {im["id"] for im in images}
        found[split] = {"images": images, "annotations": [a for a in kept if a["image_id"] in mine],
                        "categories": [{"id": key, "name": name} for key, name in categories.items() if name in classes]}
    return found


def write_splits(file: str | Path, folder: str | Path, classes: Sequence[str], shares: Mapping[str, float], seed: int = 0,
                 missing: bool = False) -> dict[str, int]:
    """`folder`/instances_{split}.json of an annotation file, for splits that get a picture, and how many. FileError: as
    `read_annotations`."""
    splits = split_coco(read_annotations(file), classes, shares, seed, missing)
    splits = {split: coco for split, coco in splits.items() if coco["images"]}
    for split, coco in splits.items():
        atomic_write_json(Path(folder) / f"instances_{split}.json", coco)
    return {split: len(coco["images"]) for split, coco in splits.items()}
