"""The published form as stages ask it: opened from wherever its weights are, boxes in the picture's own pixels, both phases from one
pass, each picture encoded once."""

import copy

import numpy as np
import pytest
import torch
from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

from ard.config import ConfigError
from ard.detector import published_method as pm
from ard.detector.attribute import Attributor
from ard.detector.convert import to_official
from ard.detector.processor import AttributionProcessor
from ard.detector.published import AttributionDetector
from ard.files import FileError
from ard.records import Gallery, GalleryImage
from ard.validation import changed
from tests.detector.official import SMALL, small_config
from tests.toy_attribution import ROOT, toy_dataset

PROCESSOR = AttributionProcessor(96, 160)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    model = AttributionDetector(small_config())
    with torch.no_grad():
        model.score_head.region.weight.add_(0.1 * torch.randn_like(model.score_head.region.weight))
    model.set_adapters(True)
    return model.eval()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return toy_dataset(tmp_path_factory.mktemp("toy"), per_class=1)


def test_it_opens_from_a_folder_of_ours_from_transformers_and_from_sizes(detector, tmp_path):
    detector.save_pretrained(tmp_path / "ours")
    assert not changed(detector, pm.open_detector(tmp_path / "ours")) and pm.open_detector(str(tmp_path / "ours")).config.adapters
    small = small_config()
    source = GroundingDinoForObjectDetection(GroundingDinoConfig(backbone_config=small.backbone_config, text_config=small.text_config, **SMALL))
    source.save_pretrained(tmp_path / "theirs")
    opened, theirs = pm.open_detector(tmp_path / "theirs"), dict(source.named_parameters())
    name = "model.input_proj_vision.0.0.weight"
    assert torch.equal(opened.get_parameter(name), theirs[name])
    assert not changed(opened, pm.open_detector(tmp_path / "theirs")), "what it does not have comes of the seed"
    assert changed(opened, pm.open_detector(tmp_path / "theirs", 1)) == {"exemplar_projection.weight"}
    sizes = {key: value for key, value in small.to_diff_dict().items() if key in (*SMALL, "backbone_config", "text_config")}
    once, again, other = (pm.open_detector(sizes, seed) for seed in (1, 1, 2))
    assert not changed(once, again) and changed(once, other)
    with pytest.raises(ConfigError, match="no setting 'd_modle'"):
        pm.open_detector({"d_modle": 32})


def test_an_official_checkpoint_says_its_size_itself(detector, tmp_path, monkeypatch):
    plain = copy.deepcopy(detector)
    with torch.no_grad():
        plain.score_head.region.weight.copy_(torch.eye(len(plain.score_head.region.weight)))
    torch.save({"model": to_official(plain)}, tmp_path / "official.pth")
    with pytest.raises(FileError, match="official.pth: neither Swin-T or Swin-B"):
        pm.open_detector(tmp_path / "official.pth")
    monkeypatch.setattr(pm, "WIDTHS", dict(zip(pm.WIDTHS, ({16: "T"}, {48: "B"}))))
    asked = []
    monkeypatch.setattr(pm, "published_config", lambda size: asked.append(size) or small_config())
    assert not changed(plain, pm.open_detector(tmp_path / "official.pth")) and asked == ["T-B"]


def test_the_finder_answers_in_the_pixels_of_the_picture(detector, tmp_path):
    detector.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (48, 80, 3), dtype=np.uint8)
    boxes, scores = pm.class_finder(tmp_path, 0.0, PROCESSOR)(picture, "cat")
    assert len(boxes) == len(scores) > 0 and (np.diff(scores) <= 0).all()
    assert boxes.min() >= 0 and (boxes <= [80, 48, 80, 48]).all()
    seen = PROCESSOR(picture).image  # what the detector sees of it, twice as large, is the same question
    assert seen.shape == (96, 160, 3) and np.allclose(pm.class_finder(tmp_path, 0.0, PROCESSOR)(seen, "cat")[0], 2 * boxes, atol=1e-3)
    none, _ = pm.class_finder(tmp_path, 1.1, PROCESSOR)(picture, "cat")
    assert none.shape == (0, 4)


def test_the_finder_of_the_mini_world_is_the_one_of_the_main_job(dataset):
    picture = dataset.pixels(dataset.gallery["test"][0].file)
    here, there = (find(picture, "bear") for find in (pm.class_finder(ROOT / "data/models/open_set", 0.01, PROCESSOR),
                                                      pm.finder(ROOT / "data/models/open_set", 0.01)))
    assert np.array_equal(here[0], there[0]) and len(here[0])


def test_one_pass_answers_for_both_phases_and_each_picture_is_encoded_once(detector, dataset, monkeypatch):
    seen = []
    real = AttributionDetector.encode_image
    monkeypatch.setattr(AttributionDetector, "encode_image", lambda self, pictures: seen.append(len(pictures.sizes)) or real(self, pictures))
    method, gallery = pm.PublishedMethod(detector, PROCESSOR), dataset.open_gallery("test")
    first, second = (dataset.query(s) for s in dataset.samples["test"][:2])
    both = method.rank_both(first, gallery)
    assert method.rank(first, gallery) == both["ARD"] != both["ARD-"]
    method.rank_both(second, gallery)
    assert sum(seen) == len(gallery)
    attributor = Attributor(detector, PROCESSOR)
    answer = attributor.attribute(first.image, first.sample.query_box, first.sample.class_name,
                                  {image.image_id: gallery.pixels(image) for image in gallery}, top_k=9)
    assert list(answer.found) == sorted(both["ARD"], key=lambda a: (-a.score, a.image_id))


def test_another_gallery_is_encoded_anew(detector, dataset):
    method, query = pm.PublishedMethod(detector, PROCESSOR), dataset.query(dataset.samples["test"][0])
    one = Gallery(dataset.gallery["test"][:1], dataset.pixels)
    other = Gallery([GalleryImage(dataset.gallery["test"][1].file, "other", ())], dataset.pixels)
    assert [[a.image_id for a in method.rank(query, g)] for g in (one, other)] == [[one[0].image_id], ["other"]]
