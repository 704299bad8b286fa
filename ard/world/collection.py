"""The exemplar images that concepts are learned from: one photo scene per individual, in COCO JSON (paper section 4.1).

It takes the place of COCO val2017: images with annotated objects that the base generator never saw.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ard.files import atomic_write_bytes, atomic_write_json
from ard.world.individuals import LUMA, Individual
from ard.world.world import SIZE, Placed, Scene, World, random_placement

SHORT_SIDE = 24  # pixels: three latent cells, the least that carries a marking


@dataclass(frozen=True)
class CollectionConfig:
    """Exemplars per class and split, and how far apart two individuals of a class must be in grey (RMS, 0 to 1)."""

    train: int
    val: int
    test: int
    min_grey_distance: float
    seed: int


def grey_thumbnail(world: World, individual: Individual, side: int = 24) -> np.ndarray:
    """Luminance of an individual on mid-grey, float32 (side, side): what is left of it in a charcoal sketch."""
    sprite = world.sprite(individual).astype(np.float32)
    alpha = sprite[..., 3]
    grey = (sprite[..., :3] @ LUMA) * alpha + 0.5 * (1 - alpha)
    rows, cols = np.nonzero(alpha > 0.5)
    crop = grey[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
    return np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.BOX))


def grey_distance(a: np.ndarray, b: np.ndarray) -> float:
    """RMS difference of two thumbnails, the smaller of straight and mirrored."""
    return float(min(np.sqrt(((a - b) ** 2).mean()), np.sqrt(((a - b[:, ::-1]) ** 2).mean())))


def choose_individuals(world: World, class_name: str, split: str, n: int, config: CollectionConfig,
                       taken: list[Individual]) -> list[Individual]:
    """`n` individuals of a class that differ pairwise in at least two of the four traits and can be told apart in grey.

    `taken` holds individuals of other splits, which are never repeated. Raises ValueError when the drawings of the
    split do not give that many.
    """
    rng = np.random.default_rng([config.seed, *class_name.encode(), *split.encode()])
    chosen: list[Individual] = []
    thumbnails: list[np.ndarray] = []
    for _ in range(4000):
        if len(chosen) == n:
            return chosen
        candidate = world.individual(class_name, split, rng)
        # spread over the drawings: nobody joins while another drawing has fewer members
        counts = [sum(c.drawing == d.drawing for c in chosen) for d in world.drawings_of(class_name, split)]
        if sum(c.drawing == candidate.drawing for c in chosen) > min(counts):
            continue
        if candidate in taken or any(candidate.differs(other) < 2 for other in chosen):
            continue
        thumbnail = grey_thumbnail(world, candidate)
        if all(grey_distance(thumbnail, other) >= config.min_grey_distance for other in thumbnails):
            chosen.append(candidate)
            thumbnails.append(thumbnail)
    raise ValueError(f"only {len(chosen)} of {n} distinct {class_name} individuals for split {split!r}: "
                     f"lower collection.min_grey_distance (now {config.min_grey_distance})")


def exemplar_scene(world: World, individual: Individual, seed: list[int]) -> Scene:
    """A photo of one individual, nearly unoccluded, at least SHORT_SIDE pixels on its short side; fillers may stand behind it."""
    rng = np.random.default_rng(seed)
    for _ in range(200):
        place = random_placement(rng)
        fillers = int(rng.choice([0, 1, 2], p=[0.5, 0.35, 0.15]))
        scene = world.scene(rng, [individual], medium="photo", fillers=fillers, placements=[place])
        x0, y0, x1, y1 = scene.objects[0].box
        if min(x1 - x0, y1 - y0) >= SHORT_SIDE and scene.objects[0].visible > 0.8:
            return scene
    raise ValueError(f"{individual.individual_id} cannot be placed with {SHORT_SIDE} pixels on its short side")


def build_collection(world: World, config: CollectionConfig, target: str | Path) -> dict[str, int]:
    """Write `images/*.png` and `instances_{split}.json` (COCO, with `individual_id`); returns images per split.

    Every individual stands in exactly one image of all splits; fillers are annotated but carry no individual.
    """
    target, taken, sizes = Path(target), [], {}
    for split in ("train", "val", "test"):
        images, annotations = [], []
        for class_name in world.classes:
            people = choose_individuals(world, class_name, split, getattr(config, split), config, taken)
            taken += people
            for individual in people:
                image_id = len(images) + 1
                seed = [config.seed, ("train", "val", "test").index(split), image_id]
                scene = exemplar_scene(world, individual, seed)
                # file names carry neither class nor order of making
                file = f"{np.random.default_rng([7, *seed]).integers(16**10):010x}.png"
                atomic_write_bytes(target / "images" / file, png_bytes(scene.image))
                images.append({"id": image_id, "file_name": file, "width": SIZE, "height": SIZE,
                               "context": scene.context, "medium": scene.medium})
                for placed in (*scene.objects, *scene.fillers):
                    annotations.append(_annotation(len(annotations) + 1, image_id, placed, world.classes))
        coco = {"images": sorted(images, key=lambda i: i["file_name"]), "annotations": annotations,
                "categories": [{"id": k + 1, "name": name} for k, name in enumerate((*world.classes, "filler"))]}
        atomic_write_json(target / f"instances_{split}.json", coco)
        sizes[split] = len(images)
    return sizes


def png_bytes(image: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as PNG bytes, the same for the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _annotation(number: int, image_id: int, placed: Placed, classes: tuple[str, ...]) -> dict:
    x0, y0, x1, y1 = placed.box
    individual = placed.individual
    category = classes.index(placed.class_name) + 1 if individual else len(classes) + 1
    return {
        "id": number, "image_id": image_id, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(placed.mask.sum()), "iscrowd": 0, "segmentation": _rle(placed.mask), "visible": round(placed.visible, 4),
        "individual_id": individual.individual_id if individual else None,
        "drawing": individual.drawing if individual else None,
        "designer": individual.designer if individual else None,
    }


def _rle(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths, column by column, beginning with zeros."""
    flat = mask.T.reshape(-1).astype(np.int8)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    runs = np.diff(np.concatenate([[0], edges]))
    return {"size": list(mask.shape), "counts": [int(r) for r in runs]}
