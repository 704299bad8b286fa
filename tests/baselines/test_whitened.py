"""The row of whitened regions: pairs look alike under its map, crops of any size have region vectors."""

from types import SimpleNamespace

import numpy as np
import torch

from ard.baselines import whitened
from ard.baselines.cosine import same, unit
from ard.detector.features import REGION, image_features, region_vectors


def test_what_changes_within_pairs_counts_for_less():
    rng = np.random.default_rng(0)
    who, loud = rng.normal(size=(40, 30)), np.linalg.qr(rng.normal(size=(30, 8)))[0].T

    def seen(owner):
        return (who[owner] + 6 * rng.normal(size=(len(owner), 8)) @ loud).astype(np.float32)

    def right(mapped):
        return (unit(mapped(queries)) @ unit(mapped(photos)).T).argmax(1) == np.arange(40)

    photos, queries, owner = seen(np.arange(40)), seen(np.arange(40)), np.repeat(np.arange(40), 4)
    learned = whitened.whitening(photos[None], seen(owner)[None], owner, 0.1)
    assert right(lambda x: x).mean() < 0.5 < 0.9 < right(learned).mean()


def test_a_crop_s_region_is_the_whole_of_it():
    pictures = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    whole = region_vectors(image_features(pictures), torch.tensor([[0.0, 0.0, 64.0, 64.0]] * 2)).numpy()
    assert np.allclose(whitened.crop_regions(list(pictures)), whole, atol=1e-3)
    assert whitened.crop_regions([pictures[0][:20, :9], pictures[1][:50]]).shape == (2, REGION)


def test_its_own_threshold_goes_before_that_of_all_class_filters():
    for told, wanted in (({}, "as for all"), ({"threshold": 0.3}, ("from", 0.3))):
        kit = SimpleNamespace(settings={"whitened": told}, proposals="as for all", proposals_at=lambda least: ("from", least))
        assert whitened.build(kit).ranker(same).proposals == wanted
