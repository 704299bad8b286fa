import numpy as np
import pytest
import torch

from ard.detector import features as f
from ard.geometry import Transform


def test_packed_maps_have_the_declared_shapes(toy):
    maps = f.unpack(toy[3])
    assert [tuple(m.shape[1:]) for m in maps] == [(c, s, s) for c, s in f.LEVELS]
    assert toy[3].shape == (12, f.PACKED)


def test_region_vector_reads_the_box():
    """The average of a map over a box is the map's value where the map is constant inside the box."""
    packed = torch.zeros(1, f.PACKED)
    maps = f.unpack(packed)
    maps[1][:, :, 2:6, 2:6] = 5.0  # stride 16 of 128 pixels: 8 original pixels a cell
    packed = torch.cat([m.flatten(1) for m in maps], 1)
    start = 24 * 9 + 40 * 9
    inside = f.region_vectors(packed, torch.tensor([[24.0, 24, 40, 40]]))[0, start : start + 112]
    outside = f.region_vectors(packed, torch.tensor([[0.0, 0, 8, 8]]))[0, start : start + 112]
    assert torch.allclose(inside, torch.tensor(5.0)) and torch.allclose(outside, torch.tensor(0.0))


def test_region_moves_with_the_mirrored_image():
    """FACTS 1.7a: with the box moved, the mirrored region is far nearer to the original than with the box left
    behind."""
    box = np.array([[4.0, 20, 24, 40]])
    image = np.full((64, 64, 3), 128, np.uint8)
    image[20:40, 4:24] = (220, 40, 40)
    flip = Transform(64, 64).hflip()
    straight = f.region_vectors(f.image_features(image[None]), box)[:, -432:]
    mirrored = f.image_features(flip.image(image)[None])
    moved, left = (f.region_vectors(mirrored, b)[:, -432:] for b in (flip.boxes(box)[0], box))
    assert torch.dist(straight, moved) < 0.5 * torch.dist(straight, left)


def test_cache_runs_each_picture_once_and_survives_on_disk(tmp_path, toy, monkeypatch):
    images, features = toy[0], toy[3]
    first = f.FeatureCache(tmp_path)(images[[0, 1, 0]])
    assert torch.allclose(first.float(), features[[0, 1, 0]].float(), atol=0.05) and len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(f, "image_features", lambda images: pytest.fail("read it from the disk"))
    assert torch.equal(f.FeatureCache(tmp_path)(images[[0, 1, 0]]), first)


def test_batches_do_not_tell(toy):
    images = toy[0][:5]
    assert torch.allclose(f.image_features(images, 2).float(), f.image_features(images, 64).float(), atol=0.05)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="expected uint8 images"):
        f.image_features(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"expected xyxy boxes \(2, 4\) or \(2, N, 4\), found \(1, 4\)"):
        f.region_vectors(torch.zeros(2, f.PACKED), torch.zeros(1, 4))
