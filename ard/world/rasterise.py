"""Builds `data/world/artwork` from the packages that carry the drawings; run by hand when the world is extended.

    npm install @iconify-json/{noto,noto-v1,twemoji,fluent-emoji,fluent-emoji-flat,fxemoji,emojione}
    apt-get download tuxpaint-stamps-default openclipart-png   (unpacked with `dpkg -x FILE DEBIAN_ROOT`)
    python -m ard.world.rasterise NODE_MODULES DEBIAN_ROOT data/world
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from ard.world.artwork import FILLER, Drawing, write_catalogue
from ard.world.selection import DESIGNERS, FILLERS, SELECTION, SPLIT_OF_GROUP

SIDE = 96


def main(node_modules: str, debian_root: str, target: str) -> None:
    """Rasterise every selected drawing to a 96-pixel RGBA PNG and write the catalogue with its attribution."""
    sets = {name: Path(node_modules) / f"@iconify-json/{name}" for name in DESIGNERS if name not in ("tux", "oc")}
    drawings = []
    for class_name, groups in {**SELECTION, FILLER: {f: (f,) for f in FILLERS}}.items():
        for group, names in groups.items():
            for name in names:
                designer, _, icon = name.partition(":")
                row, picture = _emoji(sets, designer, icon) if designer in sets else _debian(debian_root, designer, icon)
                slug = f"{class_name.replace(' ', '_')}-{designer}-{Path(icon).stem}".lower()
                splits = ("base",) if class_name == FILLER else SPLIT_OF_GROUP[class_name][group]
                drawings.append(Drawing(slug, class_name, f"{class_name}/{group}", designer, splits, **row))
                out = Path(target) / drawings[-1].file
                out.parent.mkdir(parents=True, exist_ok=True)
                fit(picture).save(out, optimize=True)
    write_catalogue(target, tuple(drawings))
    print(f"{len(drawings)} drawings written to {target}")


def _emoji(sets: dict, designer: str, icon: str) -> tuple[dict, Image.Image]:
    folder = sets[designer]
    data = json.loads((folder / "icons.json").read_text())
    version = json.loads((folder / "package.json").read_text())["version"]
    body, width, height = data["icons"][icon]["body"], data.get("width", 16), data.get("height", 16)
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
           f'viewBox="0 0 {width} {height}">{body}</svg>')
    author, licence = DESIGNERS[designer]
    return {"author": author, "licence": licence, "source": f"npm @iconify-json/{designer} {version}: {icon}"}, _svg(svg)


def _debian(root: str, designer: str, file: str) -> tuple[dict, Image.Image]:
    author, licence = DESIGNERS[designer]
    package, folder = {"tux": ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps/animals/mammals"),
                       "oc": ("openclipart-png", "usr/share/openclipart/png")}[designer]
    path = Path(root) / folder / file
    if not path.exists():  # birds live beside the mammals
        path = Path(root) / "usr/share/tuxpaint/stamps/animals" / file
    picture = _svg(path.read_text()) if path.suffix == ".svg" else Image.open(path).convert("RGBA")
    return {"author": author, "licence": licence, "source": f"Debian {package}: {file}"}, picture


def _svg(svg: str) -> Image.Image:
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
