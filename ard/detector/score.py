"""From token logits to scores: ONE rule for every class length (FACTS 12.6), boxes of a class, and the ranking of a
gallery."""

from dataclasses import dataclass
from typing import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from ard.detector.joint import JointDetector
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.prompts import DELIMITER, EXEMPLAR, SCORE_RULES, TEXT, Phrase, Prompt, build_prompt, phrase_map, positions
from ard.detector.published import Maps
from ard.records import Attribution

BATCH = 32
EVERYWHERE = (-torch.inf, -torch.inf, torch.inf, torch.inf)  # the frame of a picture without a margin
ANY = (TEXT, EXEMPLAR, DELIMITER)
Features = Tensor | Maps  # what `encode_image` gives: packed (mini world), or maps


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes (n, 4) xyxy pixels, scores (n,) and phrase indices (n,) of one image, strongest first."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def phrase_scores(logits: Tensor, prompt: Prompt, rule: str = "mean") -> Tensor:
    """(B, N, P) score of each region for each phrase from logits (B, N, T).

    The text part is the mean probability of the phrase's word pieces, the exemplar part that of its exemplar token;
    "mean" averages the two parts, "product" multiplies them, "text" and "exemplar" take one alone; a phrase with one part
    uses that one under every rule. "released" is the released code's, `released_scores`.
    """
    if rule not in SCORE_RULES:
        raise ValueError(f"rule: expected one of {', '.join(SCORE_RULES)}, found {rule!r}")
    p = logits.sigmoid()
    if rule == "released":
        return released_scores(p, prompt)
    parts = []
    for kind in (TEXT, EXEMPLAR):
        tokens = phrase_map(prompt, (kind,))
        count = tokens.sum(-1)
        parts.append((p @ (tokens / count.clamp(min=1)[..., None]).transpose(1, 2), (count > 0)[:, None]))
    (text, has_text), (exemplar, has_exemplar) = parts
    both = {"mean": (text + exemplar) / 2, "product": text * exemplar, "text": text, "exemplar": exemplar}[rule]
    return torch.where(has_text & has_exemplar, both, torch.where(has_text, text, exemplar))


def released_scores(probabilities: Tensor, prompt: Prompt) -> Tensor:
    """(B, N, P): the strongest of the tokens that the released code takes for the class name (FACTS 1.7 c).

    Of "cat <exemplar> ." these are "cat" and ".", of "teddy bear <exemplar> ." "teddy" and the exemplar, of longer names
    all words but the second: its places were counted in a caption of all classes, without exemplars.
    """
    index, tokens = positions(prompt)[:, None], phrase_map(prompt, ANY)
    words = phrase_map(prompt, (TEXT,)).sum(-1, keepdim=True)
    taken = tokens.bool() & ((index == 0) | (index == 2) | (index > 2) & (index < words))
    return (probabilities[:, :, None] * taken[:, None]).amax(-1)


@torch.no_grad()
def detect_features(
    model: AttributionGroundingDinoForObjectDetection,
    features: Tensor,
    prompt: Prompt,
    threshold: float = 0.0,
    overlap: float = 0.7,
) -> list[Detections]:
    """Boxes of each phrase of `prompt` (B rows, or one for all images) scoring at least `threshold`, per image.

    A region answers for its best phrase; of two of a phrase that overlap by more than `overlap` IoU the weaker goes.
    """
    model.eval()
    found = []
    for start in range(0, len(features), BATCH):
        rows = slice(start, start + BATCH)
        part = features[rows]
        asked = prompt.expand(len(part)) if len(prompt.kind) == 1 else Prompt(*(t[rows] for t in prompt))
        match = model.match(part, asked)
        scores, labels = phrase_scores(match.logits, asked, model.config.score_rule).max(-1)
        found += [_keep(*one, threshold, overlap) for one in zip(match.boxes, scores, labels)]
    return found


def _keep(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, overlap: float) -> Detections:
    # shifting each phrase by a picture of its own keeps phrases from suppressing each other
    kept = nms(boxes + 1000.0 * labels[:, None], scores, overlap)
    kept = kept[scores[kept] >= threshold]
    return Detections(*(found[kept].cpu().numpy() for found in (boxes, scores, labels)))


def detect(
    model: AttributionGroundingDinoForObjectDetection,
    images: np.ndarray,
    class_names: str | Sequence[str],
    threshold: float,
) -> list[Detections]:
    """Open-set detection by text: images uint8 (B, 64, 64, 3), one class name or several; labels index
    `class_names`."""
    names = [class_names] if isinstance(class_names, str) else list(class_names)
    prompt = build_prompt([[Phrase(name) for name in names]])
    return detect_features(model, model.encode_image(images), prompt, threshold)


@torch.no_grad()
def rank_variants(
    model: JointDetector,
    query: Prompt,
    gallery: Features,
    image_ids: Sequence[str],
    variants: Sequence[bool] = (False, True),
    frames: Tensor | None = None,
) -> list[list[Attribution]]:
    """One query (a prompt of one row and one phrase) against what `encode_image` gave of a gallery, in one forward pass.

    Returns a list of attributions in gallery order for each variant: without F and F~ (ARD-) and with them (ARD). frames: as
    `beside` takes them, where pictures have a margin.
    """
    model.eval()
    frames = torch.tensor([EVERYWHERE]).expand(len(gallery), 4) if frames is None else frames
    answers: list[list[Attribution]] = [[] for _ in variants]
    for start in range(0, len(gallery), BATCH):
        part = gallery[start : start + BATCH]
        asked = query.expand(len(part))
        match = model.match(part, asked, adapted=False)
        for answer, adapted in zip(answers, variants):
            logits = match.logits
            if adapted:
                logits = model.score_head(match.regions, match.tokens, match.present, True) + match.likeness
            outside = beside(match.boxes, frames[start : start + BATCH])
            scores = phrase_scores(logits, asked, model.config.score_rule)[..., 0]
            answer += strongest(image_ids[start : start + BATCH], scores, match.boxes, outside)
    return answers


def strongest(names: Sequence[str], scores: Tensor, boxes: Tensor, outside: Tensor) -> list[Attribution]:
    """The region of the highest score (B, N) in each of B images, but for those `outside`; boxes (B, N, 4)."""
    best, at = scores.masked_fill(outside, -torch.inf).max(-1)
    found = boxes[torch.arange(len(at)), at]
    return [Attribution(name, tuple(box), score) for name, box, score in zip(names, found.tolist(), best.tolist(), strict=True)]


def beside(boxes: Tensor, frames: Tensor) -> Tensor:
    """(B, N) bool: the middle of a box (B, N, 4) lies outside of its image's frame (B, 4), the part of it that is picture and not
    margin; all False where every box does.

    >>> beside(torch.tensor([[[0.0, 0, 8, 4], [0, 3, 8, 8]]]), torch.tensor([[0.0, 0, 8, 5]])).tolist()
    [[False, True]]
    """
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    frames = frames.to(boxes.device)[:, None]
    outside = ((middle < frames[..., :2]) | (middle > frames[..., 2:])).any(-1)
    return outside & ~outside.all(1, keepdim=True)
