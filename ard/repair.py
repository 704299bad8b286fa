"""A fault in a training picture, learned and drawn; a method says where it comes from; that is mended, and learned again.

The paper's Figures 4 (a thing behind bars) and 7 (one in an unnatural position), counted over many individuals. Two individuals
of a class stand in each picture here, so that to mend the wrong one helps nobody. After `ard.studies`; notebook 41.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ard import studies
from ard.alterations import fenced, mended, upside_down
from ard.counterfactuals import covered
from ard.evaluation import Answers, Ask
from ard.exemplars import Detect, Exemplar, write_mask
from ard.fidelity import Judges
from ard.generate import Drawn
from ard.geometry import box_iou
from ard.intervals import bootstrap_mean, paired_difference
from ard.metrics import IOU_GATE, facts, outcome
from ard.records import Attribution, Box, Dataset, Sample, read_image
from ard.studies import Alter, bounds
from ard.together import together as all_together

Pick = tuple[str, Box | None]  # file of a picture, and the box in it that is mended; None: all of it


def behind_bars(exemplar: Exemplar, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R_X behind a fence, which is learned as a part of it."""
    return fenced(image, exemplar.box), mask


def turned(exemplar: Exemplar, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R_X upside down."""
    return upside_down(image, exemplar.box), upside_down(mask, exemplar.box)


FAULTS: dict[str, Alter] = {"behind bars": behind_bars, "upside down": turned}


def regions(samples: Sequence[Sample], root: str | Path, segment) -> list[Exemplar]:
    """The exemplars of a dataset's samples again: R_X is theirs, M by `segment` (image, box) -> (H, W) bool is written to
    `root`/masks; where it is empty, M is all of R_X."""
    found, data = [], Dataset(Path(root), {}, {})
    for sample in {s.concept_id: s for s in samples}.values():
        image, file = data.pixels(sample.exemplar_file), f"masks/{sample.concept_id}.png"
        mask = segment(image, sample.exemplar_box)
        mask = mask if mask.any() else covered(sample.exemplar_box, *image.shape[:2])
        write_mask(Path(root) / file, mask)
        known = {name: getattr(sample, name) for name in ("split", "individual_id", "drawing", "designer")}
        found.append(Exemplar(sample.concept_id, sample.exemplar_file, sample.class_name, sample.exemplar_box, 1.0, file,
                              int(mask.sum()), known))
    return found


def one_of_an_image(exemplars: Sequence[Exemplar], per_class: int) -> list[Exemplar]:
    """Up to `per_class` exemplars of each class, no two in one picture."""
    first, taken = {e.file: e for e in reversed(exemplars)}, {}
    for exemplar in exemplars:
        if first[exemplar.file] is exemplar:
            taken.setdefault(exemplar.class_name, []).append(exemplar)
    return [e for mine in taken.values() for e in mine[:per_class]]


def with_faults(dataset: Dataset, samples: Sequence[Sample], folder: str | Path) -> Dataset:
    """A test set that asks `samples`, of one exemplar a picture, and whose gallery holds folder/images/<concept_id>.png, their
    faulty pictures, in place of the sound ones."""
    files = {s.exemplar_file: str((Path(folder) / "images" / f"{s.concept_id}.png").resolve()) for s in samples}
    gallery = tuple(replace(im, file=files.get(im.file, im.file)) for im in dataset.gallery["test"])
    asked = tuple(replace(s, exemplar_file=files[s.exemplar_file]) for s in samples)
    return replace(dataset, samples={**dataset.samples, "test": asked}, gallery={**dataset.gallery, "test": gallery})


def found_by_name(exemplars: Sequence[Exemplar], folder: str | Path, detect: Detect) -> float:
    """The share of exemplars on whose R_X (IoU 0.5) a detector of classes has a box in folder/images/<exemplar_id>.png: elsewhere
    no class filter can point at it."""
    boxes = [(e, detect(read_image(Path(folder) / "images" / f"{e.exemplar_id}.png"), e.class_name)[0]) for e in exemplars]
    return float(np.mean([len(found) > 0 and box_iou(found, [e.box]).max() >= IOU_GATE for e, found in boxes]))


def called(name: str, ask: Ask) -> Ask:
    """The asking of one method, whose answers stand in the row `name`: a second row for it, with other settings."""
    return lambda query, gallery: {name: answers for answers in ask(query, gallery).values()}


def picks(samples: Sequence[Sample], answers: Mapping[str, Sequence[Attribution]], dataset: Dataset,
          pictures: int = 0) -> dict[str, Pick]:
    """What a method's owner would mend for each concept, who asks about the first so many `pictures` of it (0: all): the image with
    the highest score on average, and there the box that answered highest."""
    files, said = {im.image_id: im.file for im in dataset.gallery["test"]}, defaultdict(list)
    for sample in samples:
        said[sample.concept_id].append(answers[sample.sample_id])
    found = {}
    for concept, asked in said.items():
        asked = asked[: pictures or None]
        best = max(all_together(asked, odds=False), key=lambda a: (a.score, a.image_id)).image_id
        found[concept] = files[best], max((a for given in asked for a in given if a.image_id == best), key=lambda a: a.score).box
    return found


def mending(fault: Alter, chosen: Mapping[str, Pick], samples: Sequence[Sample]) -> Alter:
    """The picture with its fault, sound again where the owner was pointed at. chosen: by concept; samples: as asked, with their
    faulty pictures. Where another picture, or nothing, was pointed at, the fault stays."""
    faulty = {s.concept_id: s.exemplar_file for s in samples}

    def alter(exemplar: Exemplar, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bad, file, box = fault(exemplar, image, mask), *chosen.get(exemplar.exemplar_id, ("", None))
        if file != faulty.get(exemplar.exemplar_id):
            return bad
        return (image, mask) if box is None else (mended(bad[0], image, box), mended(bad[1], mask, box))

    return alter


def pointed_at(method: str, answers: Answers, dataset: Dataset, ours: str = "ARD") -> dict:
    """Of a method's answers: `found`, the share of queries whose strongest is X; `pointed_at`, that with its box on R_X (IoU 0.5),
    with its interval, and `ours`' less that, paired. Intervals resample exemplars. A method without boxes points at nothing."""
    samples, gallery = dataset.samples["test"], dataset.gallery["test"]
    known = [facts(s, gallery) for s in samples]
    outcomes = {name: [outcome(f, answers[name][f.sample.sample_id], gallery) for f in known] for name in {method, ours}}
    right = {name: np.array([o.rank == 1 and o.box_ok for o in found]) for name, found in outcomes.items()}
    owners = [s.concept_id for s in samples]
    return {"method": method, "found": round(float(np.mean([o.rank == 1 for o in outcomes[method]])), 6),
            **bounds("pointed_at", bootstrap_mean(right[method], owners)),
            **bounds("ours_minus", paired_difference(right[ours], right[method], owners)), "n_queries": len(samples)}


def judged(judges: Judges, drawn: Sequence[Drawn], exemplars: Sequence[Exemplar], root: str | Path, pool: int,
           seed: int) -> pd.DataFrame:
    """`studies.judged`, and `likeness`: the judge's cosine of R_Q and the sound R_X, whose picture lies in `root`; NaN without R_Q."""
    sound = {e.exemplar_id: (read_image(Path(root) / e.file), e.box) for e in exemplars}
    alike = [np.nan if d.reason else judges.likeness(read_image(d.file), d.box, *sound[d.exemplar_id]) for d in drawn]
    return studies.judged(judges, drawn, exemplars, pool, seed).assign(likeness=alike)


def together(answers: Mapping[str, Sequence[Attribution]], dataset: Dataset) -> float:
    """The share of exemplars whose owner is pointed at R_X when all of its queries are asked together (`picks`, `well_chosen`)."""
    samples = dataset.samples["test"]
    chosen = picks(samples, answers, dataset)
    return round(len(well_chosen(chosen, samples)) / len(chosen), 6)


def well_chosen(chosen: Mapping[str, Pick], samples: Sequence[Sample]) -> set[str]:
    """Concepts of whose faulty picture the owner was pointed at R_X (IoU 0.5). samples: as asked, with their faulty pictures."""
    homes = {s.concept_id: (s.exemplar_file, s.exemplar_box) for s in samples}
    return {name for name, (file, box) in chosen.items()
            if file == homes[name][0] and box is not None and box_iou([box], [homes[name][1]])[0, 0] >= IOU_GATE}


def made_whole(pictures: pd.DataFrame, fault: str, right: set[str], name: str) -> pd.DataFrame:
    """Pictures of a condition `name` in which the owner mends the whole thing that was pointed at: of concepts in `right` those of
    the condition "sound", since then they are learned as they are, of others those with the fault, which stays."""
    sound, faulty = (pictures[pictures["condition"] == condition] for condition in ("sound", fault))
    return pd.concat([sound[sound["concept"].isin(right)], faulty[~faulty["concept"].isin(right)]]).assign(condition=name)
