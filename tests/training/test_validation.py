"""Validation: the Dice of cases that are prepared once, or anew where memory is short."""

import shutil

import mindspore as ms
import numpy as np
import pytest
import SimpleITK as sitk

from src.data_manager import content_digest, find_cases, read_case
from src.predictor import segment
from src.training.validation import ValidationSet, prepare_case
from src.utils.errors import DataError
from tests.networks import bright

NAMES = ["Case0", "Case1", "Case2"]  # one of them oblique
GRID = ("VolSize=32,32,32", "dstRes=1.25,1.25,1.25")


def shifted(batch):
    """`bright`, one voxel to the side: a flip counts."""
    return ms.Tensor(np.roll(bright(batch).asnumpy(), 1, axis=1))


def dice_anew(case, config):
    """Reads the case, segments it on its image and counts voxels."""
    image, reference = read_case(case, config)
    mask, _ = segment(shifted, image, config)
    found, expected = (sitk.GetArrayFromImage(volume) == 1 for volume in (mask, reference))
    return 2 * np.count_nonzero(found & expected) / (found.sum() + expected.sum())


@pytest.mark.parametrize(
    ("kept", "flip_average"), [(0, "true"), (1, "true"), (3, "true"), (3, "false")]
)
def test_the_dice_is_the_same_whether_cases_are_kept_or_read_anew(
    data, small_config, flip_average, kept
):
    """Bit for bit, at the first validation and later; the bound is of bytes."""
    config = small_config(*GRID, f"flip_average={flip_average}")
    cases = find_cases(data, NAMES)
    expected = [dice_anew(case, config) for case in cases]
    assert min(expected) > 0.8 and expected[0] != expected[2]
    voxels = [26 * 24 * 12, 26 * 24 * 12, 30 * 22 * 10]
    budget_bytes = sum(4 * 32**3 + count for count in voxels[:kept])
    validation = ValidationSet(cases, config, budget_bytes)
    for _ in range(2):
        assert validation.mean_dice(shifted) == float(np.mean(np.float32(expected)))
    shutil.rmtree(data / "img")
    if kept == 3:
        assert validation.mean_dice(shifted) == float(np.mean(np.float32(expected)))
    else:
        with pytest.raises(DataError, match=NAMES[kept]):
            validation.mean_dice(shifted)


@pytest.mark.parametrize("kept", [0, 3])
def test_a_validation_moves_the_grid_as_a_prediction_does(data, small_config, kept):
    """On a grid so small that what it shows of each gland lies far from its centre."""
    config = small_config("VolSize=32,32,32", "dstRes=2,2,2", "recentre=true")
    cases = find_cases(data, NAMES)
    for case in cases:  # 40 mm to the side
        for path in (case.image_path, case.mask_path):
            volume = sitk.ReadImage(str(path))
            padded = sitk.ConstantPad(volume, [0, 0, 0], [80, 0, 0])
            sitk.WriteImage(padded, str(path))
    expected = [dice_anew(case, config) for case in cases]
    assert min(expected) > 0.8
    fixed = small_config("VolSize=32,32,32", "dstRes=2,2,2")
    assert max(dice_anew(case, fixed) for case in cases) < 0.8
    validation = ValidationSet(cases, config, 1e9 if kept else 0)
    assert validation.mean_dice(shifted) == float(np.mean(np.float32(expected)))
    assert validation.overlays == []


def test_the_memory_of_a_case_is_what_is_counted(data, small_config):
    """The volume, which its mirror image shares, and a byte per voxel of the mask."""
    (case,) = find_cases(data, ["Case0"])
    prepared = prepare_case(case, small_config(*GRID, "flip_average=true"))
    straight, mirrored = prepared.inputs
    assert np.shares_memory(straight, mirrored)
    mask = sitk.GetArrayFromImage(prepared.reference)
    assert prepared.nbytes == straight.nbytes + mask.nbytes == 4 * 32**3 + 26 * 24 * 12


def test_broken_cases_stop_at_the_start(data, small_config):
    cases = find_cases(data, NAMES)
    cases[1].mask_path.write_bytes(b"no mask")
    with pytest.raises(DataError, match="Case1_segmentation"):
        ValidationSet(cases, small_config(), budget_bytes=0)


@pytest.mark.parametrize("kept", [0, 3])
def test_the_first_cases_are_there_to_draw_with_the_masks_of_the_last_validation(
    data, small_config, kept
):
    """Whether they are kept or read anew; their images count as memory, four bytes per voxel."""
    config, cases = small_config(*GRID), find_cases(data, NAMES)
    prepared = 3 * 4 * 32**3 + 2 * 5 * 26 * 24 * 12 + 30 * 22 * 10
    validation = ValidationSet(cases, config, prepared - (kept < 3), drawn=2)
    assert (validation.share[2] is cases[2]) == (kept < 3)
    if kept == 0:
        validation.share = list(cases)
    assert validation.overlays == []
    for network in (bright, shifted):
        validation.mean_dice(network)
    assert [drawn.case for drawn in validation.overlays] == NAMES[:2]
    for drawn, case in zip(validation.overlays, cases, strict=False):
        image, reference = read_case(case, config)
        expected = (image, segment(shifted, image, config)[0], reference)
        found = (drawn.image, drawn.prediction, drawn.reference)
        for volume, other in zip(found, expected, strict=True):
            arrays = (sitk.GetArrayFromImage(one) for one in (volume, other))
            np.testing.assert_array_equal(*arrays)


class TwoRanks:
    """The second of two ranks: what it gathers."""

    def share(self, items):
        return items[1::2]

    def gather(self, share, total):
        self.gathered = share, total
        return np.array([0.25, *share, 0.5])

    def gather_texts(self, text):
        return ['{"Case0": "0", "Case2": "2"}', text]


def test_each_rank_validates_its_share(data, small_config):
    config, ranks = small_config(*GRID), TwoRanks()
    cases = find_cases(data, NAMES)
    cases[0].image_path.unlink()  # another rank's
    validation = ValidationSet(cases, config, 1e9, ranks, drawn=1)
    score = validation.mean_dice(shifted)
    assert [drawn.case for drawn in validation.overlays] == ["Case1"]
    own = dice_anew(cases[1], config)
    assert ranks.gathered == ([own], 3)
    assert score == pytest.approx((0.25 + own + 0.5) / 3)
    digest = content_digest(*read_case(cases[1], config))
    assert validation.digests == {"Case0": "0", "Case1": digest, "Case2": "2"}
