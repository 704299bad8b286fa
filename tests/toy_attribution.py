"""A tiny dataset of the mini world, whose queries are rendered, and tiny random detectors: what stages 06 to 09 read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ard.detector.model import AttributionConfig, AttributionGroundingDinoForObjectDetection
from ard.records import Dataset, GalleryImage, GroundTruth, Sample
from ard.rendered import rendered_query
from ard.templates import COCO_SETTINGS
from ard.world import World

ROOT = Path(__file__).parents[1]
CLASSES = ("bear", "cat", "dog")


def tiny_detector(seed: int = 0) -> AttributionGroundingDinoForObjectDetection:
    torch.manual_seed(seed)
    config = AttributionConfig(d_model=32, num_queries=6, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32,
                               decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2)
    return AttributionGroundingDinoForObjectDetection(config).eval()


def toy_dataset(root: Path, per_class: int = 2, queries: int = 2) -> Dataset:
    """Each split: `per_class` individuals of three classes, one photo each, `queries` rendered queries each."""
    world, rng = World.load(ROOT / "data/world"), np.random.default_rng(0)
    samples, gallery, taken = {}, {}, set()
    for split in ("train", "val", "test"):
        samples[split], gallery[split] = (), ()
        for i, name in enumerate(CLASSES * per_class):
            person = world.individual(name, split, rng)
            while person in taken:
                person = world.individual(name, split, rng)
            taken.add(person)
            scene, concept = world.scene(rng, [person], medium="photo", fillers=0), f"{split}{i}"
            box = scene.objects[0].box
            write(root / f"images/{concept}.png", scene.image)
            own = GroundTruth(name, person.individual_id, person.drawing, person.designer, box)
            gallery[split] += (GalleryImage(f"images/{concept}.png", concept, (own,)),)
            for q in range(queries):
                context, medium = COCO_SETTINGS[3 * q]
                sample = Sample(f"{concept}_{q}", f"queries/{concept}_{q}.png", box, "p", name, concept,
                                f"images/{concept}.png", box, 3 * q, context, medium, split, person.individual_id,
                                person.drawing, person.designer)
                drawn = rendered_query(world, sample, seed=7)
                write(root / sample.query_file, drawn.image)
                samples[split] += (replace(sample, query_box=drawn.sample.query_box),)
    dataset = Dataset(root, samples, gallery)
    dataset.save()
    return dataset


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
