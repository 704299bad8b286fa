"""A benchmark whose gallery is looked at in windows (`ard.windows`), by any attribution method as it is.

Of what it answers, for windows that may have been looked at from close up, `strongest` keeps one window for each image, and `back`
tells where in the image it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ard import arena
from ard.baselines.closeups import RivalCloseUp
from ard.baselines.kit import Kit
from ard.baselines.registry import entries
from ard.detector.closeup import CloseUp, SecondLook, raised
from ard.detector.method import DetectorMethod
from ard.detector.processor import AttributionProcessor, Prepared
from ard.detector.readings import JUDGED
from ard.evaluation import Answers, Ask, collect
from ard.files import atomic_write_bytes
from ard.records import Attribution, Dataset, Gallery, GalleryImage, Query
from ard.windows import seen_in_windows, strongest_windows
from ard.world.collection import png_bytes


@dataclass(frozen=True, eq=False)
class Windowed:
    """A dataset, one split of which has the windows of its gallery's pictures for a gallery, as a detector sees them."""

    dataset: Dataset
    split: str
    views: Mapping[str, tuple[GalleryImage, Prepared]]  # by window: whose it is, and the way back

    @classmethod
    def of(cls, dataset: Dataset, split: str, root: str | Path, zoom: float) -> Windowed:
        """Pictures of windows go to `root`; their names tell those of their images."""
        processor, views, images = AttributionProcessor.mini(), {}, []
        for image in dataset.gallery[split]:
            for number, seen in enumerate(seen_in_windows(processor, dataset.pixels(image.file), zoom)):
                name = f"{image.image_id}-{number}"
                file = atomic_write_bytes(Path(root) / f"{name}.png", png_bytes(seen.image))
                images.append(GalleryImage(str(file.resolve()), name, ()))
                views[name] = image, seen
        return cls(replace(dataset, gallery={**dataset.gallery, split: tuple(images)}), split, views)

    def strongest(self, found: Sequence[Attribution]) -> list[Attribution]:
        """Of the answers of all windows that of the strongest one for each image, as it is."""
        best = strongest_windows([a.image_id for a in found], [a.score for a in found], lambda window: self.views[window][0].image_id)
        return [found[i] for i in best]

    def back(self, found: Sequence[Attribution]) -> list[Attribution]:
        """Answers of windows as those of their images: their names, and boxes in their pixels."""
        homes = [(a, *self.views[a.image_id]) for a in found]
        return [replace(a, image_id=image.image_id, box=a.box and tuple(seen.back([a.box])[0].tolist())) for a, image, seen in homes]


def ask_ard(cut: Windowed, ard: DetectorMethod, closeup: CloseUp, file: str | Path) -> Answers:
    """Rows "ARD" and "ARD, close-up", which looks at every window a second time before the strongest answers for its image, and how each
    judges in that window whether the source is there (`JUDGED`). Kept query by query in `file`, so a killed run goes on."""
    samples, gallery, look = cut.dataset.samples[cut.split], cut.dataset.open_gallery(cut.split), SecondLook(closeup)

    def ask(query: Query, gallery: Gallery) -> dict[str, list[Attribution]]:
        rows, found = ard.read(query, gallery), {}
        once = rows["ARD"], rows[f"ARD{JUDGED}"]
        logits = look(query.image, query.sample.query_box, once[0], [cut.views[a.image_id][1].image for a in once[0]])
        for name, (ranked, judged) in (("ARD", once), ("ARD, close-up", [raised(some, logits) for some in once])):
            kept = {a.image_id for a in cut.strongest(ranked)}
            found |= {row: [a for a in some if a.image_id in kept] for row, some in ((name, ranked), (name + JUDGED, judged))}
        return found

    found, _ = collect(ask, samples, cut.dataset.query, gallery, file, Path(file).stem)
    return {name: {query: cut.back(answers) for query, answers in of.items()} for name, of in found.items()}


@dataclass(frozen=True)
class Answered:
    """A method that has answered already."""

    answers: Mapping[str, list[Attribution]]  # by sample_id

    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        return self.answers[query.sample.sample_id]


def ask_others(cut: Windowed, kit: Kit, asks: Mapping[str, Ask], others: Sequence[str], closeup: CloseUp | None = None) -> Answers:
    """Answers of `asks` and of the arena's `others` to all of the split's queries; with a close-up those of `others`, which are scored by
    cosines, looking twice as well, as ARD does. kit: with the dataset of `cut`; its folder keeps answers query by query."""
    samples, gallery, known = cut.dataset.samples[cut.split], cut.dataset.open_gallery(cut.split), entries()
    rows: Answers = {}
    for name, ask in asks.items():
        rows |= collect(ask, samples, cut.dataset.query, gallery, kit.work / f"{name}.jsonl", name)[0]
    for name in others:
        rows[name] = arena.ask(known[name], kit, samples, kit.work / f"{name}.jsonl")[0]
    for name in others if closeup is not None else ():
        twice = RivalCloseUp(Answered(rows[name]), closeup)
        rows[f"{name}, close-up"] = {s.sample_id: twice.rank(cut.dataset.query(s), gallery) for s in samples}
    return {name: {query: cut.back(cut.strongest(answers)) for query, answers in of.items()} for name, of in rows.items()}
