"""Exemplars: for each (image, class) a box by the open-set detector and a mask by SAM from that box.

First step of the paper's section 4.1. R_X *is* the detected box; where the class is not found the pair is discarded.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ard.files import atomic_write_bytes, read_jsonl, write_jsonl
from ard.records import RecordError, from_row, read_image

Detect = Callable[[np.ndarray, str], tuple[np.ndarray, np.ndarray]]  # image, class -> boxes (n, 4) xyxy px, scores (n,)
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Pair:
    """An image file (relative to the root) and a class to look for in it; `facts` travel along (individual ...)."""

    exemplar_id: str
    file: str
    class_name: str
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Exemplar:
    """A kept pair: R_X with the detector's score, the file of M (relative to the same root), its area in pixels."""

    exemplar_id: str
    file: str
    class_name: str
    box: Box
    score: float
    mask_file: str
    mask_area: int
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Discard:
    """A pair that gave no exemplar, and why: 'not found', 'too small', 'mask empty', 'mask outside box', 'bad image',
    'not needed' where its class has enough exemplars already."""

    exemplar_id: str
    file: str
    class_name: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class ExemplarConfig:
    min_side: float = 24.0  # px, short side of R_X: below three latent cells an individual cannot be learned
    min_fill: float = 0.1  # a mask covering less of its box is a failed segmentation
    min_inside: float = 0.8  # share of the mask that must lie in the box


def best_box(boxes: np.ndarray, scores: np.ndarray) -> tuple[Box, float] | None:
    """The highest-scoring box (ties: the leftmost, then the topmost), rounded to 1/100 px; None when there is none.

    >>> best_box(np.array([[0, 0, 2, 2], [1, 1, 3, 3.0]]), np.array([.2, .7]))
    ((1.0, 1.0, 3.0, 3.0), 0.7)
    """
    boxes, scores = np.asarray(boxes, dtype=np.float64).reshape(-1, 4), np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(boxes) != len(scores):
        raise ValueError(f"the detector returned {len(boxes)} boxes but {len(scores)} scores")
    if not len(boxes):
        return None
    first = np.lexsort((boxes[:, 1], boxes[:, 0], -scores))[0]
    return tuple(round(float(v), 2) for v in boxes[first]), round(float(scores[first]), 4)


def build_exemplar(pair: Pair, root: Path, out: str, detect: Detect, segment: Callable, config: ExemplarConfig
                   ) -> tuple[Exemplar | Discard, np.ndarray | None]:
    """Box and mask of one pair. segment: (image, box) -> (H, W) bool. Returns record and mask, not yet written."""

    def discard(reason: str, detail: str = "") -> tuple[Discard, None]:
        return Discard(pair.exemplar_id, pair.file, pair.class_name, reason, detail), None

    try:
        image = read_image(root / pair.file)
        found = best_box(*detect(image, pair.class_name))
    except ValueError as error:  # it cannot be read, or the detector takes no picture of this size
        return discard("bad image", str(error))
    if found is None:
        return discard("not found")
    box, score = found
    side = min(box[2] - box[0], box[3] - box[1])
    if side < config.min_side:
        return discard("too small", f"short side {side:.1f} px, wanted {config.min_side:g}")
    mask = np.asarray(segment(image, box), dtype=bool)
    area = (box[2] - box[0]) * (box[3] - box[1])
    if mask.sum() < config.min_fill * area:
        return discard("mask empty", f"{int(mask.sum())} px in a box of {area:.0f}")
    if _inside(mask, box) < config.min_inside:
        return discard("mask outside box", f"{_inside(mask, box):.2f} of the mask lies in the box")
    file = f"{out}/{pair.exemplar_id}.png"
    return Exemplar(pair.exemplar_id, pair.file, pair.class_name, box, score, file, int(mask.sum()), pair.facts), mask


def build_exemplars(pairs: Iterable[Pair], root: str | Path, detect: Detect, segment: Callable,
                    config: ExemplarConfig = ExemplarConfig(), out: str = "masks", target: str | Path | None = None,
                    quota: Mapping[str, int] | None = None) -> tuple[tuple[Exemplar, ...], tuple[Discard, ...]]:
    """All pairs, in order; masks go to `root/out/<exemplar_id>.png`. Raises ValueError when there is no pair at all.

    Every pair ends in exactly one of the two results; count the second by reason with `reasons`. target: writes masks
    there instead of below `root`, for a folder that is published later. quota: how many exemplars a class may have in
    each split (`facts["split"]`); pairs beyond it are discarded as 'not needed', unseen.
    """
    root, pairs = Path(root), tuple(pairs)
    target = root if target is None else Path(target)
    if not pairs:
        raise ValueError(f"no (image, class) pairs to make exemplars of under {root}")
    twice = [k for k, n in Counter(p.exemplar_id for p in pairs).items() if n > 1]
    if twice:
        raise ValueError(f"exemplar ids stand twice: {', '.join(twice[:5])}")
    kept, dropped, full = [], [], Counter()
    for pair in tqdm(pairs, desc="exemplars", mininterval=5):
        stratum = pair.class_name, pair.facts.get("split")
        if quota is not None and full[stratum] >= quota.get(stratum[1], 0):
            dropped.append(Discard(pair.exemplar_id, pair.file, pair.class_name, "not needed"))
            continue
        record, mask = build_exemplar(pair, root, out, detect, segment, config)
        if mask is None:
            dropped.append(record)
            continue
        write_mask(target / record.mask_file, mask)
        kept.append(record)
        full[stratum] += 1
    return tuple(kept), tuple(dropped)


def reasons(discards: Iterable) -> dict[str, int]:
    """How many were discarded for each reason, most frequent first.

    >>> reasons([Discard("a", "a.png", "cat", "not found"), Discard("b", "b.png", "cat", "not found")])
    {'not found': 2}
    """
    return dict(Counter(d.reason for d in discards).most_common())


def save_exemplars(kept: Iterable[Exemplar], discards: Iterable[Discard], folder: str | Path) -> None:
    """Write `exemplars.jsonl` and `discarded.jsonl`."""
    write_jsonl(Path(folder) / "exemplars.jsonl", [asdict(e) for e in kept])
    write_jsonl(Path(folder) / "discarded.jsonl", [asdict(d) for d in discards])


def load_exemplars(path: str | Path) -> tuple[tuple[Exemplar, ...], list[str]]:
    """Exemplars of a JSONL file, and a message for each line that was left out."""
    rows, bad = read_jsonl(path)
    good = []
    for row in rows:
        try:
            good.append(from_row(Exemplar, row, f"{path}: {row.get('exemplar_id', 'row without exemplar_id')}"))
        except RecordError as error:
            bad.append(str(error))
    return tuple(good), bad


def take(exemplars: Iterable[Exemplar], limit: Mapping[str, int], classes: Iterable[str]) -> tuple[Exemplar, ...]:
    """The first `limit[split]` exemplars of each of the `classes` in each split, in order; splits not named give none.

    Raises ValueError when none is left.
    """
    classes, seen, chosen = set(classes), Counter(), []
    for exemplar in exemplars:
        key = exemplar.class_name, exemplar.facts.get("split")
        seen[key] += 1
        if exemplar.class_name in classes and seen[key] <= limit.get(key[1], 0):
            chosen.append(exemplar)
    if not chosen:
        raise ValueError(f"no exemplar of {sorted(classes)} within the limits {dict(limit)}; run 02_exemplars, "
                         "look at its counts, or raise limit_per_class")
    return tuple(chosen)


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """A (H, W) bool mask as a one-bit PNG, atomically."""
    buffer = io.BytesIO()
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("1").save(buffer, "PNG")
    atomic_write_bytes(path, buffer.getvalue())


def read_mask(path: str | Path) -> np.ndarray:
    """(H, W) bool of a mask file; RecordError when it is missing or corrupt."""
    return read_image(path)[..., 0] > 127


def _inside(mask: np.ndarray, box: Box) -> float:
    x0, y0, x1, y1 = int(np.floor(box[0])), int(np.floor(box[1])), int(np.ceil(box[2])), int(np.ceil(box[3]))
    return float(mask[max(y0, 0):y1, max(x0, 0):x1].sum() / max(mask.sum(), 1))
