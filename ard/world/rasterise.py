"""Builds `data/world/artwork` from the packages that carry the drawings; run by hand when the world is extended.

    npm install @iconify-json/{noto,noto-v1,twemoji,fluent-emoji,fluent-emoji-flat,fxemoji,emojione}
    npm install @iconify-json/streamline-emojis
    apt-get download tuxpaint-stamps-default openclipart-png gcompris-qt-data xteddy
    dpkg -x FILE DEBIAN_ROOT   (each of the four)
    python -m ard.world.rasterise NODE_MODULES DEBIAN_ROOT data/world
"""

import io
import json
import re
import struct
import sys
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from ard.world.artwork import FILLER, Drawing, write_catalogue
from ard.world.selection import DESIGNERS, FILLERS, SELECTION, SPLIT_OF_GROUP

SIDE = 96
DEBIAN = {  # designer -> package, folder of its files (of its resource files, for GCompris)
    "tux": ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps/animals/mammals"),
    "oc": ("openclipart-png", "usr/share/openclipart/png"),
    "xteddy": ("xteddy", "usr/share/xteddy"),
    **{name: ("gcompris-qt-data", "usr/share/gcompris-qt/rcc") for name in ("ignacio", "gcompris")},
}
# streamline's shadows and a page behind GCompris' bear are no part of the animal
BACKDROPS = r'<path fill="#45413c" d="[^"]*" opacity="\.15"/>|<rect style="fill:#e9afae[^>]*/>'


def main(node_modules: str, debian_root: str, target: str) -> None:
    """Rasterise every selected drawing to a 96-pixel RGBA PNG and write the catalogue with its attribution."""
    sets = {name: Path(node_modules) / f"@iconify-json/{name}" for name in DESIGNERS if name not in (*DEBIAN, "own")}
    drawings = []
    for class_name, groups in {**SELECTION, FILLER: {f: (f,) for f in FILLERS}}.items():
        for group, names in groups.items():
            for name in names:
                designer, _, icon = name.partition(":")
                if designer == "own":
                    row, picture = _own(target, icon)
                else:
                    row, picture = (_emoji(sets, designer, icon) if designer in sets else
                                    _debian(debian_root, designer, icon))
                slug = f"{class_name.replace(' ', '_')}-{designer}-{Path(icon).stem}".lower()
                splits = ("base",) if class_name == FILLER else SPLIT_OF_GROUP[class_name][group]
                drawings.append(Drawing(slug, class_name, f"{class_name}/{group}", designer, splits, **row))
                out = Path(target) / drawings[-1].file
                out.parent.mkdir(parents=True, exist_ok=True)
                fit(picture).save(out, optimize=True)
    write_catalogue(target, tuple(drawings))
    print(f"{len(drawings)} drawings written to {target}")


@cache
def _json(path: Path) -> dict:
    return json.loads(path.read_text())


def _emoji(sets: dict, designer: str, icon: str) -> tuple[dict, Image.Image]:
    folder = sets[designer]
    data, version = _json(folder / "icons.json"), _json(folder / "package.json")["version"]
    body, width, height = data["icons"][icon]["body"], data.get("width", 16), data.get("height", 16)
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
           f'viewBox="0 0 {width} {height}">{body}</svg>')
    author, licence = DESIGNERS[designer]
    return {"author": author, "licence": licence, "source": f"npm @iconify-json/{designer} {version}: {icon}"}, _svg(svg)


def _own(root: str, file: str) -> tuple[dict, Image.Image]:
    author, licence = DESIGNERS["own"]
    row = {"author": author, "licence": licence, "source": f"drawn for this world: drawn/{file}"}
    return row, _svg((Path(root) / "drawn" / file).read_text())


def _debian(root: str, designer: str, file: str) -> tuple[dict, Image.Image]:
    author, licence = DESIGNERS[designer]
    package, folder = DEBIAN[designer]
    path = Path(root) / folder / file
    if package == "gcompris-qt-data":
        activity, _, name = file.partition("/")
        content = _resource(Path(root) / folder / f"{activity}.rcc", f"/{name}")
    else:  # birds live beside the mammals
        content = (path if path.exists() else Path(root) / "usr/share/tuxpaint/stamps/animals" / file).read_bytes()
    picture = _svg(content.decode()) if path.suffix == ".svg" else Image.open(io.BytesIO(content)).convert("RGBA")
    return {"author": author, "licence": licence, "source": f"Debian {package}: {file}"}, picture


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
