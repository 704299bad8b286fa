"""One question, answered: which region of which training picture did this region of a generated picture come from?

For a person with a model, a picture and a folder; `ard.detector.method` asks the same of a whole benchmark.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ard.chances import Chances
from ard.detector.closeup import CloseUp, SecondLook, raised
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.processor import AttributionProcessor, Prepared
from ard.detector.prompts import Prompt
from ard.detector.published import Pictures
from ard.detector.readings import Readings, read
from ard.images import ImageError, Source, open_image
from ard.records import Attribution
from ard.threads import side_by_side
from ard.together import Pool, once, together
from ard.windows import seen_in_windows, strongest_windows, windows


@dataclass(frozen=True)
class Skipped:
    """A gallery picture that was not ranked, and why."""

    image_id: str
    reason: str


@dataclass(frozen=True, eq=False)
class Index:
    """A gallery as the detector sees it: encode once, ask often."""

    batches: tuple[tuple[tuple[str, ...], tuple[Prepared, ...], Any], ...]  # names of windows (`_home`), what is seen, features
    skipped: tuple[Skipped, ...]
    looks: dict[CloseUp, SecondLook] = field(default_factory=dict)  # close-ups seen so far

    def __len__(self) -> int:
        return len({_home(name) for names, *_ in self.batches for name in names})


@dataclass(frozen=True)
class Answer:
    """Strongest first; box xyxy in pixels of the training picture. `ranked` and `skipped` add up to the gallery.

    `chances` are those of each picture in `found` to be the source, `sure` is that of the gallery to hold it at all, the sum over
    all pictures ranked. They come from the scores in `found` and those of the exemplar's own token (`ard.detector.tied`), as
    validation showed what these say (`ard.chances`). Empty and None where the detector was not asked that (`config.calibration`),
    or nothing was ranked.
    """

    found: tuple[Attribution, ...]
    ranked: int
    skipped: tuple[Skipped, ...]
    sure: float | None = None
    chances: tuple[float, ...] = ()


class Attributor:
    """A detector and its processor, of any size: `AttributionDetector`, or the detectors of the mini world. closeup: what it sees at a
    second look, where one was fitted to it (`ard.detector.closeup`); ValueError beside a processor that keeps the shape of pictures.
    zoom: above 1, training pictures are seen in windows of 1 / `zoom` of their longer side, too (`ard.windows`), for what is small in
    them; 2 takes eight times as long, fifteen with a second look, at every window. ValueError below 1."""

    def __init__(self, detector, processor: AttributionProcessor, batch: int = 4, closeup: CloseUp | None = None, zoom: float = 1.0):
        if closeup is not None and not processor.square:
            raise ValueError("close-up: expected a processor whose pictures are squares of one size")
        windows(1, 1, zoom)  # refuses a zoom below 1 before any picture is read
        self.detector, self.processor, self.batch, self.closeup, self.zoom = detector.eval(), processor, batch, closeup, zoom

    @torch.no_grad()
    def index(self, gallery: Mapping[str, Source] | Sequence[str | Path]) -> Index:
        """Encode a gallery: names and pictures, or a list of files. What cannot be read, or is listed twice, is skipped, the others go
        on. TypeError for one path alone.

        Only pictures of one size share a batch: padding would change what a backbone sees at the border, and a picture's score
        must not depend on its neighbours.
        """
        if isinstance(gallery, (str, Path)):
            raise TypeError(f"gallery: expected names and pictures, or a list of files, found one path, {gallery}; list a folder's files")
        items = dict(gallery) if isinstance(gallery, Mapping) else {str(path): path for path in gallery}
        twice = [] if isinstance(gallery, Mapping) else [name for name, n in Counter(map(str, gallery)).items() for _ in range(n - 1)]
        batches, skipped, waiting = [], [Skipped(name, "listed twice") for name in twice], {}
        for name, source in tqdm(items.items(), desc="gallery", mininterval=5, disable=len(items) < 100):
            try:
                seen = seen_in_windows(self.processor, open_image(source, name), self.zoom)
            except ImageError as error:
                skipped.append(Skipped(name, str(error)))
                continue
            for number, ready in enumerate(seen):
                alike = waiting.setdefault(ready.transform.size, [])
                alike.append((f"{number}:{name}", ready))
                if len(alike) == self.batch:
                    batches.append(self._encoded(waiting.pop(ready.transform.size)))
        return Index((*batches, *map(self._encoded, waiting.values())), tuple(skipped))

    def _asked(self, ready: Prepared, prompt: str | None) -> Prompt:
        """The query's side alone: class phrase and exemplar token of the box."""
        if prompt is not None and not prompt.strip():
            raise ValueError("prompt: expected the name of what is in the box, or None for the box alone; found an empty text")
        boxes = torch.as_tensor(ready.boxes, dtype=torch.float32)
        return self.detector.encode_query(self._collated([ready]), boxes, [prompt])

    def _collated(self, ready: Sequence[Prepared]) -> Pictures | np.ndarray:
        """A batch, where the detector is."""
        batch = self.processor.collate(ready)
        return batch.to(self.detector.device) if isinstance(batch, Pictures) else batch

    def attribute(self, query: Source, query_box, prompt: str | None, gallery: Index | Mapping[str, Source] | Sequence[str | Path],
                  top_k: int = 10, prior: float = 0.5) -> Answer:
        """The `top_k` gallery pictures that answer best to the box, each with the region that does and its score.

        query_box: xyxy pixels of `query`. prompt: what is in it ("cat"), or None to ask by looks alone. prior: chance, before
        looking, that the gallery holds the source. Raises ImageError or GeometryError for the query, ValueError for an empty
        prompt, `top_k` below 1, or a prior that is not between 0 and 1.
        """
        return self.attribute_together([(query, query_box)], prompt, gallery, top_k, prior)

    @torch.no_grad()
    def attribute_together(self, pictures: Sequence[tuple[Source, Sequence[float]]], prompt: str | None,
                           gallery: Index | Mapping[str, Source] | Sequence[str | Path], top_k: int = 10, prior: float = 0.5) -> Answer:
        """`attribute`, asked about several pictures of one thing, as one generator draws them: each with the box that it is in. An
        image's score is the mean of its log-odds over the pictures, as a chance, with what the words say of it counted once, and its box
        the one of theirs that overlaps the others best (`ard.together`). Raises as `attribute`, and ValueError without a picture."""
        if not len(pictures):
            raise ValueError("pictures: expected at least one generated picture with its box")
        if top_k < 1:
            raise ValueError(f"top_k: expected at least 1, found {top_k}")
        if not 0 < prior < 1:
            raise ValueError(f"prior: expected a chance between 0 and 1, found {prior}")
        ready = [self.processor(picture, [box], name=str(picture) if isinstance(picture, (str, Path)) else "query") for picture, box in pictures]
        asked = [self._asked(one, prompt) for one in ready]
        index = gallery if isinstance(gallery, Index) else self.index(gallery)
        seen = {name: picture for names, pictures, _ in index.batches for name, picture in zip(names, pictures)}
        found = [_strongest(self._raised(self._read(one, index), picture, seen, index)) for one, picture in zip(asked, ready)]
        said, judged = [_back(one.ranked, seen) for one in found], [one.judged for one in found]
        repeated = len(asked) > 1 and prompt is not None and all(one.words for one in found)
        words = [_back(one.words, seen) for one in found] if repeated else None
        chances, sure = self._chances(judged, said, words, prior)
        answers = together(said, words=words)
        order = sorted(range(len(answers)), key=lambda i: (-answers[i].score, answers[i].image_id))[:top_k]
        return Answer(tuple(answers[i] for i in order), len(index), index.skipped, sure, tuple(chances[i] for i in order if chances))

    @torch.no_grad()
    def answers(self, query: Source, query_box, prompt: str | None, index: Index, variants: Sequence[bool] = (False, True)
                ) -> list[list[Attribution]]:
        """What every picture of an index answers at one look, in its own pixels, without F and F~ and with them; raises as `attribute`."""
        asked = self._asked(self.processor(query, [query_box], name="query"), prompt)
        seen = {name: picture for names, pictures, _ in index.batches for name, picture in zip(names, pictures)}
        return [_back(_strongest(found).ranked, seen) for found in self._variants(asked, index, variants)]

    def _chances(self, judged: Sequence[Sequence[Attribution]], said: Sequence[Sequence[Attribution]],
                 words: Sequence[Sequence[Attribution]] | None, prior: float) -> tuple[list[float], float | None]:
        """Of each picture of the index to be the source, and of any; none where the detector was not asked what its scores say, or
        nothing was ranked."""
        calibration = self.detector.config.calibration  # without it a close-up's, which was found beside another detector, says nothing
        if calibration and self.closeup is not None:
            calibration = self.closeup.calibration
        if not calibration or not said[0]:
            return [], None
        scores, ranked = _scores(judged), _scores(said)
        if words is not None:
            ranked = once(ranked, _scores(words), len(said))
        each, sure = Pool()(Chances(*calibration)(scores, ranked), prior)
        return each.tolist(), sure

    def _raised(self, found: Readings, asked: Prepared, seen: Mapping[str, Prepared], index: Index) -> Readings:
        """With what a second look at every window says of it."""
        if self.closeup is None or not found.ranked:
            return found
        look = index.looks.setdefault(self.closeup, SecondLook(self.closeup))
        logits = look(asked.image, asked.boxes[0], found.ranked, [seen[a.image_id].image for a in found.ranked])
        return replace(found, ranked=raised(found.ranked, logits), judged=raised(found.judged, logits))

    def _read(self, asked: Prompt, index: Index) -> Readings:
        """An answer for each picture, in pixels of what the detector sees, in the order of the index."""
        return self._variants(asked, index, (self.detector.config.adapters,))[0]

    def _variants(self, asked: Prompt, index: Index, variants: Sequence[bool]) -> list[Readings]:
        """The same without F and F~ and with them, from one pass."""
        def of(batch) -> list[Readings]:
            names, pictures, features = batch
            frames = torch.tensor(np.stack([picture.frame for picture in pictures])) if self.processor.square else None
            return read(self.detector, asked, features, names, variants, frames)

        small = isinstance(self.detector, AttributionGroundingDinoForObjectDetection)
        parts = side_by_side(of, index.batches) if small else [of(batch) for batch in index.batches]
        return [Readings.joined([part[i] for part in parts]) for i in range(len(variants))]

    def _encoded(self, waiting: list[tuple[str, Prepared]]) -> tuple[tuple[str, ...], tuple[Prepared, ...], Any]:
        names, pictures = zip(*waiting)
        return names, pictures, self.detector.encode_image(self._collated(pictures))


def _home(window: str) -> str:
    """The picture that a window of an index shows."""
    return window.split(":", 1)[1]


def _strongest(found: Readings) -> Readings:
    """What the strongest window of each picture answers, by each reading."""
    best = strongest_windows([a.image_id for a in found.ranked], [a.score for a in found.ranked], _home)
    return Readings(*([some[i] for i in best] if some else [] for some in (found.ranked, found.judged, found.words)))


def _back(answers: Sequence[Attribution], seen: Mapping[str, Prepared]) -> list[Attribution]:
    """Answers of windows as those of the pictures that came in."""
    return [replace(a, image_id=_home(a.image_id), box=tuple(seen[a.image_id].back([a.box])[0].tolist())) for a in answers]


def _scores(said: Sequence[Sequence[Attribution]]) -> np.ndarray:
    """(n, N) scores of N images by n pictures."""
    return np.array([[a.score for a in answers] for answers in said])
