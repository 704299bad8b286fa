"""What studies do to a training picture, and that they do it nowhere else."""

import numpy as np
import pytest

from ard import alterations as al
from ard.counterfactuals import covered

PICTURE = np.random.default_rng(0).integers(1, 255, (16, 20, 3), np.uint8)
BOX = (4.0, 3.0, 16.0, 12.0)


def rng():
    return np.random.default_rng(5)


def test_gaussian_noise_has_its_deviation_and_grows_along_one_pattern():
    grey = np.full((200, 200, 3), 128, np.uint8)
    weak, strong = (al.gaussian_noise(grey, value, rng()).astype(float) - 128 for value in (0.05, 0.1))
    assert weak.std() == pytest.approx(0.05 * 255, rel=0.02) and abs(weak.mean()) < 0.2
    assert np.abs(strong - 2 * weak).max() <= 2
    assert (al.gaussian_noise(PICTURE, 0, rng()) == PICTURE).all()
    assert al.gaussian_noise(PICTURE, 5, rng()).dtype == np.uint8


def test_salt_and_pepper_touch_their_share_of_pixels_half_each_and_more_of_the_same_with_more():
    grey = np.full((200, 200, 3), 128, np.uint8)
    some, more = al.salt_and_pepper(grey, 0.1, rng()), al.salt_and_pepper(grey, 0.3, rng())
    for picture, share in ((some, 0.1), (more, 0.3)):
        assert (picture == 0).all(-1).mean() == pytest.approx(share / 2, abs=0.01)
        assert (picture == 255).all(-1).mean() == pytest.approx(share / 2, abs=0.01)
        assert set(np.unique(picture)) == {0, 128, 255}
    assert (more == some)[some != 128].all()
    assert (al.salt_and_pepper(grey, 0, rng()) == grey).all() and (al.salt_and_pepper(grey, 1, rng()) != 128).all()


@pytest.mark.parametrize(("bars", "share"), [(1, 0.5), (3, 0.5), (2, 0.25)])
def test_bars_hide_their_share_of_a_box_and_nothing_else(bars, share):
    out = al.fenced(PICTURE, BOX, bars, share)
    hidden, region = (out == al.BAR).all(-1), covered(BOX, *PICTURE.shape[:2])
    assert (out[~hidden] == PICTURE[~hidden]).all() and not hidden[~region].any()
    assert hidden[region].mean() == pytest.approx(share, abs=1 / 12)
    row = hidden[5, 4:16].astype(int)
    assert (np.diff(np.concatenate([[0], row, [0]])) == 1).sum() == bars, "as many bars as were asked for"
    assert (hidden[3:12, 4:16] == row.astype(bool)).all(), "upright, over the whole height"


def test_upside_down_turns_the_box_alone_and_twice_is_as_before():
    out, mask = al.upside_down(PICTURE, BOX), PICTURE[..., 0] > 128
    region = covered(BOX, *PICTURE.shape[:2])
    assert (out[~region] == PICTURE[~region]).all() and (al.upside_down(out, BOX) == PICTURE).all()
    assert (out[3, 4] == PICTURE[11, 15]).all() and (out[11, 15] == PICTURE[3, 4]).all()
    assert (al.upside_down(mask, BOX) == (out[..., 0] > 128)).all(), "a mask turns with its picture"


def test_mending_makes_sound_what_the_box_touches_and_leaves_the_rest():
    faulty = 255 - PICTURE
    out, region = al.mended(faulty, PICTURE, (4.5, 3.0, 9.0, 8.5)), covered((4.5, 3.0, 9.0, 8.5), *PICTURE.shape[:2])
    assert (out[region] == PICTURE[region]).all() and (out[~region] == faulty[~region]).all()
    assert (al.mended(faulty, PICTURE, (-9.0, -9.0, 99.0, 99.0)) == PICTURE).all()
    with pytest.raises(ValueError, match="touches no pixel of a picture of 20 x 16"):
        al.mended(faulty, PICTURE, (30.0, 3.0, 40.0, 8.0))
