"""An annotated image collection in COCO JSON as (image, class) pairs to make exemplars of, with the truth to judge them.

First link of the paper's section 4.1. The mini world's collection names an individual for each object; plain COCO does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from ard.exemplars import Pair
from ard.files import FileError, read_json
from ard.records import GalleryImage, images_from_coco

FACTS = ("individual_id", "drawing", "designer")


@dataclass(frozen=True, eq=False)
class Truth:
    """Where a pair's object really is: box xyxy px and mask (H, W) bool, None where it is not annotated."""

    box: tuple[float, float, float, float]
    mask: np.ndarray | None


def annotations(folder: str | Path, split: str) -> dict:
    """`read_annotations` of a split's file."""
    return read_annotations(Path(folder) / f"instances_{split}.json")


def read_annotations(path: str | Path) -> dict:
    """A COCO or LVIS file; LVIS names pictures by address alone. Raises FileError when it is missing, broken, or without images and
    annotations."""
    coco = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco, dict) or not coco.get(key):
            raise FileError(f"{path}: no '{key}' in it; expected COCO JSON with all three")
    for image in coco["images"]:
        if "file_name" not in image and "coco_url" in image:
            image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
    return coco


def pairs(folder: str | Path, split: str, files: str = "collection/images") -> tuple[Pair, ...]:
    """One pair per (image, class) in file order; `files` is where images lie below the root that pairs are relative to.

    Facts: split, the individual, drawing and designer of the class's largest object, the image's context.
    """
    return tuple(Pair(name, f"{files}/{image['file_name']}", class_name, _facts(image, largest, split))
                 for name, image, class_name, largest in _objects(annotations(folder, split)))


def truths(folder: str | Path, split: str) -> dict[str, Truth]:
    """The true box and mask of each pair's object, by exemplar id."""
    found = {}
    for name, image, _, largest in _objects(annotations(folder, split)):
        x, y, w, h = largest["bbox"]
        found[name] = Truth((x, y, x + w, y + h), _mask(largest.get("segmentation"), image["height"], image["width"]))
    return found


def gallery(folder: str | Path, split: str, files: str = "images") -> tuple[GalleryImage, ...]:
    """Every image of a split with all its true objects, its file below `files`, as for `pairs`."""
    images = images_from_coco(annotations(folder, split), f"{folder}/instances_{split}.json")
    return tuple(replace(image, file=f"{files}/{image.file}") for image in images)


def _objects(coco: dict) -> list[tuple[str, dict, str, dict]]:
    """(exemplar id, image, class, largest annotation) of each class in each image; fillers are left out."""
    names, by_image = {c["id"]: c["name"] for c in coco["categories"]}, {}
    for a in coco["annotations"]:
        if a.get("individual_id", "plain COCO") is not None:
            by_image.setdefault(a["image_id"], {}).setdefault(names[a["category_id"]], []).append(a)
    rows = []
    for image in sorted(coco["images"], key=lambda i: i["file_name"]):
        for class_name, items in sorted(by_image.get(image["id"], {}).items()):
            largest = max(items, key=lambda a: (a["area"], -a["id"]))
            place = Path(image["file_name"]).with_suffix("").as_posix().replace("/", "_")
            rows.append((f"{class_name.replace(' ', '-')}-{place}", image, class_name, largest))
    return rows


def _facts(image: dict, annotation: dict, split: str) -> dict:
    own = {name: annotation.get(name) or "" for name in FACTS}
    own["individual_id"] = own["individual_id"] or f"{split}-annotation-{annotation['id']}"
    return {"split": split, **own, "context": image.get("context", "")}


def _mask(segmentation, height: int, width: int) -> np.ndarray | None:
    if not segmentation:
        return None
    runs = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(coco_mask.merge(runs) if isinstance(runs, list) else runs).astype(bool)
