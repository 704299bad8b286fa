"""A tiny random detector and toy pictures: coloured squares on grey, with the box of each square."""

import numpy as np
import pytest
import torch

from ard.detector.features import image_features, region_vectors
from ard.detector.phases import PhaseData
from ard.detector.pool import ScenePool
from ard.geometry import to_cxcywh, to_xyxy
from tests.toy_attribution import tiny_detector

COLOURS = {"cat": (220, 40, 40), "dog": (40, 180, 60), "bear": (40, 60, 220), "teddy bear": (230, 220, 50)}
NAMES = tuple(COLOURS)


def square(rng: np.random.Generator, colour) -> tuple[np.ndarray, np.ndarray]:
    image = np.full((64, 64, 3), 128, np.uint8)
    size, (x, y) = rng.integers(16, 30), rng.integers(2, 32, size=2)
    image[y : y + size, x : x + size] = colour
    return image, np.array([x, y, x + size, y + size], float)


@pytest.fixture
def tiny():
    return tiny_detector()


@pytest.fixture
def with_likeness(tiny):
    """The same with a likeness head and with F and F~ that are not the identity; it reads an exemplar's own token."""
    tiny.add_likeness()
    with torch.no_grad():
        for part in (tiny.score_head.region, tiny.score_head.token):
            part.weight.add_(0.1 * torch.randn_like(part.weight))
            part.bias.add_(0.1)
    tiny.config.score_rule = "exemplar"
    return tiny.eval()


@pytest.fixture(scope="session")
def toy():
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 4
    images, boxes = (np.stack(x) for x in zip(*(square(rng, COLOURS[NAMES[c]]) for c in labels)))
    return images, boxes, labels, image_features(images)


@pytest.fixture(scope="session")
def pool(toy):
    _, boxes, labels, features = toy
    regions = region_vectors(features, torch.from_numpy(boxes)).half()
    return ScenePool(features, regions, boxes, np.arange(12), labels, np.array([f"individual {i}" for i in range(12)]))


@pytest.fixture(scope="session")
def phase_data(toy):
    images, boxes, labels, features = toy
    mirrored = np.stack([64 - boxes[:, 2], boxes[:, 1], 64 - boxes[:, 0], boxes[:, 3]], 1)
    gallery = torch.stack([features, image_features(images[:, :, ::-1].copy())])
    queries = torch.stack([region_vectors(g, torch.from_numpy(b)).half() for g, b in zip(gallery, (boxes, mirrored))])
    names = tuple(NAMES[c] for c in labels)
    return PhaseData(
        gallery,
        queries,
        np.stack([to_cxcywh(b, 64, 64) for b in (boxes, mirrored)]),
        np.arange(12),
        names,
        tuple(frozenset({n}) for n in names),
    )


@pytest.fixture(scope="session")
def sources(phase_data):
    """Class name and box, xyxy pixels, of the one thing in each toy picture."""
    return list(zip(phase_data.names, to_xyxy(phase_data.boxes[0], 64, 64)))
