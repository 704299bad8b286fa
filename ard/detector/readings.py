"""One pass of a detector, read in three ways: which image it is, whether it is there at all, and what the words say by themselves.

A tied detector, the one that it is a copy of (`ard.detector.tied`) and its words differ in the last step alone, by which regions and
tokens become scores; all before it, which takes nearly all the time, is shared here. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch

from ard.detector.joint import JointDetector, Match
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.pooling import pooled
from ard.detector.prompts import EXEMPLAR, Prompt
from ard.detector.score import BATCH, EVERYWHERE, Features, beside, phrase_scores, rank_variants, strongest
from ard.detector.tied import TiedGroundingDinoForObjectDetection, tied
from ard.records import Attribution
from ard.threads import side_by_side

FEW = 8  # images that are read as fast by one thread as by two
JUDGED, WORDS = ", judged", ", words"  # what the rows of other readings are called after that of ARD


@dataclass
class Readings:
    """What N images answer, in their order, by each reading."""

    ranked: list[Attribution] = field(default_factory=list)  # which image it is
    judged: list[Attribution] = field(default_factory=list)  # whether it is there: exemplars by their own tokens, as of `untied`
    # what the words say of an image, whichever picture of a thing is asked about; several pictures say it only once (`ard.together`)
    words: list[Attribution] = field(default_factory=list)

    def named(self, name: str) -> dict[str, list[Attribution]]:
        """By `name`, and by it with `JUDGED` and, where there are any, `WORDS`."""
        found = {name: self.ranked, name + JUDGED: self.judged, name + WORDS: self.words}
        return {row: answers for row, answers in found.items() if answers or not self.ranked}

    @classmethod
    def joined(cls, parts: Sequence[Readings]) -> Readings:
        """Those of several galleries, one after the other."""
        return cls(*([one for part in parts for one in getattr(part, name.name)] for name in fields(cls)))


@torch.no_grad()
def read(model: JointDetector, query: Prompt, gallery: Features, image_ids: Sequence[str],
         variants: Sequence[bool] = (False, True), frames: torch.Tensor | None = None) -> list[Readings]:
    """One query (a prompt of one row and one phrase) against what `encode_image` gave of a gallery, in one forward pass: its readings
    without F and F~ (ARD-) and with them (ARD). A small detector is asked parts of the gallery side by side.

    A detector that is not tied has one reading: it judges as it ranks (`score.rank_variants`), and has no words apart. A tied one whose
    configuration has a temperature for it (`pooling`) answers with all regions of an image, other ones with the strongest. frames
    (N, 4): the part of each image, xyxy pixels, that is picture and not margin; regions beside it are no answers. ValueError: the
    detector pools, and the query has no exemplar, or several.
    """
    frames = torch.tensor([EVERYWHERE]).expand(len(gallery), 4) if frames is None else frames
    if not isinstance(model, AttributionGroundingDinoForObjectDetection):
        return _as_ranked(model, query, gallery, image_ids, variants, frames)
    one = _read if isinstance(model, TiedGroundingDinoForObjectDetection) else _as_ranked
    model.eval()
    parts = side_by_side(lambda some: one(model, query, gallery[some], image_ids[some], variants, frames[some]), even_parts(len(gallery)))
    return [Readings.joined([part[i] for part in parts]) for i in range(len(variants))]


def even_parts(n: int) -> list[slice]:
    """n images in an even number of parts, for two threads, of `BATCH` at most and as equal as can be; less than `FEW` are one part.

    >>> even_parts(5), even_parts(9), len(even_parts(100))
    ([slice(0, 5, None)], [slice(0, 5, None), slice(5, 9, None)], 4)
    """
    count = 2 * -(-n // (2 * BATCH)) if n >= FEW else min(n, 1)
    ends = [-(-n * i // count) for i in range(1, count + 1)]
    return [slice(start, end) for start, end in zip([0, *ends], ends)]


def _as_ranked(model: JointDetector, query: Prompt, gallery: Features, names: Sequence[str], variants: Sequence[bool],
               frames: torch.Tensor) -> list[Readings]:
    return [Readings(ranked, ranked) for ranked in rank_variants(model, query, gallery, names, variants, frames)]


def _read(model: TiedGroundingDinoForObjectDetection, query: Prompt, gallery: Features, names: Sequence[str],
          variants: Sequence[bool], frames: torch.Tensor) -> list[Readings]:
    asked = query.expand(len(gallery))
    match = AttributionGroundingDinoForObjectDetection.match(model, gallery, asked, adapted=False)  # as it was trained
    outside = beside(match.boxes, frames)
    tokens, likeness, found = tied(match.tokens, asked), model.config.likeness_weight * match.likeness, []
    for adapted in variants:
        own, words = (model.score_head(match.regions, of, match.present, adapted) for of in (match.tokens, tokens))
        found.append(Readings(_answers(model, asked, words, likeness, match, names, outside),
                              _strongest(model, asked, own + match.likeness, match, names, outside),
                              _answers(model, asked, words, 0 * likeness, match, names, outside)))
    return found


def _answers(model: TiedGroundingDinoForObjectDetection, asked: Prompt, words: torch.Tensor, likeness: torch.Tensor, match: Match,
             names: Sequence[str], outside: torch.Tensor) -> list[Attribution]:
    """From all regions, where the detector pools them, or from the strongest."""
    if not model.config.pooling:
        return _strongest(model, asked, words + likeness, match, names, outside)
    exemplar = asked.kind[0] == EXEMPLAR
    if exemplar.sum() != 1:
        raise ValueError(f"pooling: expected a query of one exemplar, found {int(exemplar.sum())}")
    said, alike = (logits[..., exemplar][..., 0].float() for logits in (words, likeness))
    scores, boxes = pooled(said.masked_fill(outside, -torch.inf), alike, match.boxes, model.config.pooling)
    return [Attribution(name, tuple(box), score) for name, box, score in zip(names, boxes.tolist(), scores.tolist(), strict=True)]


def _strongest(model: JointDetector, asked: Prompt, logits: torch.Tensor, match: Match, names: Sequence[str],
               outside: torch.Tensor) -> list[Attribution]:
    return strongest(names, phrase_scores(logits.float(), asked, model.config.score_rule)[..., 0], match.boxes, outside)
