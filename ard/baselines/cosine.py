"""`image cosine` and `crop cosine`: rank by the cosine of frozen features, of whole images or of crops of proposals.

`CropRanker` also carries the colour histogram and AbC's crop variant; each gallery image is encoded once (per class).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ard.geometry import as_boxes, crop
from ard.records import Attribution, Gallery, GalleryImage, Query

Encode = Callable[[Sequence[np.ndarray]], np.ndarray]  # n images (H, W, 3) uint8 of any sizes -> (n, d)
Proposals = Callable[[str, str], np.ndarray]  # image_id, class name -> boxes (n, 4) of the class in that image
Map = Callable[[np.ndarray], np.ndarray]  # (n, d) -> (n, e)


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1 (float64); a row of zeros stays zero, so its cosine with anything is 0.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    features = np.asarray(features, np.float64)
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    return np.divide(features, length, out=np.zeros_like(features), where=length > 0)


def same(features: np.ndarray) -> np.ndarray:
    """No mapper."""
    return features


class ImageRanker:
    """Whole gallery images against the whole query image, or against the crop of R_Q with `crop_query`. No boxes."""

    def __init__(self, encode: Encode, real: Map = same, synthetic: Map = same, crop_query: bool = False):
        self.encode, self.real, self.synthetic, self.crop_query = encode, real, synthetic, crop_query
        self._stored: dict[str, np.ndarray] = {}

    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        image = crop(query.image, query.sample.query_box) if self.crop_query else query.image
        asked = unit(self.synthetic(self.encode([image])))[0]
        new = [im for im in gallery if im.image_id not in self._stored]
        if new:
            features = unit(self.real(self.encode([gallery.pixels(im) for im in new])))
            self._stored |= {im.image_id: f for im, f in zip(new, features, strict=True)}
        return [Attribution(im.image_id, None, float(self._stored[im.image_id] @ asked)) for im in gallery]


class CropRanker:
    """R_Q's crop against the crops of the proposals of the query's class; the best one is the answer, with its box.

    An image without a proposal of the class gets box None and score -inf: it stands behind all others.
    """

    def __init__(self, encode: Encode, proposals: Proposals, real: Map = same, synthetic: Map = same):
        self.encode, self.proposals, self.real, self.synthetic = encode, proposals, real, synthetic
        self._stored: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    def regions(self, image: GalleryImage, class_name: str, gallery: Gallery) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) of the proposals and their mapped unit features (n, e); computed once per image and class."""
        key = (image.image_id, class_name)
        if key not in self._stored:
            boxes = as_boxes(self.proposals(*key))
            pixels = gallery.pixels(image)
            found = [crop(pixels, box) for box in boxes]
            self._stored[key] = boxes, unit(self.real(self.encode(found))) if found else np.zeros((0, 0))
        return self._stored[key]

    def rank(self, query: Query, gallery: Gallery) -> list[Attribution]:
        asked = unit(self.synthetic(self.encode([crop(query.image, query.sample.query_box)])))[0]
        answers = []
        for image in gallery:
            boxes, features = self.regions(image, query.sample.class_name, gallery)
            if not len(boxes):
                answers.append(Attribution(image.image_id, None, float("-inf")))
                continue
            scores = features @ asked
            best = int(scores.argmax())
            answers.append(Attribution(image.image_id, tuple(boxes[best].tolist()), float(scores[best])))
        return answers
