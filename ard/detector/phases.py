"""The two phases of the AR detector (paper, section 3.2; FACTS 1.3, 12): AD+ without F and F~, then F and F~ alone
against AD-.

Both read frozen features of both mirror images of every picture, so X and R_X (Q and R_Q) always move together.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ard.detector.criterion import SETTINGS, make_targets, set_loss
from ard.detector.features import IMAGE_SIZE, FeatureCache, region_vectors
from ard.detector.model import AttributionGroundingDinoForObjectDetection
from ard.detector.negatives import NEGATIVES, Draw, draw_negatives
from ard.detector.objectives import image_scores, infonce, ranking_loss, strongest
from ard.detector.prompts import EXEMPLAR, TEXT, Phrase, build_prompt, phrase_map
from ard.detector.train import Batch, TrainSettings, supervised_loss, train
from ard.files import sha256_bytes
from ard.geometry import Transform, to_cxcywh
from ard.records import Dataset, Sample

FLIPS = (Transform(IMAGE_SIZE, IMAGE_SIZE), Transform(IMAGE_SIZE, IMAGE_SIZE).hflip())
FROZEN = ("model.backbone.", "model.text_backbone.", "query_backbone.")  # of `AttributionDetector`; the mini world's are no part of it
Batches = Callable[[np.random.Generator], Batch]
LIT = (TEXT, EXEMPLAR)  # kinds of tokens whose target is 1 on R_X


@dataclass(frozen=True, eq=False)
class PhaseData:
    """AD+ of a split as tensors; the first axis of the first three is the mirroring (0 as it is, 1 mirrored)."""

    gallery: Tensor  # (2, G, PACKED) float16
    queries: Tensor  # (2, S, REGION) float16: region vectors of R_Q
    boxes: np.ndarray  # (2, S, 4) R_X cxcywh in [0, 1]
    source: np.ndarray  # (S,) index of X in the gallery
    names: tuple[str, ...]  # (S,) class names
    shown: tuple[frozenset[str], ...]  # (G,) classes known to be in each gallery image

    @property
    def digest(self) -> str:
        """Hash of who is where, by which a checkpoint knows what it was learned from."""
        return sha256_bytes(self.boxes.tobytes() + self.source.tobytes() + "\n".join(self.names).encode())


def load_phase_data(dataset: Dataset, split: str, cache: FeatureCache, samples: Sequence[Sample] | None = None) -> PhaseData:
    """Encode the gallery and the queries of a split (or of the chosen samples) in both mirrorings."""
    samples = dataset.samples[split] if samples is None else samples
    one_source(samples)
    images = dataset.gallery[split]
    where = {image.file: i for i, image in enumerate(images)}
    pictures = [dataset.pixels(image.file) for image in images]
    gallery = torch.stack([cache(np.stack([t.image(p) for p in pictures])) for t in FLIPS])
    queries = query_vectors(dataset, samples, cache)
    boxes = np.array([s.exemplar_box for s in samples])
    boxes = np.stack([to_cxcywh(moved_boxes(t, boxes), IMAGE_SIZE, IMAGE_SIZE) for t in FLIPS])
    return PhaseData(gallery, queries, boxes, np.array([where[s.exemplar_file] for s in samples]), tuple(s.class_name for s in samples),
                     tuple(frozenset(o.class_name for o in im.objects) for im in images))


def one_source(samples: Sequence[Sample]) -> dict[str, Sample]:
    """The last sample of each gallery file, as what stands in it is told by its file. ValueError where a file holds two exemplars."""
    found = {s.exemplar_file: s for s in samples}
    for sample in samples:
        if (other := found[sample.exemplar_file].concept_id) != sample.concept_id:
            raise ValueError(f"{sample.exemplar_file}: expected one exemplar in a picture, found {sample.concept_id} and {other}")
    return found


def moved_boxes(transform: Transform, boxes: np.ndarray) -> np.ndarray:
    """(N, 4) xyxy pixels after the transform that moves their pictures. ValueError for one that lies outside of its picture."""
    moved, kept = transform.boxes(boxes, 0)
    if not kept.all():
        raise ValueError(f"box {np.asarray(boxes)[~kept][0].tolist()} lies outside of its picture of {transform.width} x {transform.height}")
    return moved


def query_vectors(
    dataset: Dataset, samples: Sequence[Sample], cache: FeatureCache, boxes_in: Callable[[Transform, np.ndarray], np.ndarray] = moved_boxes
) -> Tensor:
    """Region vectors (2, S, REGION) float16 of R_Q in both mirrorings; `boxes_in` says where R_Q (S, 4) is in them."""
    pictures, boxes = [dataset.pixels(s.query_file) for s in samples], np.array([s.query_box for s in samples])
    return torch.stack([picture_regions(cache, [t.image(p) for p in pictures], boxes_in(t, boxes)) for t in FLIPS])


def picture_regions(
    encode: Callable[[np.ndarray], Tensor], pictures: Sequence[np.ndarray], boxes: np.ndarray, batch: int = 64
) -> Tensor:
    """Region vectors (B, REGION) float16 of one box xyxy pixels (B, 4) in each of B pictures, encoded batch by batch.

    encode: `image_features` or a `FeatureCache`.
    """
    parts = []
    for start in range(0, len(pictures), batch):
        features = encode(np.stack(pictures[start : start + batch]))
        parts.append(region_vectors(features, torch.from_numpy(boxes[start : start + batch])).half())
    return torch.cat(parts)


def unwatched(loss_of: Callable) -> Callable:
    """The loss as it is."""
    return loss_of


# ---- phase 1 ---------------------------------------------------------------------------------------------------------
def phase1_batches(data: PhaseData, names: Sequence[str], batch_size: int, other_names: int = 4, rivals: int = 0, absent: float = 0.0,
                   phrase: Callable[[str, Tensor], Phrase] = Phrase, lit: tuple[int, ...] = LIT) -> Batches:
    """Positives only: X asked for its class phrase with the exemplar of Q, among up to `other_names` other class names.

    `rivals` adds phrases with the exemplar of another image's query, half of them of the same class, which X does not
    answer, and a share `absent` of the captions leaves out what X does answer: not in the paper (0 and 0), but the
    cheapest way to teach identity before phase 2. `phrase` says what is told of a query, `lit` which tokens its region
    lights: ablations change them.
    """
    if absent and not rivals:
        raise ValueError("absent: a caption without its own phrase needs rivals, found rivals 0")

    everything, named = np.arange(len(data.source)), np.array(data.names)
    by_name = {name: np.flatnonzero(named == name) for name in set(data.names)}

    def make(rng: np.random.Generator) -> Batch:
        rows, flip_x, flip_q = rng.integers(len(data.source), size=batch_size), *rng.integers(2, size=(2, batch_size))
        captions, labels, wanted = [], [], []
        for n, (row, flip) in enumerate(zip(rows, flip_q)):
            there = absent == 0 or rng.random() >= absent
            phrases = [phrase(data.names[row], data.queries[flip, row].float())] if there else []
            alike = by_name[data.names[row]]
            others = [_rival(rng, data, row, alike if rng.random() < 0.5 else everything) for _ in range(rivals)]
            phrases += [phrase(*other) for other in others]
            free = [n for n in names if n != data.names[row] and n not in data.shown[data.source[row]]]
            count = min(int(rng.integers(other_names + 1)), len(free))
            phrases += [Phrase(str(n)) for n in rng.choice(free, count, replace=False)] if count else []
            caption, own = shuffled(rng, phrases)
            captions.append(caption)
            labels.append([own] if there else [])
            wanted.append(data.boxes[flip_x[n], row][None] if there else np.empty((0, 4)))
        prompt = build_prompt(captions)
        return Batch(data.gallery[torch.from_numpy(flip_x), torch.from_numpy(data.source[rows])], prompt,
                     make_targets(wanted, labels, phrase_map(prompt, lit)))

    return make


def shuffled(rng: np.random.Generator, phrases: Sequence[Phrase]) -> tuple[list[Phrase], int]:
    """A caption of the phrases in random order, and the place in it of the first of them."""
    order = rng.permutation(len(phrases))
    return [phrases[i] for i in order], int(np.flatnonzero(order == 0)[0])


def _rival(rng: np.random.Generator, data: PhaseData, row: int, candidates: np.ndarray) -> tuple[str, Tensor]:
    """Name and exemplar of a concept learned from another image, among `candidates` when they hold one."""
    others = candidates[data.source[candidates] != data.source[row]]
    chosen = int(rng.choice(others if len(others) else np.flatnonzero(data.source != data.source[row])))
    return data.names[chosen], data.queries[rng.integers(2), chosen].float()


def train_phase1(model: AttributionGroundingDinoForObjectDetection, data: PhaseData, names: Sequence[str], settings: TrainSettings,
                 folder: str | Path, other_names: int = 4, rivals: int = 0, absent: float = 0.0,
                 watched: Callable[[Callable], Callable] = unwatched, batches: Batches | None = None, **told) -> list[dict]:
    """ARD-: everything trainable but F and F~, in place, starting from the exemplar-prompted detector.

    watched: puts something that is done at every step around the loss, such as a look at validation.
    batches: in the place of `phase1_batches`, made of the same. told: what ablations change in those.
    """
    model.set_adapters(False)
    set_trainable(model, adapters=False)
    batches = batches or phase1_batches(data, names, settings.batch_size, other_names, rivals, absent, **told)
    recipe = {"data": data.digest, "names": list(names), "other_names": other_names, "rivals": rivals, "absent": absent,
              "batches": batches.__qualname__}
    return train(model, batches, settings, folder, watched(supervised_loss(settings)), name="phase 1", recipe=recipe)


# ---- phase 2 ---------------------------------------------------------------------------------------------------------
def phase2_batches(data: PhaseData, positives: int, k: int = 4, draw: Draw = draw_negatives,
                   phrase: Callable[[str, Tensor], Phrase] = Phrase, lit: tuple[int, ...] = LIT) -> Batches:
    """`positives` pairs (X, Q), each followed by the same query on the negatives that `draw` gives, without targets."""

    def make(rng: np.random.Generator) -> Batch:
        features, captions, boxes, labels = [], [], [], []
        for row in rng.integers(len(data.source), size=positives):
            flip_x, flip_q = rng.integers(2, size=2)
            images = [int(data.source[row]), *draw(rng, data, row, k)]
            features += [data.gallery[flip_x if i == 0 else rng.integers(2), g] for i, g in enumerate(images)]
            captions += [[phrase(data.names[row], data.queries[flip_q, row].float())]] * len(images)
            boxes += [data.boxes[flip_x, row][None], *[np.empty((0, 4))] * (len(images) - 1)]
            labels += [[0], *[[]] * (len(images) - 1)]
        prompt = build_prompt(captions)
        return Batch(torch.stack(features), prompt, make_targets(boxes, labels, phrase_map(prompt, lit)))

    return make


def orthogonality(matrix: Tensor) -> Tensor:
    """||W W^T - I||, the paper's un-squared Frobenius norm; its gradient at W = I is 0/0, hence the floor under the root."""
    gap = matrix @ matrix.T - torch.eye(len(matrix), device=matrix.device)
    return (gap.square().sum() + 1e-12).sqrt()


def phase2_loss(settings: TrainSettings, lambda_cls: float = 1.0, lambda_reg: float = 0.5, objective: str = "focal",
                keep: int = 0) -> Callable:
    """Paper, eq. 2 and 3: focal loss (targets all zero on negatives) + lambda_reg / 2 (||F F^T - I|| + ||F~ F~^T - I||).

    objective: one of `objectives.OBJECTIVES` in the place of the focal loss. keep: of each query's negatives only so many
    count, those the model as it is scores highest; 0 keeps all.
    """
    weights = SETTINGS[settings.losses]

    def loss(model: AttributionGroundingDinoForObjectDetection, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():
            match = model.match(batch.features, batch.prompt, adapted=False)
        head, prompt, targets, rule = model.score_head, batch.prompt, batch.targets, model.config.score_rule
        group = len(targets.real) // int(targets.real.any(1).sum())
        logits = head(match.regions, match.tokens, match.present, adapted=True).float() + match.likeness
        boxes = match.layer_boxes[:, -1]
        if keep:
            rows = strongest(image_scores(logits.detach(), prompt, rule, group), min(keep, group - 1))
            logits, boxes, prompt, targets = logits[rows], boxes[rows], prompt.take(rows), targets.take(rows)
            group = len(rows) // int(targets.real.any(1).sum())
        if objective == "focal":
            found = float(targets.real.sum().clamp(min=1))
            main = set_loss(logits, boxes, targets, weights, found)["class"]
        else:
            main = {"ranking": ranking_loss, "infonce": infonce}[objective](image_scores(logits, prompt, rule, group))
        matrices = [m for m in (head.region.matrix(), head.token.matrix()) if m is not None]
        penalty = 0.5 * sum(map(orthogonality, matrices), torch.zeros(()))
        total = lambda_cls * main + lambda_reg * penalty
        return total, {"loss": float(total.detach()), "class": float(main.detach()), "orthogonality": float(penalty.detach())}

    return loss


def set_trainable(model: nn.Module, adapters: bool) -> None:
    """Phase 2 (`adapters`) trains F and F~ alone, phase 1 everything else but the backbones, which stay as they are."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN) and name.startswith(("score_head.region.", "score_head.token.")) == adapters)


def train_phase2(model: AttributionGroundingDinoForObjectDetection, data: PhaseData, settings: TrainSettings, folder: str | Path,
                 k: int = 4, lambda_cls: float = 1.0, lambda_reg: float = 0.5, adapter: str = "linear",
                 watched: Callable[[Callable], Callable] = unwatched, negatives: str = "mixed", objective: str = "focal",
                 batches: Batches | None = None, **told) -> list[dict]:
    """ARD: F and F~ from where they are (fresh ones are the identity), everything else as phase 1 left it; `batch_size` counts
    positives.

    adapter: what F and F~ are, a key of `score_head.ADAPTERS`; the paper's are linear. negatives: a key of
    `negatives.NEGATIVES`. objective: as in `phase2_loss`. batches: in the place of `phase2_batches`, made of the same. told: what
    ablations change in those.
    """
    model.renew_adapters(adapter)
    model.set_adapters(True)
    set_trainable(model, adapters=True)
    batches = batches or phase2_batches(data, settings.batch_size, k, NEGATIVES[negatives], **told)
    loss = phase2_loss(settings, lambda_cls, lambda_reg, objective, keep=k if negatives == "mined" else 0)
    recipe = {"data": data.digest, "k": k, "lambda_cls": lambda_cls, "lambda_reg": lambda_reg, "adapter": adapter,
              "negatives": negatives, "objective": objective, "batches": batches.__qualname__}
    return train(model, batches, settings, folder, watched(loss), name="phase 2", recipe=recipe)
