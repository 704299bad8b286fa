"""Views of gallery pictures, and how much better G_i knows them than the generator that never saw X."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from ard.baselines.denoising import denoising_losses, even_probe, text_states
from ard.baselines.leave_one_out import ENTRIES, LeaveOneOut, LeaveOneOutConfig
from ard.baselines.views import Encoded, framed_boxes, plain_prompt, rises, strongest, whole
from ard.customize import encode
from ard.records import Attribution, Gallery, GalleryImage, Query
from tests.baselines.test_abu import pictures, pipe, sample  # noqa: F401
from tests.tiny_pipeline import tiny_pipeline

CONFIG = LeaveOneOutConfig(times=2)


def gallery_of(pictures, count=3):
    return Gallery([GalleryImage(f"{i}.png", str(i), (), 32, 32) for i in range(count)], lambda file: pictures[int(file[0])])


def test_a_picture_is_seen_as_it_is_and_mirrored(pictures):
    gallery = gallery_of(pictures)
    (first, plain), (second, mirrored) = whole(next(iter(gallery)), sample(), gallery)
    assert first is second is None and np.array_equal(plain, pictures[0]) and np.array_equal(mirrored[:, ::-1], plain)


def test_a_box_is_brought_to_the_middle_wherever_it_stood():
    seen = []
    for left, top in ((0, 0), (40, 20)):
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[top : top + 16, left : left + 16] = 255
        gallery = Gallery([GalleryImage("0.png", "0", ())], lambda file: picture)
        box = (left + 0.2, top + 0.3, left + 15.9, top + 15.8)
        [(found, view)] = framed_boxes(lambda image_id, name: np.array([box]), 0.25)(next(iter(gallery)), sample(), gallery)
        assert found == box and view[16:48, 16:48].mean() > 240, "half of each side, in the middle"
        seen.append(view)
        outer = framed_boxes(lambda image_id, name: np.array([(left, top, left + 16, top + 16)]), 0.25)
        assert np.array_equal(view, outer(next(iter(gallery)), sample(), gallery)[0][1]), "a pixel that a box touches is in it"
    assert seen[1][:12].max() == 0 and seen[1][18:46, 18:46].min() == seen[0][18:46, 18:46].min() == 255
    none = framed_boxes(lambda image_id, name: np.zeros((0, 4)), 0.25)
    assert none(next(iter(gallery)), sample(), gallery) == []


@pytest.mark.parametrize("box", [(60.0, 60.0, 64.0, 64.0), (-3.0, -3.0, 2.0, 2.0), (63.2, 0.0, 63.4, 64.0)])
def test_boxes_at_the_edge_have_a_view(box):
    gallery = Gallery([GalleryImage("0.png", "0", ())], lambda file: np.zeros((64, 64, 3), np.uint8))
    [(_, view)] = framed_boxes(lambda image_id, name: np.array([box]), 0.39)(next(iter(gallery)), sample(), gallery)
    assert view.shape == (64, 64, 3)


def test_the_best_view_of_a_picture_is_its_answer_and_without_one_it_stands_last(pictures):
    box, other = (1.0, 1.0, 5.0, 5.0), (2.0, 2.0, 9.0, 9.0)
    found = strongest([(0, box), (0, other), (2, box)], torch.tensor([1.0, 3.0, -2.0]), gallery_of(pictures))
    assert found == [Attribution("0", other, 3.0), Attribution("1", None, float("-inf")), Attribution("2", box, -2.0)]


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite.*lower learning_rate"):
        rises(torch.zeros(1, 2), torch.tensor([[1.0, float("nan")]]))


def test_each_view_is_encoded_once(pipe, pictures):  # noqa: F811
    asked = []

    def views(image, s, gallery):
        asked.append((image.image_id, s.class_name))
        return whole(image, s, gallery) if image.image_id != "1" else []

    encoded, gallery = Encoded(views), gallery_of(pictures)
    owners, latents = encoded(pipe, sample(), gallery)
    assert [place for place, _ in owners] == [0, 0, 2, 2]
    seen = np.stack([pictures[0], pictures[0][:, ::-1], pictures[2], pictures[2][:, ::-1]])
    assert torch.allclose(latents, encode(pipe, seen), atol=1e-5)
    encoded(pipe, sample(), gallery)
    assert len(asked) == 3
    encoded(pipe, replace(sample(), class_name="dog"), gallery)
    assert asked[3:] == [("0", "dog"), ("1", "dog"), ("2", "dog")], "boxes are those of a class"


def test_it_is_the_base_generators_loss_less_that_of_g_i(tmp_path, pipe, pictures):  # noqa: F811
    torch.manual_seed(1)
    (tmp_path / "taught").mkdir()
    taught = tiny_pipeline(tmp_path / "taught")
    worn = []

    @contextmanager
    def wear(s):
        worn.append(s.concept_id)
        yield taught

    method, gallery = LeaveOneOut(pipe, wear, whole, CONFIG), gallery_of(pictures)
    found = method.rank(Query(sample(), pictures[0]), gallery)
    probe = even_probe(pipe, 2, 0)
    with torch.no_grad():
        for i, answer in enumerate(found):
            views = encode(pipe, np.stack([pictures[i], pictures[i][:, ::-1]]))
            without = denoising_losses(pipe, views, text_states(pipe, "A photo of a cat."), probe)
            known = denoising_losses(taught, views, text_states(taught, "A photo of a <v1> cat."), probe)
            assert answer.score == pytest.approx((without - known).mean(1).max().item(), abs=1e-5) and answer.box is None
    assert method.rank(Query(sample(1), pictures[3]), gallery) == found and worn == ["c0", "c0"], "Q is not read"
    fewer = method.rank(Query(sample(), pictures[0]), gallery_of(pictures, 2))
    assert [a.score for a in fewer] == pytest.approx([a.score for a in found[:2]], abs=1e-5), "another gallery is measured anew"


def test_without_any_box_all_stand_last(pipe, pictures):  # noqa: F811
    none = framed_boxes(lambda image_id, name: np.zeros((0, 4)), 0.39)
    found = LeaveOneOut(pipe, lambda s: nullcontext(pipe), none, CONFIG).rank(Query(sample(), pictures[0]), gallery_of(pictures))
    assert {a.score for a in found} == {float("-inf")}


def test_the_base_model_reads_no_new_word():
    for text, name, wanted in (("A photo of a <v1> elephant in a forest.", "elephant", "A photo of an elephant in a forest."),
                               ("A <v1> teddy bear is here.", "teddy bear", "A teddy bear is here."),
                               ("A photo of a cat.", "cat", "A photo of a cat.")):
        assert plain_prompt(text, name) == wanted


def test_rows():
    assert [e.name for e in ENTRIES] == ["leave one out (G_i)", "leave one out (G_i), region"]
    assert all("customised" in e.given and e.per_query for e in ENTRIES)
