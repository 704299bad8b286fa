"""What only ablations change: each does what its name says, and the default is what the main job does."""

import numpy as np
import pytest
import torch

from ard.detector.features import FeatureCache, region_vectors
from ard.detector.method import DetectorMethod
from ard.detector.phases import FLIPS, phase1_batches, phase2_batches, query_vectors
from ard.detector.prompts import EXEMPLAR, TEXT, Phrase, build_prompt
from ard.detector.variants import Variant, VariantMethod, fuse_late, pool_grids, variant_queries
from ard.geometry import box_iou
from tests.detector.conftest import NAMES


def test_a_wrong_choice_is_named():
    with pytest.raises(ValueError, match="negatives: expected one of mixed, any, same, constant, mined, found 'hard'"):
        Variant(negatives="hard")


def test_the_default_asks_as_the_main_job_does(tiny, dataset, phase_data):
    query = dataset.query(dataset.samples["val"][0])
    ours, plain = VariantMethod(tiny, Variant()).prompt(query), DetectorMethod(tiny).prompt(query)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain))
    assert Variant().data(phase_data).queries is phase_data.queries


def test_the_released_box_stays_behind(dataset):
    boxes = np.array([[8.0, 16, 40, 56], [0, 0, 64, 64], [30, 4, 60, 30]])
    wrong = [Variant(query_box="released").boxes(flip, boxes) for flip in FLIPS]
    assert np.allclose(wrong[0], boxes * 0.64) and np.array_equal(*wrong), "neither enlarged nor mirrored with the picture"
    assert np.diag(box_iou(wrong[0], boxes)).max() < 0.5
    assert np.allclose(Variant().boxes(FLIPS[1], boxes)[:, 0], 64 - boxes[:, 2])


def test_training_and_asking_read_the_same_wrong_place(tiny, dataset):
    cache, variant = FeatureCache(), Variant(query_box="released")
    read = variant_queries(dataset, "val", cache, variant)
    assert not torch.equal(read, query_vectors(dataset, dataset.samples["val"], cache))
    prompt = VariantMethod(tiny, variant, cache).prompt(dataset.query(dataset.samples["val"][0]))
    assert torch.allclose(prompt.exemplar[prompt.kind == EXEMPLAR][0], read[0, 0].float(), atol=0.01)


def test_pooling_keeps_means_and_forgets_places(toy):
    vectors = region_vectors(toy[3], torch.from_numpy(toy[1]))
    pooled = pool_grids(vectors)
    first, mean = vectors[:, :9], pooled[:, :9]
    assert torch.allclose(mean, first.mean(1, keepdim=True).expand(-1, 9)) and pooled.shape == vectors.shape
    assert torch.equal(pooled[:, -320:], vectors[:, -320:]), "maps read with one cell stay"
    assert torch.allclose(pool_grids(pooled), pooled, atol=1e-6)


def test_parts_of_a_phrase(tiny, dataset):
    query = dataset.query(dataset.samples["val"][0])
    kinds = {parts: set(VariantMethod(tiny, Variant(parts=parts)).prompt(query).kind.flatten().tolist())
             for parts in ("both", "text", "exemplar")}
    assert EXEMPLAR not in kinds["text"] and TEXT not in kinds["exemplar"] and {TEXT, EXEMPLAR} <= kinds["both"]


@pytest.mark.parametrize("make", [lambda d, told: phase1_batches(d, NAMES, 8, rivals=1, **told),
                                  lambda d, told: phase2_batches(d, 4, 2, **told)])
def test_the_exemplar_can_be_trained_as_background(phase_data, make):
    for variant, wanted in ((Variant(), {TEXT, EXEMPLAR}), (Variant(exemplar_target=False), {TEXT})):
        batch = make(phase_data, variant.told)(np.random.default_rng(0))
        lit = batch.targets.tokens[:, 0].bool()
        assert set(batch.prompt.kind[lit].tolist()) == wanted


def test_before_the_fused_layers_image_and_query_do_not_meet(tiny, toy):
    model = type(tiny)(type(tiny.config)(**{**tiny.config.to_dict(), "encoder_layers": 3})).eval()
    features, exemplar = toy[3][:2], region_vectors(toy[3], torch.from_numpy(toy[1]))[0]
    prompts = [build_prompt([[Phrase(name, exemplar)]] * 2) for name in ("cat", "dog")]

    def entering():
        """Image features entering each encoder layer, for both prompts."""
        seen = []
        hooks = [layer.register_forward_pre_hook(lambda m, a, kw: seen.append(kw["vision_features"]), with_kwargs=True)
                 for layer in model.model.encoder.layers]
        with torch.no_grad():
            logits = [model.match(features, prompt).logits for prompt in prompts]
        for hook in hooks:
            hook.remove()
        return [torch.equal(a, b) for a, b in zip(seen[:3], seen[3:])], logits

    assert entering()[0] == [True, False, False]
    fuse_late(model, 0)
    assert entering()[0] == [True, False, False], "0 leaves all"
    fuse_late(model, 1)
    equal, logits = entering()
    assert equal == [True, True, True] and not torch.equal(*logits), "they meet in the last layer"
    with pytest.raises(ValueError, match="at most 3, found 4"):
        fuse_late(model, 4)
