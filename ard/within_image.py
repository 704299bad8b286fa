"""Within-image accuracy: X holds several individuals of the query's class; does a method's box in X lie on the right one?

After `ard.evaluation` (DESIGN 8). Neither the class nor the image answers it, so a class filter is right half of the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ard.evaluation import Answers
from ard.geometry import box_iou
from ard.intervals import bootstrap_mean, paired_difference
from ard.metrics import IOU_GATE
from ard.records import Attribution, Dataset, GalleryImage, GroundTruth, Sample, positive
from ard.report import columns

FOUND = ("right", "other", "neither", "no box")  # where a box in X lies


def lies_on(box: Sequence[float], objects: Sequence[GroundTruth]) -> int | None:
    """Index of the object that a box overlaps most; None where that is below IoU 0.5. Boxes are xyxy."""
    overlap = box_iou([box], [o.box for o in objects])[0]
    return int(overlap.argmax()) if overlap.max() >= IOU_GATE else None


def found(sample: Sample, answers: Sequence[Attribution], image: GalleryImage) -> str:
    """Where the box in X (`image`) lies: on the sample's individual ("right"), on another of its class, on neither."""
    box = next(a.box for a in answers if a.image_id == image.image_id)
    if box is None:
        return "no box"
    of_class = [o for o in image.objects if o.class_name == sample.class_name]
    n = lies_on(box, of_class)
    if n is None:
        return "neither"
    return "right" if of_class[n].individual_id == sample.individual_id else "other"


def within_image(answers: Answers, dataset: Dataset, ours: str = "ARD", split: str = "test") -> list[dict]:
    """A row for each method: `within_image`, the share of queries whose box lies on the right individual, with its interval.

    Beside it the shares that lie elsewhere; `of_two`, the right ones among those that lie on either (a class filter: .5),
    also apart for images whose individuals share a drawing; `ours_minus`, `ours`' accuracy less the method's, paired, with
    its interval. Intervals resample images, each of which two individuals share. Every method is asked the same queries.
    """
    samples, gallery = dataset.samples[split], dataset.gallery[split]
    homes = [positive(s, gallery) for s in samples]
    images = [home.image_id for home in homes]
    alike = np.array([len({o.drawing for o in home.objects if o.class_name == s.class_name}) == 1
                      for s, home in zip(samples, homes)])
    lies = {name: np.array([found(s, given[s.sample_id], home) for s, home in zip(samples, homes)])
            for name, given in answers.items()}
    rows = []
    for name, where in lies.items():
        either = np.isin(where, ("right", "other"))
        rows.append({
            "method": name, **columns("within_image", bootstrap_mean(where == "right", images)),
            **{kind.replace(" ", "_"): _share(where, kind) for kind in FOUND[1:]},
            "of_two": _share(where[either], "right"), "same_drawing": _share(where[either & alike], "right"),
            "other_drawing": _share(where[either & ~alike], "right"),
            **columns("ours_minus", paired_difference(lies[ours] == "right", where == "right", images)),
            "n_queries": len(where), "n_images": len(set(images))})
    return rows


def _share(where: np.ndarray, kind: str) -> float | None:
    return round(float((where == kind).mean()), 6) if len(where) else None
