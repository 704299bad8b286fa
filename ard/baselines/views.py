"""What a generator is asked about gallery pictures: views of them, as latents, and the prompt under which they are measured.

For methods that read a generator's losses (`ard.baselines.abu`, `ard.baselines.leave_one_out`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ard.baselines.cosine import Proposals
from ard.customize import encode, framed
from ard.geometry import as_boxes
from ard.records import Attribution, Box, Gallery, GalleryImage, Sample
from ard.templates import fill

NEW_WORD = re.compile(r"<[^>]+>")  # the token of a concept in a prompt, which the base generator does not know
View = tuple[Box | None, np.ndarray]  # what it shows of the picture (None: all of it), (H, W, 3) uint8
Views = Callable[[GalleryImage, Sample, Gallery], list[View]]


def whole(image: GalleryImage, sample: Sample, gallery: Gallery) -> list[View]:
    """The picture as it is, and mirrored."""
    pixels = gallery.pixels(image)
    return [(None, pixels), (None, pixels[:, ::-1])]


def framed_boxes(proposals: Proposals, share: float) -> Views:
    """Each box that the class filter proposes, brought to the middle and to `share` of the picture, as `ard.customize.framed`
    shows an exemplar to the G_i that learns it. None where there is no box."""
    def views(image: GalleryImage, sample: Sample, gallery: Gallery) -> list[View]:
        pixels = gallery.pixels(image)
        height, width = pixels.shape[:2]
        found = []
        for box in as_boxes(proposals(image.image_id, sample.class_name)):
            left, top = np.floor(box[:2]).clip(0, (width - 1, height - 1)).astype(int)
            right, bottom = np.ceil(box[2:]).astype(int)
            mask = np.zeros((1, height, width), bool)
            mask[0, top : max(bottom, top + 1), left : max(right, left + 1)] = True
            found.append((tuple(box.tolist()), framed(pixels, mask, share)[0]))
        return found
    return views


class Encoded:
    """The views of a gallery as latents. Autoencoders are the same in G and G_i, so each view is encoded once."""

    def __init__(self, views: Views):
        self.views = views
        self._kept: dict[tuple[str, str], tuple[list[Box | None], Tensor]] = {}  # by image and class

    def __call__(self, pipe, sample: Sample, gallery: Gallery) -> tuple[list[tuple[int, Box | None]], Tensor]:
        """(place of its picture in the gallery, box) of each view, and latents (V, C, h, w)."""
        owners, latents = [], []
        for place, image in enumerate(gallery):
            key = image.image_id, "" if self.views is whole else sample.class_name
            if key not in self._kept:
                found = self.views(image, sample, gallery)
                side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
                rows = [encode(pipe, view[None]) for _, view in found] or [torch.zeros(0, channels, side, side)]
                self._kept[key] = [box for box, _ in found], torch.cat(rows)
            boxes, rows = self._kept[key]
            owners += [(place, box) for box in boxes]
            latents.append(rows)
        return owners, torch.cat(latents)


def strongest(owners: Sequence[tuple[int, Box | None]], rises: Iterable[float], gallery: Gallery) -> list[Attribution]:
    """The view of each picture with the largest of `rises` (V,) is its answer; a picture without a view gets box None, score
    -inf."""
    best: list[tuple[Box | None, float]] = [(None, float("-inf"))] * len(gallery)
    for (place, box), score in zip(owners, rises, strict=True):
        best[place] = max(best[place], (box, float(score)), key=lambda answer: answer[1])
    return [Attribution(image.image_id, box, score) for image, (box, score) in zip(gallery, best, strict=True)]


def rises(before: Tensor, after: Tensor) -> Tensor:
    """Mean rise over times of the losses (V, T) of V views, (V,). ValueError: a loss is not finite.

    >>> rises(torch.zeros(2, 2), torch.tensor([[1.0, 3.0], [0.0, -1.0]])).tolist()
    [2.0, -0.5]
    """
    rise = (after.double() - before.double()).mean(1)
    if not rise.isfinite().all():
        raise ValueError("a denoising loss is not finite; where a generator unlearns, lower learning_rate or raise damping")
    return rise


def plain_prompt(prompt: str, class_name: str) -> str:
    """The prompt for a model that does not know its new word: the class alone.

    >>> plain_prompt("A photo of a <v1> elephant standing in a forest.", "elephant")
    'A photo of an elephant standing in a forest.'
    """
    template = re.sub(rf"{NEW_WORD.pattern} {re.escape(class_name)}\b", "{}", prompt, count=1)
    return fill(template, class_name) if "{}" in template else prompt


def loss_prompt(prompt: str, class_name: str, kind: str) -> str:
    """The prompt under which all pictures are measured, made of the query's alone, so it tells nothing of any of them.

    "photo" is the sentence that concepts are learned with: the gallery is photographs, whatever the query's medium is.

    >>> [loss_prompt("An oil painting of a <v1> cat.", "cat", kind) for kind in ("photo", "query", "empty")]
    ['A photo of a <v1> cat.', 'An oil painting of a <v1> cat.', '']
    """
    if kind == "photo":
        word = NEW_WORD.search(prompt)
        return fill("A photo of {}.", f"{word[0]} {class_name}" if word else class_name)
    return prompt if kind == "query" else ""
