"""An image answers with all of its regions: words say that and where the class is, the likeness counts on average over there."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from ard.detector import score
from ard.detector.model import load_detector, save_detector
from ard.detector.pooling import pooled
from ard.detector.prompts import EXEMPLAR, Phrase, build_prompt
from ard.detector.readings import read
from ard.detector.tied import TiedGroundingDinoForObjectDetection

SOMEWHERE = torch.tensor([[10.0, 10, 30, 30], [11, 10, 31, 30], [10, 11, 30, 31], [12, 12, 16, 16], [40, 40, 60, 60]])


def ranked(*asked):
    return [found.ranked for found in read(*asked)]


def by_hand(words, likeness, boxes, temperature):
    """Score and box of one image, with loops."""
    def shares(logits):
        raised = [np.exp(x / temperature) for x in logits]
        return [x / sum(raised) for x in raised]

    mean = sum(s * np.exp(l) for s, l in zip(shares(words), likeness))
    logit = max(words) + np.log(mean)
    posterior = shares([w + l for w, l in zip(words, likeness)])
    overlap = [sum(p * float(box_iou(one[None], other[None])) ** 2 for p, other in zip(posterior, boxes)) for one in boxes]
    return 1 / (1 + np.exp(-logit)), boxes[int(np.argmax(overlap))]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_score_and_box_are_those_counted_by_hand(temperature):
    rng = torch.Generator().manual_seed(0)
    words, likeness = torch.randn(4, 5, generator=rng) * 2, torch.randn(4, 5, generator=rng) * 3
    scores, boxes = pooled(words, likeness, SOMEWHERE.expand(4, -1, -1), temperature)
    for i in range(4):
        wanted, box = by_hand(words[i].double().tolist(), likeness[i].double().tolist(), SOMEWHERE, temperature)
        assert float(scores[i]) == pytest.approx(wanted, rel=1e-4) and boxes[i].tolist() == box.tolist()


def test_a_lucky_part_neither_frames_nor_lifts_the_image_as_it_does_alone():
    words, likeness = torch.tensor([[3.0, 3, 3, 1, -6]]), torch.tensor([[0.0, 0, 0, 3.5, 0]])
    assert int((words + likeness).argmax()) == 3, "the part is the strongest region"
    part, box = pooled(words, likeness, SOMEWHERE[None], 2.0)
    none, _ = pooled(words, torch.zeros(1, 5), SOMEWHERE[None], 2.0)
    all_three, _ = pooled(words, torch.tensor([[3.5, 3.5, 3.5, 0, 0]]), SOMEWHERE[None], 2.0)
    assert box.tolist() == SOMEWHERE[:1].tolist() and none < part < all_three


def test_of_two_things_one_is_framed_and_not_both():
    boxes = torch.tensor([[[0.0, 0, 20, 20], [1, 0, 20, 20], [20, 0, 40, 20], [21, 0, 40, 20], [0, 0, 40, 20]]])
    _, box = pooled(torch.zeros(1, 5), torch.tensor([[0.5, 0.5, 0, 0, 0.4]]), boxes, 2.0)
    assert box.tolist() == [[0, 0, 20, 20]]


def test_near_temperature_0_the_likeness_of_the_surest_place_alone_counts():
    words, likeness = torch.tensor([[3.0, 2, 1, 0, -1]]), torch.tensor([[1.0, 4, 9, 2, 2]])
    found, _ = pooled(words, likeness, SOMEWHERE[None], 0.01)
    assert float(found.logit()) == pytest.approx(4.0, abs=1e-3)


def test_the_order_of_regions_does_not_matter_and_absent_words_do_no_harm():
    words, likeness = torch.tensor([[3.0, 2, -1e4, 1, -1e4]]), torch.tensor([[0.0, 1, 2, 3, 9]])
    turned = torch.tensor([4, 2, 0, 1, 3])
    first, second = (pooled(words[:, o], likeness[:, o], SOMEWHERE[None, o], 2.0) for o in (torch.arange(5), turned))
    assert torch.allclose(first[0], second[0]) and torch.equal(first[1], second[1]) and first[0].isfinite().all()


def test_a_temperature_that_is_none_is_refused():
    with pytest.raises(ValueError, match="pooling: expected a temperature above 0, found 0"):
        pooled(torch.zeros(1, 5), torch.zeros(1, 5), SOMEWHERE[None], 0)


@pytest.fixture
def asked(phase_data):
    """A query of one exemplar, and six pictures with their names."""
    query = build_prompt([[Phrase("cat", phase_data.queries[0, 0].float())]])
    return query, phase_data.gallery[0, :6], [str(i) for i in range(6)]


def test_a_detector_that_does_not_pool_ranks_by_its_strongest_regions(with_likeness, asked, threads):
    threads(1)  # as each part of a gallery has: two in one operation sum in another order
    for model in (with_likeness, TiedGroundingDinoForObjectDetection.of(with_likeness, 1.5)):
        assert ranked(model, *asked) == score.rank_variants(model, *asked)


def test_read_as_published_a_folder_that_says_so_does_not_pool(with_likeness, asked, threads, tmp_path):
    threads(1)
    folder = save_detector(TiedGroundingDinoForObjectDetection.of(with_likeness, 1.5, pooling=2.0), tmp_path / "tied")
    published = load_detector(folder)
    assert ranked(published, *asked) == score.rank_variants(published, *asked)


def test_ranking_pools_words_and_weighed_likeness_with_and_without_f(with_likeness, asked):
    model = TiedGroundingDinoForObjectDetection.of(with_likeness, 1.5, pooling=2.0)
    query, pictures, names = asked
    with torch.no_grad():
        model.score_head.region.weight.mul_(1.2)
        answers = ranked(model, *asked)
        for adapted, found in zip((False, True), answers):
            match = model.match(pictures, query.expand(6), adapted)
            logits, likeness = (part[..., query.kind[0] == EXEMPLAR][..., 0] for part in (match.logits, match.likeness))
            scores, boxes = pooled(logits - likeness, likeness, match.boxes, 2.0)
            assert np.allclose([a.score for a in found], scores, atol=1e-5) and [a.image_id for a in found] == names
            assert np.allclose([a.box for a in found], boxes, atol=1e-3)
    assert answers[0] != answers[1]


def test_pooling_needs_one_exemplar(with_likeness, asked, phase_data):
    model = TiedGroundingDinoForObjectDetection.of(with_likeness, pooling=2.0)
    for phrases, count in (([Phrase("cat")], 0), ([Phrase("cat", phase_data.queries[0, 0].float())] * 2, 2)):
        with pytest.raises(ValueError, match=f"expected a query of one exemplar, found {count}"):
            ranked(model, build_prompt([phrases]), *asked[1:])


def test_a_box_without_area_is_no_answer():
    boxes = torch.tensor([[[0.0, 0, 20, 20], [1, 0, 20, 20], [64, 30, 64, 40]]])
    assert pooled(torch.tensor([[4.0, 4, -8]]), torch.zeros(1, 3), boxes, 2.0)[1].tolist() == [[0, 0, 20, 20]]
