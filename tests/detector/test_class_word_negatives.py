"""Phase 2's negatives put out the exemplar token; the words stay lit on their class."""

import numpy as np
import pytest
import torch

from ard.detector import class_word_negatives as cn
from ard.detector import class_words as cw
from ard.detector.phases import phase2_batches
from ard.detector.prompts import EXEMPLAR, TEXT
from ard.detector.train import TrainSettings
from ard.validation import Watch

K = 4


@pytest.fixture
def shown(sources):
    """What the toy pictures hold: the source alone."""
    return [cw.shown_in([source]) for source in sources]


def test_the_pictures_and_captions_are_those_of_phase_2(phase_data, shown):
    batch, published = (make(np.random.default_rng(3)) for make in (
        cn.class_word_negatives(phase_data, shown, 5, K), phase2_batches(phase_data, 5, K)))
    positives = slice(None, None, K + 1)  # flips of negatives are drawn in another order
    assert torch.equal(batch.features[positives], published.features[positives]) and batch.features.shape == published.features.shape
    assert all(torch.equal(a, b) for a, b in zip(batch.prompt[:2], published.prompt[:2]))
    assert torch.equal(batch.targets.boxes[positives, 0], published.targets.boxes[positives, 0])
    assert torch.equal(batch.targets.tokens[positives, 0], published.targets.tokens[positives, 0])


def test_a_negative_of_the_class_lights_its_words_alone_and_another_nothing(phase_data, shown):
    batch = cn.class_word_negatives(phase_data, shown, 16, K)(np.random.default_rng(0))
    on = batch.targets.tokens.bool()
    kinds = [set(batch.prompt.kind[i][on[i].any(0)].tolist()) for i in range(len(on))]
    assert all(kinds[i] == {TEXT, EXEMPLAR} for i in range(0, len(on), K + 1))
    negatives = [kind for i, kind in enumerate(kinds) if i % (K + 1)]
    assert {frozenset(kind) for kind in negatives} == {frozenset(), frozenset({TEXT})}
    assert sum(map(bool, negatives)) >= 16 * K // 2, "half of them are of the class"


def test_boxes_are_mirrored_with_their_pictures(phase_data, shown):
    batch = cn.class_word_negatives(phase_data, shown, 16, K)(np.random.default_rng(1))
    for features, box, real in zip(batch.features, batch.targets.boxes, batch.targets.real):
        if real.any():
            flip, image = np.argwhere((phase_data.gallery == features).all(-1).numpy())[0]
            assert np.allclose(box[0], shown[image].boxes[flip, 0], atol=1e-6)


def test_training_moves_f_alone_and_looks_at_validation(tiny, phase_data, shown, tmp_path):
    before = {name: p.clone() for name, p in tiny.named_parameters()}
    settings = TrainSettings(steps=3, batch_size=2, warmup=0, learning_rate=1e-2, log_every=1, checkpoint_every=1)
    rows, looks = cn.watched_phase2(tiny, phase_data, shown, settings, Watch(lambda model: {"asked": 1}, 2, tmp_path), k=2)
    moved = {name for name, p in tiny.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith(("score_head.region.", "score_head.token.")) for name in moved)
    assert [look["step"] for look in looks] == [0, 2, 3] and all(np.isfinite(row["loss"]) for row in rows)
    assert tiny.config.adapters
