"""The drawings that the mini world is made of: shipped RGBA pictures, where each came from, and which split may use it (DESIGN 4)."""

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bear", "cat", "horse", "bird", "dog", "cow", "teddy bear", "zebra", "sheep", "elephant")
SPLITS = ("base", "train", "val", "test")
FILLER = "filler"


@dataclass(frozen=True)
class Drawing:
    """One picture. `group` joins near-duplicates (sister sets, one body re-used): a group never crosses the base line."""

    drawing: str
    class_name: str
    group: str
    designer: str
    splits: tuple[str, ...]
    author: str
    licence: str
    source: str

    @property
    def file(self) -> str:
        return f"artwork/{self.drawing}.png"


def load_catalogue(root: str | Path) -> tuple[Drawing, ...]:
    """Read `catalogue.csv`. Raises FileNotFoundError naming every listed picture that is missing."""
    root = Path(root)
    path = root / "catalogue.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path}: the catalogue of drawings is missing; restore it with `git checkout {path}`")
    with path.open(newline="") as lines:
        rows = tuple(
            Drawing(**{**row, "splits": tuple(row["splits"].split())}) for row in csv.DictReader(lines)
        )
    missing = [row.file for row in rows if not (root / row.file).exists()]
    if missing:
        raise FileNotFoundError(f"{path} lists {len(missing)} pictures that are not there, the first is {missing[0]}")
    return rows


@lru_cache(maxsize=None)
def load_picture(path: str) -> np.ndarray:
    """RGBA of one drawing as float32 in [0, 1], shape (96, 96, 4); colour under alpha 0 is not meaningful."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGBA"), dtype=np.float32) / 255


def write_catalogue(root: str | Path, drawings: tuple[Drawing, ...]) -> None:
    """Write `catalogue.csv` in a fixed order."""
    names = ["drawing", "class_name", "group", "designer", "splits", "author", "licence", "source"]
    with (Path(root) / "catalogue.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        for d in sorted(drawings, key=lambda d: (d.class_name, d.drawing)):
            writer.writerow({n: " ".join(d.splits) if n == "splits" else getattr(d, n) for n in names})
