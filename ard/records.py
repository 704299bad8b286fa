"""The records that stages exchange: samples (the paper's 5-tuple), gallery images, attributions, and a dataset of them.

Boxes are (x0, y0, x1, y1) in float pixels. On disk a dataset is `samples_{split}.jsonl` plus `gallery_{split}.json`, a
COCO file that pycocotools opens. AD+ is the samples; AD- is never stored: a sample's negatives are all other images of
its gallery.
"""

from __future__ import annotations

import dataclasses
import typing
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ard import files
from ard.images import ImageError, open_image

SPLITS = ("train", "val", "test")
Box = tuple[float, float, float, float]


class RecordError(ValueError):
    """A record, or a file of records, is not what it should be; the message names the file, the item and the reason."""


@dataclass(frozen=True)
class Sample:
    """(Q, R_Q, p, X, R_X) with what the tables are broken down by. Files are relative to the dataset's root."""

    sample_id: str
    query_file: str
    query_box: Box
    prompt: str
    class_name: str
    concept_id: str
    exemplar_file: str
    exemplar_box: Box
    template: int
    context: str
    medium: str
    split: str
    individual_id: str
    drawing: str
    designer: str


@dataclass(frozen=True)
class GroundTruth:
    """A true object of a gallery image, annotated as an exemplar or not; fillers have an empty `individual_id`."""

    class_name: str
    individual_id: str
    drawing: str
    designer: str
    box: Box


@dataclass(frozen=True)
class GalleryImage:
    file: str
    image_id: str
    objects: tuple[GroundTruth, ...]
    width: int = 64
    height: int = 64


@dataclass(frozen=True)
class Attribution:
    """A method's answer for one gallery image: its best region (None for whole-image methods) and how strong it is."""

    image_id: str
    box: Box | None
    score: float


@dataclass(frozen=True, eq=False)
class Query:
    """What a method is asked: the sample's Q, R_Q, p and class, with Q's pixels. It must not read its X and R_X."""

    sample: Sample
    image: np.ndarray  # (H, W, 3) uint8


class Gallery(Sequence):
    """The images ranked for one query, with their pixels on demand.

    >>> g = Gallery([GalleryImage("a.png", "a", ())], lambda file: np.zeros((2, 2, 3), np.uint8))
    >>> len(g), g[0].image_id, g.pixels(g[0]).shape
    (1, 'a', (2, 2, 3))
    """

    def __init__(self, images: Iterable[GalleryImage], load: Callable[[str], np.ndarray], keep: int = 256):
        self.images = tuple(images)
        self._load = lru_cache(maxsize=keep)(load)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]

    def pixels(self, image: GalleryImage) -> np.ndarray:
        """(H, W, 3) uint8."""
        return self._load(image.file)


@dataclass(frozen=True)
class Dataset:
    root: Path
    samples: dict[str, tuple[Sample, ...]]
    gallery: dict[str, tuple[GalleryImage, ...]]
    bad: tuple[str, ...] = ()  # one message `file: reason` per line that was left out

    @staticmethod
    def load(root: str | Path) -> Dataset:
        """Read every split found in `root`. Unreadable samples are left out, listed in `bad` and warned about."""
        root = Path(root)
        splits = [s for s in SPLITS if (root / f"samples_{s}.jsonl").exists()]
        if not splits:
            raise RecordError(f"{root}: expected samples_{{train,val,test}}.jsonl, found none; run the dataset stage")
        samples, gallery, bad = {}, {}, []
        for split in splits:
            path = root / f"samples_{split}.jsonl"
            samples[split], wrong = read_records(Sample, path)
            bad += wrong
            path = root / f"gallery_{split}.json"
            gallery[split] = images_from_coco(files.read_json(path), str(path))
        return Dataset(root, samples, gallery, tuple(bad))

    def save(self) -> None:
        for split, rows in self.samples.items():
            files.write_jsonl(self.root / f"samples_{split}.jsonl", [dataclasses.asdict(r) for r in rows])
            files.atomic_write_json(self.root / f"gallery_{split}.json", images_to_coco(self.gallery[split]))

    def pixels(self, file: str) -> np.ndarray:
        """(H, W, 3) uint8 of one of the dataset's files."""
        return read_image(self.root / file)

    def open_gallery(self, split: str) -> Gallery:
        return Gallery(self.gallery[split], self.pixels)

    def query(self, sample: Sample) -> Query:
        return Query(sample, self.pixels(sample.query_file))


def read_image(path: str | Path | typing.BinaryIO) -> np.ndarray:
    """An image file (or an open one) as (H, W, 3) uint8; RecordError says which file is missing or corrupt."""
    try:
        return open_image(path)
    except ImageError as error:
        raise RecordError(str(error)) from None


def positive(sample: Sample, gallery: Iterable[GalleryImage]) -> GalleryImage:
    """The gallery image the sample's concept was learned from (its X)."""
    for image in gallery:
        if image.file == sample.exemplar_file:
            return image
    raise RecordError(f"{sample.sample_id}: its exemplar {sample.exemplar_file} is not in the gallery ({sample.split})")


def negatives(sample: Sample, gallery: Iterable[GalleryImage]) -> tuple[GalleryImage, ...]:
    """AD- of one sample: every gallery image but its X (other regions of X are never competitors, as in the paper)."""
    return tuple(image for image in gallery if image.file != sample.exemplar_file)


def read_records(cls, path: str | Path) -> tuple[tuple, list[str]]:
    """The good records of a JSONL file and a message for each bad line; RecordError when no good one is left."""
    rows, bad = files.read_jsonl(path)
    good = []
    for number, row in enumerate(rows, 1):
        try:
            good.append(from_row(cls, row, f"{path} row {number}"))
        except RecordError as error:
            bad.append(str(error))
    if not good:
        raise RecordError(f"{path}: no usable {cls.__name__} in it" + (f"; first problem: {bad[0]}" if bad else ""))
    if bad:
        warnings.warn(f"{path}: {len(bad)} of {len(bad) + len(good)} rows left out; first: {bad[0]}", stacklevel=2)
    return tuple(good), bad


@lru_cache
def _types(cls) -> dict[str, typing.Any]:
    return typing.get_type_hints(cls)


def from_row(cls, row: dict, where: str):
    """Build a frozen record from a JSON object; RecordError names missing, unknown and mistyped fields of `where`."""
    if not isinstance(row, dict):
        raise RecordError(f"{where}: expected an object, found {type(row).__name__}")
    kinds = _types(cls)
    needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    missing, unknown = sorted(needed - row.keys()), sorted(row.keys() - kinds.keys())
    if missing or unknown:
        raise RecordError(f"{where}: missing fields {missing}, unknown {unknown}")
    return cls(**{name: _coerce(value, kinds[name], f"{where}: {name}") for name, value in row.items()})


def _coerce(value, kind, where: str):
    if kind == Box:
        numbers = isinstance(value, (list, tuple)) and len(value) == 4 and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        if not numbers or not (np.isfinite(value).all() and value[0] < value[2] and value[1] < value[3]):
            raise RecordError(f"{where}: expected a box [x0, y0, x1, y1] with x0 < x1 and y0 < y1, found {value!r}")
        return tuple(float(v) for v in value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RecordError(f"{where}: expected {kind.__name__}, found {value!r}")
    return value


def images_to_coco(images: Sequence[GalleryImage]) -> dict:
    """COCO JSON: images and categories numbered from 1 in order; annotations carry individual, drawing, designer."""
    names = sorted({obj.class_name for image in images for obj in image.objects})
    number = {name: i for i, name in enumerate(names, 1)}
    annotations = []
    for i, image in enumerate(images, 1):
        for obj in image.objects:
            x0, y0, x1, y1 = obj.box
            annotations.append({
                "id": len(annotations) + 1, "image_id": i, "category_id": number[obj.class_name], "iscrowd": 0,
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "box_xyxy": list(obj.box),
                "individual_id": obj.individual_id, "drawing": obj.drawing, "designer": obj.designer})
    return {
        "info": {"description": "gallery of a region-level attribution dataset"}, "licenses": [],
        "images": [{"id": i, "name": im.image_id, "file_name": im.file, "width": im.width, "height": im.height}
                   for i, im in enumerate(images, 1)],
        "categories": [{"id": i, "name": name, "supercategory": ""} for name, i in number.items()],
        "annotations": annotations}


def images_from_coco(coco: dict, where: str) -> tuple[GalleryImage, ...]:
    """The inverse of `images_to_coco`; plain COCO JSON works as well, its objects then have no individual."""
    try:
        category = {c["id"]: c["name"] for c in coco["categories"]}
        objects: dict[int, list[GroundTruth]] = {image["id"]: [] for image in coco["images"]}
        for a in coco["annotations"]:
            x, y, w, h = a["bbox"]
            row = {name: a.get(name) or "" for name in ("individual_id", "drawing", "designer")}
            row |= {"class_name": category[a["category_id"]], "box": a.get("box_xyxy", [x, y, x + w, y + h])}
            objects[a["image_id"]].append(from_row(GroundTruth, row, f"{where} annotation {a['id']}"))
        return tuple(GalleryImage(im["file_name"], im.get("name", im["file_name"].rsplit(".", 1)[0]),
                                  tuple(objects[im["id"]]), im["width"], im["height"]) for im in coco["images"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{where}: not a gallery in COCO form, {type(error).__name__} {error}") from None
