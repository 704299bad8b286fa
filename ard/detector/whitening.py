"""What the likeness head starts from: region vectors in which one individual looks most like itself.

One individual's vectors differ from picture to picture: by place, medium, and what a generator makes of it. Directions in which
they differ much say little of who it is. Weighting all directions by the inverse of that covariance is within-class covariance
normalisation (Hatch, Kajarekar and Stolcke 2006, for voices); here the class is the individual. Not in the paper.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ard.detector.features import IMAGE_SIZE, region_vectors
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.phases import PhaseData
from ard.geometry import to_xyxy

BATCH = 256  # pictures whose regions are read at once


def give_likeness(model: AttributionGroundingDinoForObjectDetection, data: PhaseData, whitening: float, seed: int = 0) -> None:
    """Give the model a likeness head: whitened by `data` (`whiten_likeness`), or, with `whitening` 0, with random weights."""
    model.add_likeness(seed)
    if whitening:
        whiten_likeness(model, data, whitening)


def whiten_likeness(model: AttributionGroundingDinoForObjectDetection, data: PhaseData, shrinkage: float = 3.0) -> None:
    """Give the model's likeness head a projection, left alone by training until the model is saved, and the scale and threshold it starts from, which tell the
    individuals of `data` apart. In closed form: whitened within individuals, then the few directions in which all are longest.

    Trained on in phase 1, the projection finds fewer individuals than left as it is. shrinkage: as in `within_covariance`.
    ValueError for a model without a likeness head, and for individuals of one picture.
    """
    head = model.likeness_head
    if head is None:
        raise ValueError("whitening: the model has no likeness head; add_likeness first")
    individuals, first, owner = np.unique(data.source, return_index=True, return_inverse=True)
    sources, queries = ((vectors.float() - model.region_mean) / model.region_std
                        for vectors in (_exemplars(data, individuals, first), data.queries))
    everything = torch.cat([sources, queries], 1)  # both mirrorings of an individual are the same one
    whose = np.tile(np.concatenate([np.arange(len(individuals)), owner]), 2)
    white = whitener(everything.flatten(0, 1), whose, shrinkage)
    unit = F.normalize(everything.flatten(0, 1) @ white, dim=-1)
    longest = torch.linalg.eigh(unit.T @ unit).eigenvectors[:, -head.project.out_features :]
    del head.project.weight  # a parameter; what is measured is none, so training leaves it alone
    head.project.register_buffer("weight", (white @ longest).T.contiguous())
    _fit_logits(head, queries[0], sources[0], owner, np.array(data.names))


def whitener(vectors: Tensor, owners: np.ndarray, shrinkage: float) -> Tensor:
    """Matrix (D, D): vectors times it have the identity as their `within_covariance` without shrinkage, less so with more."""
    return torch.linalg.cholesky(torch.linalg.inv(within_covariance(vectors, owners, shrinkage)))


def within_covariance(vectors: Tensor, owners: np.ndarray, shrinkage: float) -> Tensor:
    """Pooled covariance (D, D) of vectors (n, D) around the mean of their owner's (n,), plus `shrinkage` times its mean variance
    in all directions. ValueError where no owner has two vectors.

    >>> within_covariance(torch.tensor([[0., 0.], [2., 0.], [9., 9.], [11., 9.]]), np.array([0, 0, 1, 1]), 0.5).tolist()
    [[2.5, 0.0], [0.0, 0.5]]
    """
    owner = torch.as_tensor(np.unique(owners, return_inverse=True)[1])
    groups = int(owner.max()) + 1
    if groups == len(vectors):
        raise ValueError("whitening: every individual has one picture, so none differs from itself")
    sums = torch.zeros(groups, vectors.shape[1]).index_add(0, owner, vectors)
    apart = vectors - (sums / torch.bincount(owner)[:, None])[owner]
    covariance = apart.T @ apart / (len(vectors) - groups)
    return covariance + shrinkage * covariance.diagonal().mean() * torch.eye(len(covariance))


def _exemplars(data: PhaseData, images: np.ndarray, samples: np.ndarray) -> Tensor:
    """Region vectors (2, n, REGION) of R_X in both mirrorings: of these gallery images, in the boxes of these samples."""
    found = []
    for gallery, boxes in zip(data.gallery, data.boxes):
        corners = torch.from_numpy(to_xyxy(boxes[samples], IMAGE_SIZE, IMAGE_SIZE))
        batches = zip(torch.from_numpy(images).split(BATCH), corners.split(BATCH))
        found.append(torch.cat([region_vectors(gallery[rows], where) for rows, where in batches]))
    return torch.stack(found)


def _fit_logits(head, queries: Tensor, sources: Tensor, owner: np.ndarray, names: np.ndarray) -> None:
    """Scale and threshold by logistic regression: is X of this class (G, D) the query's (n, D) own? Both answers weigh alike."""
    with torch.no_grad():
        near = F.normalize(head.project(queries), dim=-1) @ F.normalize(head.project(sources), dim=-1).T
    named = np.empty(len(sources), names.dtype)
    named[owner] = names
    asked, own = names[:, None] == named, owner[:, None] == np.arange(len(sources))
    fitted = LogisticRegression(C=100.0, class_weight="balanced").fit(near.numpy()[asked][:, None], own[asked])
    slope, offset = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    with torch.no_grad():
        head.scale.fill_(slope)
        head.threshold.fill_(-offset / slope)
