"""A second look, from close up: R_Q and the region that the detector boxes in an image, cut out with some of what surrounds them,
enlarged, and compared again.

The detector sees whole pictures, in which a marking is less than a cell of a feature map. Here the same frozen backbone sees each
region nearly alone, and its vectors are compared in the directions that tell individuals of a class apart, in closed form: whitened
within individuals (`ard.detector.whitening`), then Fisher's discriminant directions. After Fu, Zheng and Mei 2017 ("Look closer to
see better") and the re-ranking of regions in image retrieval (Tolias, Sicre and Jegou 2016). Not in the papers; notebook 17 fits it,
16 asks what it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ard.detector.features import IMAGE_SIZE, REGION, image_features, region_vectors
from ard.detector.phases import one_source
from ard.detector.whitening import whitener
from ard.files import FileError, atomic_write_bytes, atomic_write_json, read_json
from ard.geometry import GeometryError, as_boxes
from ard.records import Attribution, Dataset
from ard.together import log_odds

WEIGHTS, SETTINGS, OPERATING_POINT = "model.safetensors", "config.json", "operating_point.json"
BATCH = 256  # close-ups read at once


def closeups(pictures: np.ndarray, boxes, margin: float) -> tuple[np.ndarray, Tensor]:
    """Squares (n, 64, 64, 3) uint8 cut out of pictures (n, H, W, 3) uint8 around boxes (n, 4) xyxy pixels and enlarged bilinearly, and
    the boxes in them, (n, 4). A square is `margin` times as wide as the longer side of its box; beyond a picture, its border goes on.

    Raises GeometryError for a box without area or one that leaves its picture, ValueError for a margin below 1.
    """
    if margin < 1:
        raise ValueError(f"margin: expected at least 1, found {margin}")
    height, width = pictures.shape[1:3]
    corners = as_boxes(boxes)
    if (corners < 0).any() or (corners > [width, height, width, height]).any():
        raise GeometryError(f"expected boxes inside of pictures of {width} x {height} pixels")
    corners = torch.from_numpy(corners).float()
    low, high = corners[:, :2], corners[:, 2:]
    side = margin * (high - low).amax(1, keepdim=True)
    start = (low + high - side) / 2
    steps = (torch.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE  # middles of the new pixels
    x, y = (2 * (start[:, i : i + 1] + side * steps) / size - 1 for i, size in enumerate((width, height)))
    grid = torch.stack([x[:, None].expand(-1, IMAGE_SIZE, -1), y[:, :, None].expand(-1, -1, IMAGE_SIZE)], -1)
    pixels = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float()
    seen = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    there = torch.cat([low - start, high - start], 1) / side * IMAGE_SIZE
    return seen.round().byte().permute(0, 2, 3, 1).numpy(), there


@dataclass(frozen=True)
class CloseUpSettings:
    """What is fitted: `individuals.closeup` of params.yaml."""

    margin: float = 1.3  # side of the square over the longer side of the box
    width: int = 64  # directions compared
    shrinkage: float = 1.0  # as in `whitener`


@dataclass(frozen=True, eq=False)
class CloseUp:
    """How two close-ups are compared: a linear map of their region vectors, and the logistic that makes a logit of its cosine."""

    project: Tensor  # (REGION, width)
    centre: Tensor  # (width,), of what is projected
    slope: float
    offset: float
    settings: CloseUpSettings = CloseUpSettings()
    # beside a detector: what a close-up's logit counts, and the calibration of the chances said with it (`ard.chances.Chances`)
    weight: float = 1.0
    calibration: tuple[float, ...] = ()

    def vectors(self, pictures: np.ndarray, boxes) -> Tensor:
        """Unit vectors (n, width) of boxes (n, 4) xyxy pixels in pictures (n, H, W, 3) uint8. Raises as `closeups`."""
        return self.of_regions(region_closeups(pictures, boxes, self.settings.margin))

    def of_regions(self, regions: Tensor) -> Tensor:
        """Unit vectors (n, width) of what `region_closeups` gives, (n, REGION)."""
        return F.normalize(regions @ self.project - self.centre, dim=-1)

    def logits(self, asked: Tensor, found: Tensor) -> Tensor:
        """(n,) weighed logits of n regions to be the source of one: vectors (n, width) and (width,)."""
        return self.weight * (self.slope * (found @ asked) + self.offset)

    def save(self, folder: str | Path) -> None:
        """What is fitted: weights in half precision, and the rest as JSON."""
        atomic_write_bytes(Path(folder) / WEIGHTS, save({"project": self.project.half().contiguous(), "centre": self.centre.float()}))
        atomic_write_json(Path(folder) / SETTINGS, {"slope": self.slope, "offset": self.offset, **asdict(self.settings)})

    def save_operating_point(self, folder: str | Path) -> None:
        """What was found beside a detector: weight and calibration."""
        atomic_write_json(Path(folder) / OPERATING_POINT, {"weight": self.weight, "calibration": list(self.calibration)})

    @classmethod
    def load(cls, folder: str | Path) -> CloseUp:
        """What was saved, with its operating point where that was, too. Raises FileError where it is not there, or of another size."""
        folder = Path(folder)
        try:
            told = read_json(folder / SETTINGS)
            point = read_json(folder / OPERATING_POINT) if (folder / OPERATING_POINT).is_file() else None
            weights = load((folder / WEIGHTS).read_bytes())
            numbers = {name: float(told.pop(name)) for name in ("slope", "offset")}
            settings = CloseUpSettings(**told)
            beside = {} if point is None else {"weight": float(point["weight"]), "calibration": tuple(point["calibration"])}
            project, centre = weights["project"].float(), weights["centre"].float()
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise FileError(f"{folder}: no close-up's folder ({error})") from None
        if project.shape != (REGION, settings.width) or centre.shape != (settings.width,):
            raise FileError(f"{folder}: expected a map of {REGION} to {settings.width} numbers, found {tuple(project.shape)}")
        return cls(project, centre, **numbers, settings=settings, **beside)


def region_closeups(pictures: np.ndarray, boxes, margin: float) -> Tensor:
    """(n, REGION) region vectors of close-ups, see `closeups`."""
    corners, parts = as_boxes(boxes), [torch.empty(0, REGION)]
    for start in range(0, len(pictures), BATCH):
        seen, there = closeups(pictures[start : start + BATCH], corners[start : start + BATCH], margin)
        parts.append(region_vectors(image_features(seen), there))
    return torch.cat(parts)


# ---- fitted in closed form -------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Regions:
    """Region vectors of close-ups of E exemplars and of n regions drawn after them."""

    photos: Tensor  # (E, REGION)
    drawn: Tensor  # (n, REGION)
    owners: np.ndarray  # (n,) whose, by number
    classes: np.ndarray  # (E,) names

    @classmethod
    def of(cls, dataset: Dataset, split: str, margin: float) -> Regions:
        """R_Q of all samples of a split, and who stands in each image of its gallery, asked about (R_X) or not: one in each, as in
        `mini-coco`."""
        samples = dataset.samples[split]
        asked = {file: (s.exemplar_box, s.class_name) for file, s in one_source(samples).items()}
        shown = {im.file: asked.get(im.file) or next((o.box, o.class_name) for o in im.objects if o.individual_id)
                 for im in dataset.gallery[split]}
        photos = region_closeups(np.stack([dataset.pixels(file) for file in shown]), [box for box, _ in shown.values()], margin)
        drawn = region_closeups(np.stack([dataset.query(s).image for s in samples]), [s.query_box for s in samples], margin)
        files = list(shown)
        return cls(photos, drawn, np.array([files.index(s.exemplar_file) for s in samples]), np.array([name for _, name in shown.values()]))

    @classmethod
    def joined(cls, several: Sequence[Regions]) -> Regions:
        """All in one."""
        before = np.cumsum([0, *(len(r.photos) for r in several)])
        return cls(torch.cat([r.photos for r in several]), torch.cat([r.drawn for r in several]),
                   np.concatenate([r.owners + n for r, n in zip(several, before)]), np.concatenate([r.classes for r in several]))


def fit_closeup(regions: Regions, settings: CloseUpSettings = CloseUpSettings()) -> CloseUp:
    """The close-up that tells individuals of a class apart, seen with the margin of `settings`. ValueError where no exemplar has two
    pictures, or no class two exemplars."""
    mean, spread = regions.photos.mean(0), regions.photos.std(0).clamp(min=1e-3)
    everything = torch.cat([regions.photos - mean, regions.drawn - mean]) / spread
    owners = np.concatenate([np.arange(len(regions.photos)), regions.owners])
    map_ = discriminant(everything, owners, regions.classes, settings.shrinkage, settings.width)
    project = (map_ / spread[:, None]).half().float()  # as it is kept
    fitted = CloseUp(project, mean @ project, 1.0, 0.0, settings)
    slope, offset = _logistic(fitted.of_regions(regions.photos), fitted.of_regions(regions.drawn), regions.owners, regions.classes)
    return replace(fitted, slope=slope, offset=offset)


def nearest_of_class(closeup: CloseUp, regions: Regions) -> np.ndarray:
    """(n,) bool: of the exemplars of its class, is a drawn region's own the nearest?"""
    near = closeup.of_regions(regions.drawn) @ closeup.of_regions(regions.photos).T
    rivals = torch.from_numpy(regions.classes[regions.owners][:, None] == regions.classes)
    return near.masked_fill(~rivals, -torch.inf).argmax(1).numpy() == regions.owners


def discriminant(vectors: Tensor, owners: np.ndarray, classes: np.ndarray, shrinkage: float, width: int) -> Tensor:
    """(D, width): the directions in which vectors (n, D) of individuals `owners` (n,), numbered from 0, lie furthest from others of their
    class (`classes`, of each individual), by how far they lie from themselves: linear discriminant analysis (Fisher 1936), within
    classes. shrinkage: as in `within_covariance`. ValueError where no class has two individuals."""
    white = whitener(vectors, owners, shrinkage)
    owner = torch.as_tensor(owners)
    means = torch.zeros(len(classes), len(white)).index_add(0, owner, vectors @ white) / torch.bincount(owner)[:, None]
    groups = [means[torch.from_numpy(classes == name)] for name in np.unique(classes)]
    apart = torch.cat([group - group.mean(0) for group in groups])
    if not apart.any():
        raise ValueError("close-up: every class has one individual, so there is nobody to tell it from")
    return white @ torch.linalg.eigh(apart.T @ apart).eigenvectors[:, -width:]


def _logistic(photos: Tensor, drawn: Tensor, owners: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """Slope and offset: by its cosine, is a photo (E, width) of the class that of a drawn region (n, width)? Both answers weigh alike."""
    near = (drawn @ photos.T).numpy()
    asked, own = classes[owners][:, None] == classes, owners[:, None] == np.arange(len(classes))
    fitted = LogisticRegression(C=100.0, class_weight="balanced").fit(near[asked][:, None], own[asked])
    return round(float(fitted.coef_[0, 0]), 4), round(float(fitted.intercept_[0]), 4)


# ---- beside a detector's answers -------------------------------------------------------------------------------------
class SecondLook:
    """What close-ups say of a detector's answers. Many boxes come again from query to query, so vectors are kept, by image and box in
    whole pixels."""

    def __init__(self, closeup: CloseUp):
        self.closeup = closeup
        self._kept: dict[tuple, Tensor] = {}

    def __call__(self, picture: np.ndarray, box, answers: Sequence[Attribution], pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(N,) logits that are added to those of N answers with boxes, each in its picture (H, W, 3) uint8, to what is in `box`, xyxy
        pixels, of `picture`."""
        places = [whole_pixels(a.box, p.shape) for a, p in zip(answers, pictures, strict=True)]
        keys = [(a.image_id, *place) for a, place in zip(answers, places)]
        new = {key: i for i, key in enumerate(keys) if key not in self._kept}
        if new:
            rows = list(new.values())
            self._kept.update(zip(new, self.closeup.vectors(np.stack([pictures[i] for i in rows]), [places[i] for i in rows])))
        asked = self.closeup.vectors(picture[None], [box])[0]
        return self.closeup.logits(asked, torch.stack([self._kept[key] for key in keys])).double().numpy()


def whole_pixels(box, shape: Sequence[int]) -> tuple[int, int, int, int]:
    """A box (xyxy) in whole pixels inside of a picture (H, W, ...), at least two wide and high.

    >>> whole_pixels((-0.2, 3.6, 4.4, 4.1), (64, 64))
    (0, 3, 4, 5)
    """
    found = []
    for low, high, size in ((box[0], box[2], shape[1]), (box[1], box[3], shape[0])):
        start = min(max(round(low), 0), size - 2)
        end = min(max(round(high), 0), size)
        if end - start < 2:
            start = min(max(round((low + high) / 2) - 1, 0), size - 2)
            end = start + 2
        found.append((start, end))
    return found[0][0], found[1][0], found[0][1], found[1][1]


def raised(answers: Sequence[Attribution], logits: np.ndarray) -> list[Attribution]:
    """The answers with so much, (N,), added to the log-odds of their scores, which are chances.

    >>> raised([Attribution("a", (0, 0, 4, 4), 0.5)], np.array([1.0]))[0].score
    0.7310585786300049
    """
    odds = log_odds([a.score for a in answers]) + logits
    return [replace(a, score=float(score)) for a, score in zip(answers, expit(odds), strict=True)]
