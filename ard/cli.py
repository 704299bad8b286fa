"""`python -m ard.cli attribute ...` asks a detector about one picture; `convert` makes a detector of an official checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from ard.detector.attribute import Attributor
from ard.detector.closeup import CloseUp
from ard.detector.convert import from_official, read_official
from ard.detector.model import AttributionConfig
from ard.detector.processor import FILE, AttributionProcessor
from ard.detector.published import SIZES, AttributionDetector, AttributionDetectorConfig, published_config
from ard.detector.tied import TiedConfig, load_detector
from ard.files import FileError
from ard.templates import COCO_CLASSES

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def load_attributor(folder: str | Path, closeup: str | Path | None = None, zoom: float = 1.0) -> Attributor:
    """The detector in a folder, of the mini world or of a published size, with its processor (`convert` writes one beside it), and the
    second look of another folder, where one is named (`ard.detector.closeup`). zoom: as of `Attributor`."""
    settings = Path(folder) / "config.json"
    try:
        kind = json.loads(settings.read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise FileError(f"{settings}: no such file; is {folder} a detector?") from None
    except ValueError as error:
        raise FileError(f"{settings}: not JSON ({error})") from None
    look = None if closeup is None else CloseUp.load(closeup)
    kept = AttributionProcessor.from_pretrained(folder) if (Path(folder) / FILE).is_file() else None
    if kind in (AttributionConfig.model_type, TiedConfig.model_type):
        return Attributor(load_detector(folder), kept or AttributionProcessor.mini(), 32, look, zoom)
    if kind == AttributionDetectorConfig.model_type:
        return Attributor(AttributionDetector.from_pretrained(folder, local_files_only=True), kept or AttributionProcessor(),
                          closeup=look, zoom=zoom)
    raise FileError(f"{settings}: model_type {kind!r} is no detector of ours")


@app.command()
def attribute(model: Path = typer.Argument(help="folder of a detector, as data/models/ard"),
              query: Path = typer.Argument(help="generated picture"),
              box: str = typer.Argument(help="x0,y0,x1,y1 in its pixels"),
              gallery: Path = typer.Argument(help="folder of training pictures"),
              also: list[str] = typer.Option([], help="PICTURE:x0,y0,x1,y1, another generated picture of the same thing; may be repeated"),
              prompt: str = typer.Option(None, help="what is in the box, as 'cat'; nothing: by looks alone"),
              zoom: float = typer.Option(1.0, help="above 1: see each training picture in windows of 1/zoom of its side, too; 2 takes eight times as long"),
              closeup: Path = typer.Option(None, help="folder of a second look at each picture, as data/models/closeup; nothing: one look"),
              top_k: int = typer.Option(10, help="answers printed"),
              prior: float = typer.Option(0.5, help="chance, before looking, that the source is among them")) -> None:
    """Which region of which training picture did this region, drawn perhaps several times, come from? Prints rank, score, chance,
    box and file."""
    try:
        pictures = [(query, _corners(box)), *(_picture(one) for one in also)]
        if not gallery.is_dir():
            raise FileError(f"{gallery}: no such folder")
        found = list(gallery.rglob("*"))
        files = sorted(path for path in found if path.suffix.lower() in PICTURES)
        left_out = sum(path.suffix.lower() not in PICTURES and path.is_file() for path in found)
        if not files:
            raise FileError(f"{gallery}: no picture in it ({', '.join(sorted(PICTURES))})")
        attributor = load_attributor(model, closeup, zoom)
        answer = attributor.attribute_together(pictures, prompt, files, top_k, prior)
    except ValueError as error:  # FileError, ImageError and GeometryError among them
        raise typer.BadParameter(str(error)) from None
    if prompt is not None and attributor.processor.square and prompt not in COCO_CLASSES:
        typer.echo(f"note: detectors of the mini world have learned {', '.join(COCO_CLASSES)}; '{prompt}' is no such word to them", err=True)
    typer.echo("rank  score  chance  box  file", err=True)
    chances = [f"{chance:.3f}" for chance in answer.chances] or ["-"] * len(answer.found)
    for rank, (one, chance) in enumerate(zip(answer.found, chances), 1):
        typer.echo(f"{rank:4}  {one.score:.4f}  {chance}  {','.join(f'{v:.1f}' for v in one.box)}  {one.image_id}")
    if answer.sure is not None:
        typer.echo(f"chance that the source is among them: {answer.sure:.2f} (before looking: {prior:g})", err=True)
    for skipped in answer.skipped:
        typer.echo(f"skipped: {skipped.reason}", err=True)
    others = f", {left_out} files with other endings left out" if left_out else ""
    typer.echo(f"{answer.ranked} pictures ranked, {len(answer.skipped)} skipped{others}", err=True)


def _corners(box: str) -> list[float]:
    try:
        x0, y0, x1, y1 = map(float, box.split(","))
    except ValueError:
        raise ValueError(f"box: expected four numbers x0,y0,x1,y1 (corners in pixels), found {box!r}") from None
    return [x0, y0, x1, y1]


def _picture(text: str) -> tuple[Path, list[float]]:
    file, colon, box = text.rpartition(":")
    if not colon:
        raise ValueError(f"--also: expected PICTURE:x0,y0,x1,y1, found {text!r}")
    return Path(file), _corners(box)


@app.command()
def convert(checkpoint: Path = typer.Argument(help="official .pth of GroundingDINO or CountGD"),
            out: Path = typer.Argument(help="folder for the detector"),
            size: str = typer.Option("B-B", help=f"its shape, Swin then BERT: {', '.join(SIZES)}")) -> None:
    """An official checkpoint as a detector of ours, with what was not used and what is fresh, by name."""
    try:
        found = from_official(read_official(checkpoint), published_config(size))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    found.detector.save_pretrained(out)
    AttributionProcessor().save_pretrained(out)
    for what, names in (("as initialised", found.fresh), ("not used", found.unused)):
        typer.echo("\n".join([f"{what}: {len(names)}", *(f"  {name}" for name in names)]))
    if any(name.startswith("exemplar_projection.") for name in found.fresh):
        typer.echo("This detector finds what it is told in words; whose it is it has yet to learn (ard.detector.published_phases).")


if __name__ == "__main__":
    app()
