"""Methods that look twice: R_Q and the region that they box in each image are compared once more, enlarged (`ard.detector.closeup`).

ARD, and the strongest rival, `class filter + whitened regions`, which is given the same second look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ard.baselines import whitened
from ard.baselines.kit import Kit
from ard.baselines.methods import Method
from ard.baselines.registry import Entry
from ard.detector.closeup import SETTINGS, WEIGHTS, CloseUp, SecondLook, raised
from ard.detector.method import DetectorMethod
from ard.detector.tied import load_detector
from ard.records import Attribution, Dataset, Gallery, Query

Answers = Mapping[str, Sequence[Attribution]]  # by sample_id
Add = Callable[[Sequence[Attribution], np.ndarray], list[Attribution]]
COSINE, LOGIT = 10.0, 0.5  # what a rival's cosine and a close-up's logit count; on validation 10, 20 and 40 are alike
CARD = """# Close-up

What ARD sees at a second look (`ard.detector.closeup`): a linear map of the region vectors of enlarged regions and the logistic that
makes a logit of their cosine, fitted in closed form to AD+ train of `data/mini-coco` and of more individuals like them by
`notebooks/pretrain/17_individuals.ipynb`; and how it counts beside ARD, by `notebooks/16_closeup.ipynb`. Load it with
`ard.detector.closeup.CloseUp.load`. For pictures of the mini world, 64 pixels wide, and for `data/models/ard`, whose answers it is added
to.

| on validation | |
| --- | --- |
| Recall@1 | {recall_1_single:.4f} |
| in a crowd of ten of a class | {recall_1_crowd:.4f} |
| among couples | {recall_1_couples:.4f} |

Licence: Apache-2.0.
"""


class CloseUpMethod:
    """A method with boxes that looks twice, one gallery at a time: vectors are kept by image.

    add: from answers and the (N,) logits of their close-ups to answers, `raised` where scores are chances.
    """

    def __init__(self, method: Method, closeup: CloseUp, add: Add = raised):
        self.method, self.add, self.look = method, add, SecondLook(closeup)
        self._gallery: tuple[Gallery | None, dict[str, np.ndarray]] = (None, {})

    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        """The method's answers, in its order; where it has a box, its score with what the close-up says of that box."""
        if gallery is not self._gallery[0]:
            pictures = {image.image_id: gallery.pixels(image) for image in gallery}
            self._gallery, self.look = (gallery, pictures), SecondLook(self.look.closeup)
        answers = self.method.rank(query, gallery)
        boxed = [a for a in answers if a.box is not None]
        if not boxed:
            return list(answers)
        logits = self.look(query.image, query.sample.query_box, boxed, [self._gallery[1][a.image_id] for a in boxed])
        told = {a.image_id: a for a in self.add(boxed, logits)}
        return [told.get(a.image_id, a) for a in answers]


class RivalCloseUp(CloseUpMethod):
    """The same of a rival scored by cosines."""

    def __init__(self, method: Method, closeup: CloseUp):
        super().__init__(method, replace(closeup, weight=LOGIT), beside_cosines)

    def fit(self, ad_train: Dataset, generator) -> None:
        self.method.fit(ad_train, generator)


def beside_cosines(answers: Sequence[Attribution], logits: np.ndarray) -> list[Attribution]:
    """Answers scored by cosines, which count `COSINE` times beside the logits (N,) of close-ups."""
    return [replace(a, score=COSINE * a.score + float(logit)) for a, logit in zip(answers, logits, strict=True)]


def looks(closeup: CloseUp, answers: Answers, dataset: Dataset, split: str) -> dict[str, np.ndarray]:
    """By sample_id, the (N,) logits that close-ups add to a detector's answers, in their order (`SecondLook`)."""
    samples = {s.sample_id: s for s in dataset.samples[split]}
    pictures, look = {im.image_id: dataset.pixels(im.file) for im in dataset.gallery[split]}, SecondLook(closeup)
    return {name: look(dataset.query(samples[name]).image, samples[name].query_box, found, [pictures[a.image_id] for a in found])
            for name, found in answers.items()}


def all_raised(answers: Answers, logits: Mapping[str, np.ndarray], weight: float = 1.0) -> dict[str, list[Attribution]]:
    """`raised` for each query, with logits that count `weight` times."""
    return {name: raised(found, weight * logits[name]) for name, found in answers.items()}


def ard(kit: Kit) -> CloseUpMethod:
    """ARD, looking twice."""
    detector = DetectorMethod(load_detector(kit.data / "models/ard"), kit.features)
    return CloseUpMethod(detector, CloseUp.load(kit.data / "models/closeup"))


def whitened_regions(kit: Kit) -> RivalCloseUp:
    """`class filter + whitened regions` with its settings of arena.methods.closeups, looking twice: what close-ups are worth without a
    detector around them."""
    told = kit.told({name: kit.settings[name] for name in ("class_filter",) if name in kit.settings} | kit.settings.get("closeups", {}))
    return RivalCloseUp(whitened.build(told), CloseUp.load(kit.data / "models/closeup"))


SOURCE = "Fu, Zheng and Mei 2017, in closed form; ours"
ENTRIES = [
    Entry("class filter + whitened regions, close-up", whitened_regions, ("text", "box", "pairs", "rendered", "more"), SOURCE,
          (*whitened.ENTRIES[0].reads, *(f"models/closeup/{file}" for file in (WEIGHTS, SETTINGS)))),  # not ARD's weight
    Entry("ARD, close-up", ard, ("text", "box", "pairs", "rendered", "more"), SOURCE, ("models/ard", "models/closeup")),
]
