"""One answer of an image from all of its regions, where the words and the likeness of a tied detector are kept apart.

The decoder frames an object many times over, and now and then a part of it, or another thing, which happens to look more like
the exemplar than the object does. The strongest region is then a lucky one. Here the likeness counts on average over the places
where the words say that the class may be, and the box is the one that overlaps the likely places best. Not in the paper; after
log-sum-exp pooling (Pinheiro and Collobert 2015, equation 6) and minimum Bayes risk. Notebook 28 asks what it is worth.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou


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
    overlap = torch.stack([box_iou(one, one) for one in boxes]).nan_to_num() ** 2  # of boxes without area: 0
    best = (overlap @ shares[..., None])[..., 0].argmax(1)
    return (words.amax(1) + alike).sigmoid(), boxes[torch.arange(len(boxes)), best]
