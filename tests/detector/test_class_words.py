"""Words are lit on everything of their class in X, the exemplar token on the source alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ard.companions import CompanionWorld
from ard.detector import class_words as cw
from ard.detector.phases import phase1_batches
from ard.detector.prompts import EXEMPLAR, TEXT, Phrase, build_prompt
from ard.detector.rendered_pairs import rendered_pairs
from ard.detector.train import TrainSettings
from ard.geometry import to_xyxy
from ard.validation import Watch
from tests.detector.conftest import NAMES
from tests.toy_attribution import ROOT, toy_dataset


@pytest.fixture
def shown(sources):
    """What the toy pictures hold: the source, and a small cat in the corner of each."""
    return [cw.shown_in([source, ("cat", (0, 0, 8, 8))]) for source in sources]


def lit(targets, prompt, picture, thing):
    """(kind, phrase) of the tokens that a thing lights."""
    on = targets.tokens[picture, thing].bool()
    return set(zip(prompt.kind[picture][on].tolist(), prompt.phrase[picture][on].tolist()))


def test_a_thing_lights_the_words_of_its_class_and_the_source_its_exemplar_too():
    vector = torch.ones(1008)
    names = ["teddy bear", "cat", "cat", "dog"]
    prompt = build_prompt([[Phrase("teddy bear"), Phrase("cat", vector), Phrase("cat", vector), Phrase("dog")]])
    scene = cw.shown_in([("cat", (4, 4, 30, 30)), ("cat", (32, 4, 60, 30)), ("teddy bear", (0, 40, 20, 60)), ("bird", (40, 40, 50, 50))])
    targets = cw.class_word_targets(prompt, [names], [2], [scene], [1])
    assert targets.real.tolist() == [[True] * 3], "a bird is not asked for"
    assert lit(targets, prompt, 0, 0) == {(TEXT, 1), (TEXT, 2), (EXEMPLAR, 2)}
    assert lit(targets, prompt, 0, 1) == {(TEXT, 1), (TEXT, 2)}, "another one of the class is none of the exemplars"
    assert lit(targets, prompt, 0, 2) == {(TEXT, 0)}
    assert np.allclose(to_xyxy(targets.boxes[0, 0][None].numpy(), 64, 64), [[34, 4, 60, 30]], atol=1e-4), "mirrored, as the picture"
    nobody = cw.class_word_targets(prompt, [names], [-1], [scene], [0])
    assert lit(nobody, prompt, 0, 0) == {(TEXT, 1), (TEXT, 2)}, "its words are lit, whoever is asked for"


def test_without_others_of_its_class_a_source_is_taught_as_published(phase_data, sources):
    alone = [cw.shown_in([source]) for source in sources]
    batch = cw.class_word_batches(phase_data, alone, NAMES, 16)(np.random.default_rng(0))
    published = phase1_batches(phase_data, NAMES, 16)(np.random.default_rng(0))
    assert torch.equal(batch.features, published.features)
    assert torch.allclose(batch.targets.boxes, published.targets.boxes)
    for i in range(16):
        assert {k for k, _ in lit(batch.targets, batch.prompt, i, 0)} == {TEXT, EXEMPLAR}


def test_names_of_what_a_picture_shows_are_not_told_as_absent(phase_data, shown):
    batch = cw.class_word_batches(phase_data, shown, NAMES, 64, other_names=4)(np.random.default_rng(0))
    cat = build_prompt([[Phrase("cat")]]).text[0, 0]
    for i in range(64):
        if any(torch.equal(word, cat) for word in batch.prompt.text[i]):
            on = batch.targets.tokens[i].any(0)
            assert any(torch.equal(word, cat) for word in batch.prompt.text[i][on]), "a cat is in every picture"


def test_a_rivals_exemplar_is_lit_on_nothing(phase_data, shown):
    batch = cw.class_word_batches(phase_data, shown, NAMES, 64, rivals=2, absent=0.5)(np.random.default_rng(0))
    exemplars = ((batch.prompt.kind == EXEMPLAR)[:, None] & batch.targets.tokens.bool()).sum((1, 2))
    own = (batch.prompt.kind == EXEMPLAR).sum(1) == 3
    assert set(exemplars[own].tolist()) == {1} and set(exemplars[~own].tolist()) == {0}
    assert 16 < int(own.sum()) < 48
    with pytest.raises(ValueError, match="needs rivals"):
        cw.class_word_batches(phase_data, shown, NAMES, 4, absent=0.5)


def test_training_moves_all_but_f(tiny, phase_data, shown, tmp_path):
    settings = TrainSettings(steps=3, batch_size=2, warmup=0, learning_rate=1e-2, log_every=1, checkpoint_every=1)
    before = {name: p.clone() for name, p in tiny.named_parameters()}
    rows, looks = cw.watched_phase1(tiny, phase_data, shown, NAMES, settings, Watch(lambda model: {"asked": 1}, 2, tmp_path))
    moved = {name for name, p in tiny.named_parameters() if not torch.equal(p, before[name])}
    assert "exemplar_projection.weight" in moved and not [n for n in moved if n.startswith(("score_head.region", "score_head.token"))]
    assert all(np.isfinite(row["loss"]) for row in rows) and [look["step"] for look in looks] == [0, 2, 3]


def test_the_photos_of_rendered_pairs_are_known_again():
    world = CompanionWorld(ROOT / "data/world", 1.0)
    pairs = rendered_pairs(world, 4, 2, 0)
    shown = cw.shown_in_pairs(world, pairs, 0)
    assert len(shown) == 4 and sum(len(s.names) == 2 for s in shown) >= 3
    for image, name, boxes in zip(pairs.source, pairs.names, pairs.boxes.swapaxes(0, 1)):
        assert set(shown[image].names) == {name} and np.allclose(shown[image].boxes[:, 0], boxes, atol=1e-5)
    with pytest.raises(ValueError, match="source lies elsewhere"):
        cw.shown_in_pairs(CompanionWorld(ROOT / "data/world", 0.0), pairs, 0)


def test_of_a_split_every_thing_is_known_and_a_source_by_the_box_that_is_taught(tmp_path):
    toy = toy_dataset(tmp_path, per_class=1)
    first = toy.samples["train"][0]
    moved = tuple(replace(s, exemplar_box=(1.0, 2.0, 30.0, 40.0)) if s.exemplar_file == first.exemplar_file else s for s in toy.samples["train"])
    toy = replace(toy, samples={**toy.samples, "train": moved})
    for image, shown in zip(toy.gallery["train"], cw.shown_in_split(toy, "train")):
        assert sorted(shown.names) == sorted(o.class_name for o in image.objects)
        if image.file == first.exemplar_file:
            assert shown.names[0] == first.class_name
            assert np.allclose(to_xyxy(shown.boxes[0, :1], 64, 64), [[1, 2, 30, 40]], atol=1e-4)
