"""Large pictures of several things: each individual that a split asks about stands, small, among others (LVIS's kind of picture).

Galleries of the mini world else hold one individual, or a couple, in a picture that a detector sees as it is. Here a picture has
twice that side, and two to four individuals. Whoever is asked about looks the same way as in its X, which a generator learns, too;
`retaken` shows what hangs on that. Between `ard.crowd`, which has strangers in pictures of their own, and `ard.windows`,
by which such pictures are looked at. Notebook 34 asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image

from ard import report
from ard.couples import gallery_image
from ard.crowd import newcomers
from ard.evaluation import Answers
from ard.files import atomic_write_bytes
from ard.geometry import Transform, crop
from ard.intervals import bootstrap_mean
from ard.records import Dataset, GalleryImage
from ard.release import individuals
from ard.rendered import individual_of
from ard.world import World
from ard.world.collection import SHORT_SIDE, exemplar_scene, png_bytes
from ard.world.individuals import Individual
from ard.world.world import SIZE, Placed, Placement, Scene, mask_box

ATTEMPTS = 400  # scenes composed until one shows everybody
GRID = 24  # side to which two pictures of an individual are brought to be laid over each other


@dataclass(frozen=True)
class ClutterConfig:
    """What the pictures are like. Areas are shares of a picture."""

    scale: int = 2  # side of a picture over that of the mini world
    strangers: tuple[int, ...] = (1, 2, 3)  # how many there may be beside an individual; one of these, each alike
    twin: float = 0.25  # share of the pictures in which a stranger is of the individual's class
    area: float = 0.055  # of an object, the median; that of LVIS is about .05
    spread: float = 0.5  # standard deviation of its logarithm
    pool: int = 8  # strangers of each class; nobody is asked about them, so they may stand in several pictures
    min_grey_distance: float = 0.08  # as in `world`: a stranger can be told from the individuals of its class
    seed: int = 0


def cluttered(dataset: Dataset, world: World, split: str, root: str | Path, config: ClutterConfig = ClutterConfig()) -> Dataset:
    """The dataset with large pictures in place of a split's gallery: each X drawn anew, its individual among strangers.

    The split's queries are asked of them as they are: what the generator learned of a region does not hang on what surrounds it.
    An individual is at least SHORT_SIDE pixels wide and high, as exemplars are, most of it is seen, and it looks the way it did.
    Pictures go to `root`. ValueError: an individual finds no room among strangers, or a class has not enough of these.
    """
    people = dict.fromkeys(individual_of(s) for s in dataset.samples[split])
    known = individuals(dataset)
    strangers = {name: _strangers(world, name, split, list(people), known, config) for name in world.classes}
    pools = {name: cycle(some) for name, some in strangers.items()}
    images = {}
    for number, sample in enumerate({s.exemplar_file: s for s in dataset.samples[split]}.values()):
        seed = [config.seed, 7, number]
        person = individual_of(sample)
        scene = clutter_scene(world, person, pools, seed, config, mirrored(world, person, dataset.pixels(sample.exemplar_file), sample.exemplar_box))
        # names tell neither class nor order
        name = f"{np.random.default_rng([7, *seed]).integers(16**10):010x}"
        images[sample.exemplar_file] = gallery_image(scene, Path(root) / f"{name}.png")
    return _rehung(dataset, split, images, sorted(images.values(), key=lambda image: image.file))


def clutter_scene(world: World, person: Individual, pools: Mapping[str, cycle], seed: Sequence[int],
                  config: ClutterConfig = ClutterConfig(), mirror: bool = False) -> Scene:
    """A photo of a person, the first of its objects, mirrored or not, among the next strangers of `pools` (class name -> strangers), in
    any order from back to front. ValueError where it finds no room."""
    rng = np.random.default_rng(seed)
    others = [name for name in world.classes if name != person.class_name]
    classes = list(rng.choice(others, rng.choice(config.strangers), replace=False))
    if rng.random() < config.twin:
        classes[0] = person.class_name
    everybody = [person, *(next(pools[name]) for name in classes)]
    for _ in range(ATTEMPTS):
        order = rng.permutation(len(everybody))
        places = [_place(rng, config) for _ in everybody]
        places[0] = replace(places[0], mirror=mirror)
        scene = world.scene(rng, [everybody[i] for i in order], medium="photo", fillers=int(rng.choice([0, 1, 2], p=[0.5, 0.35, 0.15])),
                            placements=[places[i] for i in order], size=config.scale * SIZE)
        own = next((o for o in scene.objects if o.individual == person), None)
        if own and len(scene.objects) == len(everybody) and _seen(own) and all(o.visible >= 0.35 for o in scene.objects):
            return replace(scene, objects=(own, *(o for o in scene.objects if o is not own)))
    raise ValueError(f"{person.individual_id}: no room among {len(everybody) - 1} others with {SHORT_SIDE} pixels on its short side")


def mirrored(world: World, person: Individual, picture: np.ndarray, box: Sequence[float]) -> bool:
    """Does an individual in a box (xyxy) of a picture (H, W, 3) uint8 look the other way than as it was drawn?"""
    sprite = world.sprite(person).astype(np.float32)
    x0, y0, x1, y1 = (int(v) for v in mask_box(sprite[..., 3] > 0.5))
    drawn = Image.fromarray((sprite[y0:y1, x0:x1] * 255).round().astype(np.uint8)).resize((GRID, GRID), Image.Resampling.BOX)
    drawn = np.asarray(drawn, np.float32) / 255
    shown = np.asarray(Image.fromarray(crop(picture, box)).resize((GRID, GRID), Image.Resampling.BOX), np.float32) / 255
    far = [float((one[..., 3:] * (one[..., :3] - shown) ** 2).sum()) for one in (drawn, drawn[:, ::-1])]
    return far[1] < far[0]


def retaken(dataset: Dataset, world: World, split: str, root: str | Path, way: str, seed: int = 0) -> Dataset:
    """The dataset with another photo of each X's individual in place of it, pictures in `root`; nobody else's are touched.

    way: "mirrored", the same photo turned around; "again", another photo, in which it may look the same way or not. ValueError for
    another one.
    """
    if way not in ("mirrored", "again"):
        raise ValueError(f"retaken: expected mirrored or again, found {way!r}")
    homes, images = {image.file: image for image in dataset.gallery[split]}, {}
    for number, sample in enumerate({s.exemplar_file: s for s in dataset.samples[split]}.values()):
        home, path = homes[sample.exemplar_file], Path(root) / f"{way}-{number:03}.png"
        if way == "again":
            images[home.file] = gallery_image(exemplar_scene(world, individual_of(sample), [seed, 9, number]), path)
        else:
            atomic_write_bytes(path, png_bytes(dataset.pixels(home.file)[:, ::-1]))
            turned = Transform(home.width, home.height).hflip()
            objects = tuple(replace(o, box=tuple(turned.boxes([o.box])[0][0].tolist())) for o in home.objects)
            images[home.file] = GalleryImage(str(path.resolve()), path.stem, objects, home.width, home.height)
    return _rehung(dataset, split, images, [images.get(image.file, image) for image in dataset.gallery[split]])


def _rehung(dataset: Dataset, split: str, images: Mapping[str, GalleryImage], gallery: Sequence[GalleryImage]) -> Dataset:
    """The dataset with another gallery, in which `images`, by X's file, stand for each X; the first of an image's objects is R_X."""
    samples = tuple(replace(s, exemplar_file=images[s.exemplar_file].file, exemplar_box=images[s.exemplar_file].objects[0].box)
                    for s in dataset.samples[split])
    return replace(dataset, samples={**dataset.samples, split: samples}, gallery={**dataset.gallery, split: tuple(gallery)})


def area_share(image: GalleryImage) -> float:
    """The share of a picture that the box of its first object takes."""
    x0, y0, x1, y1 = image.objects[0].box
    return (x1 - x0) * (y1 - y0) / (image.width * image.height)


# ---- what was found --------------------------------------------------------------------------------------------------
def with_twin(dataset: Dataset, split: str) -> Dataset:
    """The dataset with those of a split's queries alone whose X holds another individual of their class."""
    homes = {image.file: image for image in dataset.gallery[split]}
    there = tuple(s for s in dataset.samples[split] if sum(o.class_name == s.class_name for o in homes[s.exemplar_file].objects) > 1)
    return replace(dataset, samples={**dataset.samples, split: there})


def summary(answers: Answers, dataset: Dataset, split: str) -> list[dict]:
    """A row for each method: gated Recall@1 with its interval, which resamples exemplars, and box accuracy."""
    rows = []
    for name, found in report.outcomes_of(answers, dataset, split).items():
        recall = bootstrap_mean(report.recall_1(found), report.of(found))
        rows.append({"method": name, **report.columns("recall_1", recall), "box_acc": round(float(np.mean([o.box_ok for o in found])), 6),
                     "n_queries": len(found)})
    return rows


def by_size(answers: Answers, dataset: Dataset, split: str = "test") -> list[dict]:
    """`summary` of the smaller and of the larger half of the regions asked about, by the share of their pictures that they take."""
    homes = {image.file: image for image in dataset.gallery[split]}
    shares = {s.sample_id: area_share(homes[s.exemplar_file]) for s in dataset.samples[split]}
    middle, rows = float(np.median([*shares.values()])), []
    for half, within in (("smaller", lambda share: share < middle), ("larger", lambda share: share >= middle)):
        kept = tuple(s for s in dataset.samples[split] if within(shares[s.sample_id]))
        part = replace(dataset, samples={**dataset.samples, split: kept})
        told = {name: {s.sample_id: found[s.sample_id] for s in kept} for name, found in answers.items()}
        area = float(np.median([shares[s.sample_id] for s in kept])) if kept else None
        rows += [{"half": half, "area": area, **row} for row in (summary(told, part, split) if kept else [])]
    return rows


def _strangers(world: World, name: str, split: str, people: list[Individual], known: set[str], config: ClutterConfig) -> list[Individual]:
    there = [person for person in people if person.class_name == name]
    rng = np.random.default_rng([config.seed, 7, *name.encode()])
    return newcomers(world, name, split, there, known, config.pool, config.min_grey_distance, rng)


def _place(rng: np.random.Generator, config: ClutterConfig) -> Placement:
    area = float(np.clip(np.exp(rng.normal(np.log(config.area), config.spread)), 0.015, 0.25))
    return Placement(area, float(rng.uniform(0.12, 0.88)), float(rng.uniform(0.3, 0.85)), bool(rng.random() < 0.5), float(rng.normal(0, 5)))


def _seen(own: Placed) -> bool:
    x0, y0, x1, y1 = own.box
    return min(x1 - x0, y1 - y0) >= SHORT_SIDE and own.visible > 0.8
