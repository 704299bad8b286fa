"""What phase 2 may minimise: the paper's focal loss on token scores (eq. 2), or a loss on the ranking itself.

Beside `ard.detector.phases`. A group is one query's X and its negatives, X first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ard.detector.prompts import Prompt
from ard.detector.score import phrase_scores

OBJECTIVES = ("focal", "ranking", "infonce")


def image_scores(logits: Tensor, prompt: Prompt, rule: str, group: int) -> Tensor:
    """(P, group) log odds of each image's strongest region for the first phrase, from logits (P * group, N, T)."""
    best = phrase_scores(logits, prompt, rule)[..., 0].max(1).values
    return torch.logit(best, eps=1e-6).unflatten(0, (-1, group))


def ranking_loss(scores: Tensor) -> Tensor:
    """Mean of -log sigmoid(s_X - s_negative) over all negatives of (P, group): tried and left by the authors (FACTS 1.7).

    >>> round(float(ranking_loss(torch.zeros(1, 3))), 4)
    0.6931
    """
    return F.softplus(scores[:, 1:] - scores[:, :1]).mean()


def infonce(scores: Tensor) -> Tensor:
    """Mean of -log softmax of X's score among its group (van den Oord et al. 2018), log odds as they are.

    >>> round(float(infonce(torch.zeros(1, 4))), 4)
    1.3863
    """
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))


def strongest(scores: Tensor, k: int) -> Tensor:
    """Rows of the batch to keep: of each group (P, group) its X and its k negatives with the highest scores."""
    chosen = torch.cat([scores.new_zeros(len(scores), 1, dtype=torch.long), 1 + scores[:, 1:].topk(k, 1).indices], 1)
    return (chosen + scores.shape[1] * torch.arange(len(scores))[:, None]).flatten()
