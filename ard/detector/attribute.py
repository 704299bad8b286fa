"""One question, answered: which region of which training picture did this region of a generated picture come from?

For a person with a model, a picture and a folder; `ard.detector.method` asks the same of a whole benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ard.chances import Chances
from ard.detector.pooling import rank_variants
from ard.detector.processor import AttributionProcessor, Prepared
from ard.detector.prompts import Prompt
from ard.detector.reading import untied
from ard.images import ImageError, Source
from ard.records import Attribution


@dataclass(frozen=True)
class Skipped:
    """A gallery picture that was not ranked, and why."""

    image_id: str
    reason: str


@dataclass(frozen=True, eq=False)
class Index:
    """A gallery as the detector sees it: encode once, ask often."""

    batches: tuple[tuple[tuple[str, ...], tuple[Prepared, ...], Any], ...]  # names, pictures, features
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        return sum(len(names) for names, *_ in self.batches)


@dataclass(frozen=True)
class Answer:
    """Strongest first; box xyxy in pixels of the training picture. `ranked` and `skipped` add up to the gallery.

    `chances` are those of each picture in `found` to be the source, `sure` is that of the gallery to hold it at all, the sum over
    all pictures ranked. They come from the scores in `found` and those of the exemplar's own token (`ard.detector.reading`), as
    validation showed what these say (`ard.chances`). Empty and None where the detector was not asked that (`config.calibration`),
    or nothing was ranked.
    """

    found: tuple[Attribution, ...]
    ranked: int
    skipped: tuple[Skipped, ...]
    sure: float | None = None
    chances: tuple[float, ...] = ()


class Attributor:
    """A detector and its processor, of any size: `AttributionDetector`, or the detectors of the mini world."""

    def __init__(self, detector, processor: AttributionProcessor, batch: int = 4):
        self.detector, self.processor, self.batch = detector.eval(), processor, batch
        self.judge = untied(self.detector)  # says whether the source is there

    @torch.no_grad()
    def index(self, gallery: Mapping[str, Source] | Sequence[str | Path]) -> Index:
        """Encode a gallery: names and pictures, or a list of files. What cannot be read is listed, the others go on.

        Only pictures of one size share a batch: padding would change what a backbone sees at the border, and a picture's score
        must not depend on its neighbours.
        """
        items = dict(gallery) if isinstance(gallery, Mapping) else {str(path): path for path in gallery}
        batches, skipped, waiting = [], [], {}
        for name, source in tqdm(items.items(), desc="gallery", mininterval=5, disable=len(items) < 100):
            try:
                ready = self.processor(source, name=name)
            except ImageError as error:
                skipped.append(Skipped(name, str(error)))
                continue
            alike = waiting.setdefault(ready.transform.size, [])
            alike.append((name, ready))
            if len(alike) == self.batch:
                batches.append(self._encoded(waiting.pop(ready.transform.size)))
        return Index((*batches, *map(self._encoded, waiting.values())), tuple(skipped))

    @torch.no_grad()
    def ask(self, query: Source, query_box, prompt: str | None) -> Prompt:
        """The query's side alone: class phrase and exemplar token of the box, xyxy pixels of the picture."""
        if prompt is not None and not prompt.strip():
            raise ValueError("prompt: expected the name of what is in the box, or None for the box alone; found an empty text")
        ready = self.processor(query, [query_box], name="query")
        boxes = torch.as_tensor(ready.boxes, dtype=torch.float32)
        return self.detector.encode_query(self.processor.collate([ready]), boxes, [prompt])

    @torch.no_grad()
    def attribute(self, query: Source, query_box, prompt: str | None, gallery: Index | Mapping[str, Source] | Sequence[str | Path],
                  top_k: int = 10, prior: float = 0.5) -> Answer:
        """The `top_k` gallery pictures that answer best to the box, each with the region that does and its score.

        query_box: xyxy pixels of `query`. prompt: what is in it ("cat"), or None to ask by looks alone. prior: chance, before
        looking, that the gallery holds the source. Raises ImageError or GeometryError for the query, ValueError for an empty
        prompt, `top_k` below 1, or a prior that is not between 0 and 1.
        """
        if top_k < 1:
            raise ValueError(f"top_k: expected at least 1, found {top_k}")
        if not 0 < prior < 1:
            raise ValueError(f"prior: expected a chance between 0 and 1, found {prior}")
        asked = self.ask(query, query_box, prompt)
        index = gallery if isinstance(gallery, Index) else self.index(gallery)
        answers = sorted(self._ranked(self.detector, asked, index), key=lambda a: (-a.score, a.image_id))
        chances, sure = self._chances(answers, asked, index, prior)
        told = tuple(chances[a.image_id] for a in answers[:top_k]) if chances else ()
        return Answer(tuple(answers[:top_k]), len(index), index.skipped, sure, told)

    def _chances(self, answers: Sequence[Attribution], asked: Prompt, index: Index, prior: float) -> tuple[dict[str, float], float | None]:
        """Of each picture to be the source, and of any; none where the detector was not asked what its scores say, or nothing ranked."""
        if not self.detector.config.calibration or not answers:
            return {}, None
        judged = answers if self.judge is self.detector else self._ranked(self.judge, asked, index)
        own, chances = {a.image_id: a.score for a in judged}, Chances(*self.detector.config.calibration)
        scores = [own[a.image_id] for a in answers], [a.score for a in answers]
        return dict(zip((a.image_id for a in answers), chances(*scores, prior).tolist())), float(chances.of_any(*scores, prior))

    def _ranked(self, detector, asked: Prompt, index: Index) -> list[Attribution]:
        """An answer for each picture, in its own pixels, in the order of the index."""
        answers, variants = [], (detector.config.adapters,)
        for names, pictures, features in index.batches:
            for one, picture in zip(rank_variants(detector, asked, features, names, variants)[0], pictures):
                answers.append(Attribution(one.image_id, tuple(picture.back([one.box])[0].tolist()), one.score))
        return answers

    def _encoded(self, waiting: list[tuple[str, Prepared]]) -> tuple[tuple[str, ...], tuple[Prepared, ...], Any]:
        names, pictures = zip(*waiting)
        return names, pictures, self.detector.encode_image(self.processor.collate(pictures))
