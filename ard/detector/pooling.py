"""One answer of an image from all of its regions, where the words and the likeness of a tied detector are kept apart.

The decoder frames an object many times over, and now and then a part of it, or another thing, which happens to look more like
the exemplar than the object does. The strongest region is then a lucky one. Here the likeness counts on average over the places
where the words say that the class may be, and the box is the one that overlaps the likely places best. Not in the paper; after
log-sum-exp pooling (Pinheiro and Collobert 2015, equation 6) and minimum Bayes risk. Notebook 28 asks what it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ard.detector import score
from ard.detector.joint import JointDetector
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.prompts import EXEMPLAR, Prompt
from ard.detector.score import BATCH, Features
from ard.detector.tied import TiedGroundingDinoForObjectDetection
from ard.records import Attribution
from ard.threads import side_by_side


def pooled(words: Tensor, likeness: Tensor, boxes: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Score (B,) in (0, 1) and box (B, 4) of B images from their N regions: what the words say of them and the likeness that is
    added to it, logits (B, N) each, and boxes (B, N, 4) xyxy.

    The score's logit is the strongest region's words, plus the log of exp(likeness) on average over the regions, each with a
    share of softmax(words / temperature). The box is the region of greatest squared IoU on average, with shares of
    softmax((words + likeness) / temperature); not squared, one around two things would do. ValueError for a temperature that is not
    positive.

    >>> score, box = pooled(torch.tensor([[2.0, 2.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[[0.0, 0, 1, 1], [0, 0, 2, 2]]]), 2.0)
    >>> round(float(score.logit()), 4), box.tolist()
    (3.0, [[0.0, 0.0, 1.0, 1.0]])
    """
    if temperature <= 0:
        raise ValueError(f"pooling: expected a temperature above 0, found {temperature}")
    alike = (torch.log_softmax(words / temperature, 1) + likeness).logsumexp(1)
    shares = torch.softmax((words + likeness) / temperature, 1)
    overlap = torch.stack([box_iou(one, one) for one in boxes]) ** 2
    best = (overlap @ shares[..., None])[..., 0].argmax(1)
    return (words.amax(1) + alike).sigmoid(), boxes[torch.arange(len(boxes)), best]


@torch.no_grad()
def rank_variants(model: JointDetector, query: Prompt, gallery: Features, image_ids: Sequence[str],
                  variants: Sequence[bool] = (False, True)) -> list[list[Attribution]]:
    """`ard.detector.score.rank_variants`, but pooled where the detector's configuration has a temperature for it (`pooling`), and
    parts of the gallery side by side where the detector is small.

    ValueError: the query has no exemplar, or several, and the detector pools.
    """
    if not isinstance(model, AttributionGroundingDinoForObjectDetection):
        return score.rank_variants(model, query, gallery, image_ids, variants)
    model.eval()
    pools = isinstance(model, TiedGroundingDinoForObjectDetection) and model.config.pooling
    rank = _pooled_variants if pools else score.rank_variants
    parts = side_by_side(lambda rows: rank(model, query, gallery[rows], image_ids[rows], variants), batches(len(gallery)))
    return [[answer for part in parts for answer in part[i]] for i in range(len(variants))]


def batches(count: int) -> list[slice]:
    """The rows of a gallery that are asked at once."""
    return [slice(start, start + BATCH) for start in range(0, count, BATCH)]


def the_exemplar(query: Prompt) -> Tensor:
    """(T,) bool: the token of a query's one exemplar. ValueError where it has none, or several."""
    exemplar = query.kind[0] == EXEMPLAR
    if exemplar.sum() != 1:
        raise ValueError(f"pooling: expected a query of one exemplar, found {int(exemplar.sum())}")
    return exemplar


def _pooled_variants(model: TiedGroundingDinoForObjectDetection, query: Prompt, gallery: Features, image_ids: Sequence[str],
                     variants: Sequence[bool]) -> list[list[Attribution]]:
    exemplar, answers = the_exemplar(query), []
    match = model.match(gallery, query.expand(len(gallery)), adapted=False)
    for adapted in variants:
        words = model.score_head(match.regions, match.tokens, match.present, adapted)[..., exemplar][..., 0]
        found = pooled(words.float(), match.likeness[..., exemplar][..., 0].float(), match.boxes, model.config.pooling)
        scores, boxes = (part.tolist() for part in found)
        answers.append([Attribution(name, tuple(box), one) for name, box, one in zip(image_ids, boxes, scores)])
    return answers
