"""A third test set, `couples`: each image holds two individuals of one class, so to find the image is not enough.

Notebook 32 makes it; notebook 33 asks which of the two a query came from (`ard.within_image`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ard.exemplars import Detect, Discard, Exemplar, ExemplarConfig, Pair, build_exemplar, write_mask
from ard.files import atomic_write_bytes
from ard.records import GalleryImage, GroundTruth
from ard.within_image import lies_on
from ard.world.collection import SHORT_SIDE, CollectionConfig, choose_individuals, png_bytes
from ard.world.individuals import Individual
from ard.world.world import Placement, Scene, World

Couple = tuple[Individual, Individual]
ABOUT = """A third test set: each image holds two individuals of one class, new ones of the drawings that test
exemplars use, made with the settings of `mini-coco`. Which of the two did a query come from?"""


# ---- two of a class in one picture -----------------------------------------------------------------------------------
def couples(people: Sequence[Individual], n: int) -> list[Couple]:
    """`n` couples, nobody in two of them; the first, third ... share a drawing and the others do not, where those left allow it.

    Raises ValueError when there are not enough people.
    """
    if len(people) < 2 * n:
        raise ValueError(f"{n} couples need {2 * n} individuals, found {len(people)}; lower couples_per_class")
    left, found = list(people), []
    for number in range(n):
        one = left.pop(0)
        alike = number % 2 == 0
        other = next((p for p in left if (p.drawing == one.drawing) == alike), left[0])
        left.remove(other)
        found.append((one, other))
    return found


def couple_scene(world: World, couple: Couple, seed: Sequence[int]) -> Scene:
    """A photo of two individuals side by side, each nearly unoccluded, at least SHORT_SIDE pixels on its short side."""
    rng = np.random.default_rng(seed)
    for _ in range(1000):
        places = [_in_half(rng, int(half)) for half in rng.permutation(2)]
        scene = world.scene(rng, couple, medium="photo", fillers=int(rng.choice([0, 1], p=[0.7, 0.3])), placements=places)
        short = [min(o.box[2] - o.box[0], o.box[3] - o.box[1]) for o in scene.objects]
        if len(short) == 2 and min(short) >= SHORT_SIDE and min(o.visible for o in scene.objects) > 0.8:
            return scene
    raise ValueError(f"{' and '.join(i.individual_id for i in couple)} have no room in one picture, {SHORT_SIDE} pixels each")


def _in_half(rng: np.random.Generator, half: int) -> Placement:
    """A place in the left (0) or right (1) half of a picture."""
    return Placement(float(rng.uniform(0.13, 0.28)), float(rng.uniform(0.2, 0.32) + 0.48 * half),
                     float(rng.uniform(0.35, 0.7)), bool(rng.random() < 0.5), float(rng.normal(0, 5)))


def draw_couples(world: World, config: CollectionConfig, known: Collection[str], root: str | Path,
                 files: str = "collection/images") -> tuple[GalleryImage, ...]:
    """Pictures of `config.test` couples of each class, written to `root`/`files`, with both individuals as true objects.

    known: ids of individuals that are not taken. A couple that has no room in one picture is left out.
    """
    drawn = []
    for class_name in world.classes:
        people = choose_individuals(world, class_name, "test", 2 * config.test + 4, config, [])
        for n, couple in enumerate(couples([p for p in people if p.individual_id not in known], config.test)):
            seed = [config.seed, 3, world.classes.index(class_name), n]
            try:
                scene = couple_scene(world, couple, seed)
            except ValueError:
                continue
            name = f"{np.random.default_rng([7, *seed]).integers(16**10):010x}"
            drawn.append(gallery_image(scene, Path(root) / files / f"{name}.png", f"{files}/{name}.png"))
    return tuple(drawn)


def gallery_image(scene: Scene, path: Path, file: str = "") -> GalleryImage:
    """A scene as a gallery image with its individuals as true objects; the picture is written to `path`. file: what it is called,
    if not by its absolute path."""
    atomic_write_bytes(path, png_bytes(scene.image))
    objects = tuple(GroundTruth(o.class_name, o.individual.individual_id, o.individual.drawing, o.individual.designer, o.box)
                    for o in scene.objects)
    height, width = scene.image.shape[:2]
    return GalleryImage(file or str(path.resolve()), path.stem, objects, width, height)


def couple_exemplars(images: Sequence[GalleryImage], root: str | Path, detect: Detect, segment, config: ExemplarConfig,
                     per_class: int) -> tuple[list[Exemplar], list[Discard]]:
    """Region and mask of every individual, at most `per_class` of a class; masks go to `root`/masks.

    As in `build_exemplars`, R_X is the detector's best box, but of those that lie on this individual: two of a class stand
    in the image, and its annotation says which is meant.
    """
    kept, dropped, full = [], [], Counter()
    for image in images:
        for n, one in enumerate(image.objects):
            facts = {"split": "test", "individual_id": one.individual_id, "drawing": one.drawing, "designer": one.designer}
            pair = Pair(f"{one.class_name.replace(' ', '-')}-{image.image_id}-{n}", image.file, one.class_name, facts)
            if full[one.class_name] >= per_class:
                dropped.append(Discard(pair.exemplar_id, pair.file, pair.class_name, "not needed"))
                continue
            record, mask = build_exemplar(pair, Path(root), "masks", _on(n, image.objects, detect), segment, config)
            if mask is None:
                dropped.append(record)
                continue
            write_mask(Path(root) / record.mask_file, mask)
            kept.append(record)
            full[one.class_name] += 1
    return kept, dropped


def _on(n: int, objects: Sequence[GroundTruth], detect: Detect) -> Detect:
    """`detect`, of whose boxes only those are kept that lie on object `n`."""
    def find(image: np.ndarray, class_name: str) -> tuple[np.ndarray, np.ndarray]:
        boxes, scores = detect(image, class_name)
        mine = np.array([lies_on(box, objects) == n for box in boxes], bool)
        return boxes[mine], scores[mine]

    return find
