import copy
import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch

from ard.detector import phases as ph
from ard.detector.criterion import SETTINGS as WEIGHTS, set_loss
from ard.detector.features import FeatureCache, image_features, region_vectors
from ard.detector.prompts import EXEMPLAR, Phrase, TEXT
from ard.detector.train import TrainSettings
from ard.files import FileError
from ard.geometry import to_cxcywh
from ard.validation import changed
from tests.detector.conftest import NAMES
from tests.toy_attribution import toy_dataset

SETTINGS = TrainSettings(steps=3, batch_size=2, warmup=0, learning_rate=1e-2, log_every=1, checkpoint_every=1)


def test_phase1_trains_all_but_the_adapters(tiny, phase_data, tmp_path):
    before = copy.deepcopy(tiny)
    ph.train_phase1(tiny, phase_data, NAMES, SETTINGS, tmp_path)
    names = changed(before, tiny)
    assert "exemplar_projection.weight" in names and not [
        n for n in names if n.startswith(("score_head.region", "score_head.token"))
    ]


def test_phase2_trains_only_the_adapters(tiny, phase_data, tmp_path):
    before = copy.deepcopy(tiny)
    rows = ph.train_phase2(tiny, phase_data, SETTINGS, tmp_path)
    assert changed(before, tiny) == {f"score_head.{m}.{p}" for m in ("region", "token") for p in ("weight", "bias")}
    assert tiny.config.adapters and all(np.isfinite(row["loss"]) for row in rows)
    assert rows[0]["orthogonality"] < 1e-5 < rows[-1]["orthogonality"]


def test_gradients_are_finite_at_the_identity():
    identity = torch.eye(8, requires_grad=True)
    value = ph.orthogonality(identity)
    value.backward()
    assert float(value) < 1e-5 and torch.isfinite(identity.grad).all()
    raw = torch.eye(8, requires_grad=True)
    ((raw @ raw.T - torch.eye(8)).square().sum().sqrt()).backward()
    assert not torch.isfinite(raw.grad).all(), "the un-squared norm of eq. 3 is 0/0 here"


def test_orthogonality_is_the_frobenius_norm():
    matrix = torch.randn(5, 5)
    assert torch.isclose(ph.orthogonality(matrix), torch.linalg.norm(matrix @ matrix.T - torch.eye(5)), rtol=1e-5)


def test_negatives_are_fresh_never_the_source_and_half_of_the_class(phase_data):
    rng = np.random.default_rng(0)
    draws = [ph.draw_negatives(rng, phase_data, 0, 4) for _ in range(30)]
    for draw in draws:
        assert len(set(draw)) == 4 and 0 not in draw
        assert sum("cat" in phase_data.shown[g] for g in draw) >= 2
    assert len({tuple(d) for d in draws}) > 20


def test_phase1_batch_moves_box_and_image_together(phase_data):
    batch = ph.phase1_batches(phase_data, NAMES, 16)(np.random.default_rng(0))
    for features, box in zip(batch.features, batch.targets.boxes[:, 0]):
        flip, image = next(
            (f, g) for f in range(2) for g in range(12) if torch.equal(phase_data.gallery[f, g], features)
        )
        assert np.allclose(box, phase_data.boxes[flip, image], atol=1e-6)


def test_phase1_lights_phrase_and_exemplar_and_avoids_shown_classes(phase_data):
    batch = ph.phase1_batches(phase_data, NAMES, 16, rivals=1)(np.random.default_rng(0))
    kinds = [set(kind[lit.bool()].tolist()) for kind, lit in zip(batch.prompt.kind, batch.targets.tokens[:, 0])]
    assert all(k == {TEXT, EXEMPLAR} for k in kinds)
    assert ((batch.prompt.kind == EXEMPLAR).sum(1) == 2).all(), "its own exemplar and one rival's"


def test_phase2_batch_has_targets_on_positives_only(phase_data):
    batch = ph.phase2_batches(phase_data, 3, k=4)(np.random.default_rng(0))
    assert batch.targets.real[:, 0].tolist() == ([True] + [False] * 4) * 3
    assert torch.equal(batch.prompt.exemplar[0], batch.prompt.exemplar[4]), "negatives are asked the same query"


def test_mirrored_queries_use_mirrored_boxes(phase_data, toy):
    boxes = toy[1]
    mirrored = np.stack([64 - boxes[:, 2], boxes[:, 1], 64 - boxes[:, 0], boxes[:, 3]], 1)
    assert torch.allclose(
        phase_data.queries[1].float(), region_vectors(phase_data.gallery[1], torch.from_numpy(mirrored)), atol=0.05
    )


def test_captions_of_rivals_alone_want_nothing(phase_data):
    batch = ph.phase1_batches(phase_data, NAMES, 64, rivals=2, absent=0.5)(np.random.default_rng(0))
    exemplars = (batch.prompt.kind == EXEMPLAR).sum(1)
    wanted = batch.targets.real.any(1)
    assert torch.equal(wanted, exemplars == 3) and torch.equal(~wanted, exemplars == 2)
    assert 15 < int(wanted.sum()) < 49
    assert not batch.targets.tokens[~wanted].any()


def test_leaving_out_the_own_phrase_needs_rivals(phase_data):
    with pytest.raises(ValueError, match="rivals"):
        ph.phase1_batches(phase_data, NAMES, 4, absent=0.5)


def test_another_phase_2_is_not_taken_for_the_one_that_was_killed(tiny, phase_data, tmp_path):
    ph.train_phase2(copy.deepcopy(tiny), phase_data, SETTINGS, tmp_path, k=2)
    for changed_setting in ({"k": 3}, {"k": 2, "lambda_reg": 50.0}, {"k": 2, "negatives": "any"}):
        with pytest.raises(FileError, match="other recipe"):
            ph.train_phase2(copy.deepcopy(tiny), phase_data, SETTINGS, tmp_path, **changed_setting)


def test_a_box_outside_of_its_picture_is_named_and_moves_no_other():
    with pytest.raises(ValueError, match=r"64.0, 0.0, 80.0, 20.0.*outside"):
        ph.moved_boxes(ph.FLIPS[1], np.array([[0.0, 0, 9, 9], [64, 0, 80, 20], [10, 10, 20, 20]]))


def test_two_exemplars_in_one_picture_are_refused(tmp_path):
    dataset = toy_dataset(tmp_path)
    samples = dataset.samples["train"]
    other = next(s for s in samples if s.concept_id != samples[0].concept_id)
    with pytest.raises(ValueError, match="expected one exemplar in a picture"):
        ph.one_source([samples[0], dataclasses.replace(other, exemplar_file=samples[0].exemplar_file)])


@pytest.mark.parametrize("lambda_cls, lambda_reg", [(1.0, 0.0), (0.0, 0.5), (2.0, 3.0)])
def test_phase2_minimises_eq_2_and_3(phase_data, with_likeness, lambda_cls, lambda_reg):
    batch, settings = ph.phase2_batches(phase_data, 2, 2)(np.random.default_rng(0)), TrainSettings(steps=1)
    found, log = ph.phase2_loss(settings, lambda_cls, lambda_reg)(with_likeness, batch)
    with torch.no_grad():
        match = with_likeness.match(batch.features, batch.prompt, adapted=True)
    main = set_loss(match.logits, match.layer_boxes[:, -1], batch.targets, WEIGHTS[settings.losses], 2.0)["class"]
    gaps = [torch.linalg.norm(m @ m.T - torch.eye(len(m))) for m in (with_likeness.score_head.region.weight, with_likeness.score_head.token.weight)]
    assert match.likeness.abs().max() > 0.1 and float(main) == pytest.approx(log["class"], rel=1e-3)
    assert float(found) == pytest.approx(lambda_cls * float(main) + lambda_reg / 2 * float(sum(gaps)), rel=1e-3)


def mirrored(boxes):
    boxes = np.asarray(boxes, float)
    return np.stack([64 - boxes[:, 2], boxes[:, 1], 64 - boxes[:, 0], boxes[:, 3]], 1)


def test_phase_data_is_the_dataset_as_it_is_and_mirrored(dataset):
    """Also of chosen samples in another order than the gallery's."""
    samples = dataset.samples["train"][::-1]
    data, x = ph.load_phase_data(dataset, "train", FeatureCache(), samples), [s.exemplar_box for s in samples]
    assert np.allclose(data.boxes, [to_cxcywh(np.array(x), 64, 64), to_cxcywh(mirrored(x), 64, 64)])
    for picture, boxes, gallery, queries in ((lambda p: p, lambda b: b, *[t[0] for t in (data.gallery, data.queries)]),
                                             (lambda p: p[:, ::-1].copy(), mirrored, *[t[1] for t in (data.gallery, data.queries)])):
        shown = image_features(np.stack([picture(dataset.pixels(s.exemplar_file)) for s in samples]))
        assert torch.allclose(gallery[torch.from_numpy(data.source)].float(), shown.float(), atol=0.05)
        asked = image_features(np.stack([picture(dataset.pixels(s.query_file)) for s in samples]))
        vectors = region_vectors(asked, torch.from_numpy(boxes(np.array([s.query_box for s in samples]))))
        assert torch.allclose(queries.float(), vectors, atol=0.1)
    assert data.names == tuple(s.class_name for s in samples) and data.shown[data.source[0]] == {samples[0].class_name}


def test_what_a_picture_shows_is_never_asked_for_as_if_it_were_not_there(phase_data, monkeypatch):
    seen, build = [], ph.build_prompt
    monkeypatch.setattr(ph, "build_prompt", lambda captions: seen.extend(captions) or build(captions))
    also = replace(phase_data, shown=tuple(s | {"teddy bear"} for s in phase_data.shown))
    ph.phase1_batches(also, NAMES, 64)(np.random.default_rng(0))
    others = [p.name for caption in seen for p in caption if p.exemplar is None]
    assert {"cat", "dog", "bear"} == set(others) and len(seen) == 64


def test_a_rival_was_learned_from_another_picture(phase_data):
    """Two queries of each picture, asked among those of their class."""
    pairs = np.arange(12) // 2 * 2
    data, asked = replace(phase_data, source=pairs, names=tuple(NAMES[i // 2 % 2] for i in range(12))), []

    def phrase(name, vector):
        [(_, row)] = [(f, r) for f in range(2) for r in range(12) if torch.equal(phase_data.queries[f, r].float(), vector)][:1]
        asked.append(row)
        return Phrase(name, vector)

    ph.phase1_batches(data, NAMES, 64, other_names=0, rivals=1, phrase=phrase)(np.random.default_rng(0))
    own, rivals = np.array(asked[::2]), np.array(asked[1::2])
    assert len(own) == len(rivals) == 64 and (pairs[own] != pairs[rivals]).all()


def test_phase2_moves_box_and_picture_together_and_mirrors_negatives_too(phase_data):
    batch = ph.phase2_batches(phase_data, 24, k=2)(np.random.default_rng(0))
    where = [next((f, g) for f in range(2) for g in range(12) if torch.equal(phase_data.gallery[f, g], one)) for one in batch.features]
    for (flip, image), box in list(zip(where, batch.targets.boxes[:, 0]))[::3]:
        assert np.allclose(box, phase_data.boxes[flip, image], atol=1e-6)
    assert {f for f, _ in where[::3]} == {f for i, (f, _) in enumerate(where) if i % 3} == {0, 1}
