"""Builds the pictures of `data/world/artwork` from the packages that carry the drawings; run by hand when the world is extended,
after a row of `data/world/catalogue.csv` says what a new one is, where it comes from (`source`) and which split may use it.

    npm install @iconify-json/{noto,noto-v1,twemoji,fluent-emoji,fluent-emoji-flat,fxemoji,emojione}
    npm install @iconify-json/streamline-emojis
    apt-get download tuxpaint-stamps-default openclipart-png gcompris-qt-data xteddy
    dpkg -x FILE DEBIAN_ROOT   (each of the four)
    python -m ard.world.rasterise NODE_MODULES DEBIAN_ROOT data/world

A group joins sister sets (noto/noto-v1, fluent/fluent-flat) and bodies that a designer used twice. Base groups are never exemplars;
train, validation and test groups are disjoint except where a class has fewer than 8 of them (tests/test_world.py).
"""

import csv
import io
import json
import re
import struct
import sys
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from ard.world.artwork import Drawing, write_catalogue

SIDE = 96
DEBIAN = {"tuxpaint-stamps-default": "usr/share/tuxpaint/stamps/animals/mammals", "openclipart-png": "usr/share/openclipart/png",
          "xteddy": "usr/share/xteddy", "gcompris-qt-data": "usr/share/gcompris-qt/rcc"}  # package -> folder of its files
# streamline's shadows and a page behind GCompris' bear are no part of the animal
BACKDROPS = r'<path fill="#45413c" d="[^"]*" opacity="\.15"/>|<rect style="fill:#e9afae[^>]*/>'


def main(node_modules: str, debian_root: str, target: str) -> None:
    """Rasterise every drawing of the catalogue to a 96-pixel RGBA PNG; the catalogue is put in order, with the versions found."""
    with (Path(target) / "catalogue.csv").open(newline="") as lines:
        listed = [Drawing(**{**row, "splits": tuple(row["splits"].split())}) for row in csv.DictReader(lines)]
    drawings = []
    for drawing in listed:
        source, picture = opened(drawing.source, Path(node_modules), Path(debian_root), Path(target))
        drawings.append(replace(drawing, source=source))
        out = Path(target) / drawing.file
        out.parent.mkdir(parents=True, exist_ok=True)
        fit(picture).save(out, optimize=True)
    write_catalogue(target, tuple(drawings))
    print(f"{len(drawings)} drawings written to {target}")


def opened(source: str, node_modules: Path, debian_root: Path, target: Path) -> tuple[str, Image.Image]:
    """A source, with the version that is there, and its picture. ValueError: it is of no kind that is known."""
    origin, _, name = source.partition(": ")
    if origin.startswith("npm "):
        return _emoji(node_modules, origin.split()[1], name)
    if origin.startswith("Debian "):
        return source, _debian(debian_root, origin.split()[1], name)
    if origin == "drawn for this world":
        return source, _svg((target / name).read_text())
    raise ValueError(f"source {source!r}: expected 'npm PACKAGE VERSION: ICON', 'Debian PACKAGE: FILE' or 'drawn for this world: FILE'")


@cache
def _json(path: Path) -> dict:
    return json.loads(path.read_text())


def _emoji(node_modules: Path, package: str, icon: str) -> tuple[str, Image.Image]:
    data, version = _json(node_modules / package / "icons.json"), _json(node_modules / package / "package.json")["version"]
    body, width, height = data["icons"][icon]["body"], data.get("width", 16), data.get("height", 16)
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
           f'viewBox="0 0 {width} {height}">{body}</svg>')
    return f"npm {package} {version}: {icon}", _svg(svg)


def _debian(root: Path, package: str, file: str) -> Image.Image:
    path = root / DEBIAN[package] / file
    if package == "gcompris-qt-data":
        activity, _, name = file.partition("/")
        content = _resource(root / DEBIAN[package] / f"{activity}.rcc", f"/{name}")
    else:  # birds live beside the mammals
        content = (path if path.exists() else root / "usr/share/tuxpaint/stamps/animals" / file).read_bytes()
    return _svg(content.decode()) if path.suffix == ".svg" else Image.open(io.BytesIO(content)).convert("RGBA")


def _resource(file: Path, wanted: str) -> bytes:
    """The entry of a Qt resource file whose path ends in `wanted`. Raises FileNotFoundError when there is none."""
    blob = file.read_bytes()
    _, tree, data, names = struct.unpack(">4I", blob[4:20])

    def entries(node: int, parent: str):
        at = tree + 22 * node
        label, flags, first, second = struct.unpack(">IHII", blob[at:at + 14])
        length, = struct.unpack(">H", blob[names + label:names + label + 2])
        path = f"{parent}/{blob[names + label + 6:names + label + 6 + 2 * length].decode('utf-16-be')}" if node else ""
        if flags & 2:  # a folder: number of children, first child
            for child in range(second, second + first):
                yield from entries(child, path)
        else:  # a file: language, offset of its size and content; flag 1: a size and zlib's stream
            size, = struct.unpack(">I", blob[data + second:data + second + 4])
            content = blob[data + second + 4:data + second + 4 + size]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    for path, content in entries(0, ""):
        if path.endswith(wanted):
            return content
    raise FileNotFoundError(f"{file} holds no {wanted}")


def _svg(svg: str) -> Image.Image:
    svg = re.sub(BACKDROPS, "", svg)
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIDE, height=4 * SIDE)))).convert("RGBA")


def fit(picture: Image.Image) -> Image.Image:
    """Crop to the opaque part and fit it into a SIDE x SIDE canvas with a margin of 7 pixels for hats and warps."""
    alpha = np.asarray(picture.getchannel("A")) > 24
    rows, cols = np.nonzero(alpha)
    picture = picture.crop((cols.min(), rows.min(), cols.max() + 1, rows.max() + 1))
    scale = (SIDE - 14) / max(picture.size)
    picture = picture.resize([max(1, round(s * scale)) for s in picture.size], Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIDE, SIDE))
    canvas.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return canvas


if __name__ == "__main__":
    main(*sys.argv[1:4])
