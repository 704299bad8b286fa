"""Several pictures of one thing are asked about together: one answer from all of theirs.

A generator that was customised on X draws as many pictures of it as its owner likes, and what one of them has lost another may have
kept. Not in the paper, which asks about one. Notebook 43 asks what it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from ard.geometry import box_iou
from ard.records import Attribution

SMALLEST = 1e-9  # a smaller chance counts as this
LARGEST = 600.0  # logit whose odds are still a number


def together(answers: Sequence[Sequence[Attribution]], odds: bool = True,
             words: Sequence[Sequence[Attribution]] | None = None) -> list[Attribution]:
    """One answer for each image from those to n pictures of the same thing, in the order of the first: its mean score, and of its n
    boxes the one that overlaps the others best.

    odds: scores are chances, (0, 1), and the mean is that of their log-odds; else that of the scores as they are, where an image in
    which nothing was found for a picture (-inf) stays behind. words: the answers to the same pictures by their words alone, chances
    too, which are part of the log-odds. They say of an image the same again and again, where the likenesses are n witnesses, so
    they count once, 1 / n of what they count in the mean. ValueError: no picture, answers of different images, or words without
    odds.

    >>> one, two = [[Attribution("a", (0, 0, 4, 4), s), Attribution("b", None, 0.5)] for s in (0.8, 0.2)]
    >>> [(a.image_id, round(a.score, 2)) for a in together([one, two])]
    [('a', 0.5), ('b', 0.5)]
    """
    if not answers:
        raise ValueError("together: expected the answers to at least one picture")
    if words is not None and not odds:
        raise ValueError("together: words are part of log-odds, not of scores as they are")
    found, told = ([{a.image_id: a for a in of} for of in some] for some in (answers, answers if words is None else words))
    if len(told) != len(found) or any(of.keys() != found[0].keys() for of in (*found, *told)):
        raise ValueError("together: expected answers of the same images to every picture")
    scores, of_words = (np.array([[of[name].score for name in found[0]] for of in some]) for some in (found, told))
    if len(found) == 1:
        mean = scores[0]
    elif not odds:
        mean = scores.mean(0)
    else:
        mean = expit(log_odds(scores if words is None else once(scores, of_words, len(found))).mean(0))
    return [Attribution(name, middle([of[name].box for of in found]), float(score)) for name, score in zip(found[0], mean)]


def once(scores, words, n: int) -> np.ndarray:
    """Chances (...) of images as one of n pictures says them -> the same with 1 / n of the log-odds that are due to words (...): over all n
    pictures, the words count once."""
    return expit(log_odds(scores) - (1 - 1 / n) * log_odds(words))


def log_odds(scores) -> np.ndarray:
    """Log-odds (...) of chances (...), of which none is 0 or 1."""
    return logit(np.clip(scores, SMALLEST, 1 - SMALLEST))


def middle(boxes: Sequence) -> tuple[float, float, float, float] | None:
    """Of boxes (xyxy; None is none) the one of greatest IoU with all on average, of equals the first; None where there is none."""
    there = [box for box in boxes if box is not None]
    return tuple(there[int(box_iou(there, there).sum(1).argmax())]) if there else None


@dataclass(frozen=True)
class Pool:
    """Chances that n pictures of one thing say by themselves -> the chances of all together: a logarithmic opinion pool (Genest and
    Zidek 1986) that has learned how much news a further picture brings.

    What pictures make of an image, the log of its likelihood ratio to "none of them", is averaged to m, and counts as
    n ** growth * (m - bias) + bias. growth 1: each picture is new evidence; 0: all of them say no more than one does. bias: where
    further pictures leave an answer as it is; above it they make surer, below it they make doubt.
    """

    growth: float = 0.49  # fitted to validation queries by notebook 43, as the bias
    bias: float = 1.73

    def __call__(self, chances, prior: float = 0.5) -> tuple[np.ndarray, float]:
        """chances: (n, N) of N images to be the source, by n pictures with the prior of one half (`ard.chances`) -> (N,) chances with
        another prior, and their sum: that the gallery holds the source. ValueError: a prior that is not between 0 and 1."""
        if not 0 < prior < 1:
            raise ValueError(f"prior: expected a chance between 0 and 1, found {prior}")
        chances = np.atleast_2d(np.asarray(chances, np.float64))
        return self.of_mean(log_ratios(chances).mean(0), len(chances), prior)

    def of_mean(self, ratios: np.ndarray, n: int, prior: float = 0.5) -> tuple[np.ndarray, float]:
        """The same of n pictures' mean log ratios (N,)."""
        logits = n**self.growth * (ratios - self.bias) + self.bias + np.log(prior / (1 - prior) / len(ratios))
        odds = np.exp(np.minimum(logits, LARGEST))
        return odds / (1 + odds.sum()), float(odds.sum() / (1 + odds.sum()))


def log_ratios(chances: np.ndarray) -> np.ndarray:
    """(..., N) chances with the prior of one half -> (..., N) log of each image's likelihood ratio to "none of them", which has as much of
    the prior as all images together."""
    none = np.maximum(1 - chances.sum(-1, keepdims=True), SMALLEST)
    return np.log(np.maximum(chances, SMALLEST) / none) + np.log(chances.shape[-1])
