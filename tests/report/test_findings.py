"""When somebody should look at a mask: each rule at its bound, and the codes that programs read."""

import re

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from src.config import PRESETS, override_config
from src.data_manager import probability_to_case_grid, xyz
from src.predictor import REACH_MM
from src.report.findings import (
    LARGE_CUT,
    LOW_DICE,
    PLAUSIBLE_ML,
    mask_findings,
    metric_findings,
    plane_findings,
    touches_border,
)
from src.report.planes import DISTANCE_LIMIT_MM, GREY_PERCENTILES
from src.report.texts import FINDINGS
from tests.helpers import ROOT

GOOD = {"dice": 0.9, "reference_ml": 40.0, "prediction_ml": 38.0}
GOOD |= {"empty": 0.0, "base_empty": 0.0, "apex_empty": 0.0}
EMPTY = {"empty": 1.0, "base_empty": 1.0, "apex_empty": 1.0}


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, {}),
        ({"dice": LOW_DICE}, {}),
        ({"dice": LOW_DICE - 1e-9}, {"low_dice": "Dice below 0.8"}),
        ({"apex_empty": 1.0}, {"no_apex": "nothing predicted at apex"}),
        (
            {"apex_empty": 1.0, "base_empty": 1.0},
            {"no_base": "nothing predicted at base", "no_apex": "nothing predicted at apex"},
        ),
        (
            {**EMPTY, "dice": 0.0, "prediction_ml": 0.0},
            {"low_dice": "Dice below 0.8", "empty_prediction": "empty prediction"},
        ),
        (
            {**EMPTY, "dice": 0.0, "reference_ml": 0.0},
            {"low_dice": "Dice below 0.8", "empty_reference": "empty reference"},
        ),
        (
            {**EMPTY, "dice": 1.0, "reference_ml": 0.0, "prediction_ml": 0.0},
            {"empty_reference": "empty reference", "empty_prediction": "empty prediction"},
        ),
    ],
)
def test_a_mask_with_a_reference(metrics, expected):
    assert metric_findings({**GOOD, **metrics}) == expected


@pytest.mark.parametrize(
    ("prostate_ml", "expected"),
    [
        (0, {"empty": "the mask is empty"}),
        (9.875, {"small": "less than 10 ml"}),
        *[(bound, {}) for bound in PLAUSIBLE_ML],
        (40, {}),
        (250.125, {"large": "more than 250 ml"}),
    ],
)
def test_a_volume(make_image, small_config, prostate_ml, expected):
    """A mask of cubes of 1/8 ml in the middle of a grid that reaches well beyond it."""
    array = np.zeros((20, 20, 20), np.uint8)
    inner = np.zeros((16, 16, 16), np.uint8)
    inner.flat[: int(8 * prostate_ml)] = 1
    array[2:-2, 2:-2, 2:-2] = inner
    mask = make_image(array, spacing_mm=(5, 5, 5))
    assert mask_findings(mask, small_config("dstRes=10,10,10")) == expected


@pytest.mark.parametrize(("share", "percent"), [(0.0, None), (0.05, None), (0.051, 5), (0.43, 43)])
def test_a_large_cut(make_image, small_config, share, percent):
    array = np.zeros((20, 20, 20), np.uint8)
    array[7:13, 7:13, 7:13] = 1  # 27 ml
    found = mask_findings(
        make_image(array, (5, 5, 5)), small_config("dstRes=10,10,10"), None, share
    )
    text = f"{percent} % of what was found was cut off, far from the core of the gland"
    assert found == ({"cut": text} if percent else {})


# On each of the six faces, named by the image's axis; 0 is x.
FACES = [(axis, end) for axis in range(3) for end in (0, -1)]


@pytest.mark.parametrize("stored", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("grid_mm", [(100, 100, 100), (100, 20, 100), (100, 100, 20)])
@pytest.mark.parametrize("thick", [True, False])
def test_only_borders_beyond_which_the_gland_may_go_on(
    small_config, stored, grid_mm, thick, make_image
):
    """First and last slice are no such border, but where the network grid ends before them is.

    An image of 30 x 28 x 27 mm, in three storage orders.
    """
    config = small_config("dstRes=" + ",".join(str(side / 16) for side in grid_mm))
    spacing_mm = np.array((1, 1, 3 if thick else 1))
    size = np.array((30, 28, 9 if thick else 27))
    seen = np.minimum(grid_mm, size * spacing_mm)
    for axis, end in FACES:
        array = np.zeros(size, np.uint8)  # (x, y, z), then as it is stored
        array[14:17, 13:16, size[2] // 2] = 1
        assert not touches_border(_stored(array, spacing_mm, stored, make_image), config)
        place = size // 2
        place[axis] = 0 if end == 0 else size[axis] - 1
        array[tuple(place)] = 1
        expected = axis != 2 or seen[axis] < size[axis] * spacing_mm[axis]
        mask = _stored(array, spacing_mm, stored, make_image)
        assert touches_border(mask, config) == expected, (axis, end)


def touches_border_of_all_voxels(mask, config):
    """The definition, on every voxel of the image."""
    seen = xyz(probability_to_case_grid(np.ones(config.VolSize), mask, config)) > 0
    seen = np.pad(seen, [(0, 0), (0, 0), (1, 1)], mode="edge")
    inside = ndimage.binary_erosion(seen)[:, :, 1:-1]
    return bool((xyz(mask) > 0)[~inside].any())


def test_the_border_is_that_of_the_grid_that_was_moved(make_image, small_config):
    """A grid of 64 mm in an image of 160 mm, about a gland 40 mm off: the gland is not cut off."""
    config = small_config("VolSize=32,32,32", "dstRes=2,2,2")
    array = np.zeros((80, 80, 80), np.uint8)
    array[35:45, 35:45, 55:65] = 1  # 40 mm from the centre along x
    mask = make_image(array, (2, 2, 2))
    centre_mm = np.array(mask.TransformContinuousIndexToPhysicalPoint((59.5, 39.5, 39.5)))
    assert touches_border(mask, config) and "border" in mask_findings(mask, config)
    assert mask_findings(mask, config, centre_mm).keys() == {"small"}
    beside_mm = centre_mm - (23, 0, 0)  # the gland's end lies at the border
    assert "border" in mask_findings(mask, config, beside_mm)


@pytest.mark.parametrize("grid_mm", [(100, 100, 100), (22, 24, 21)])
def test_the_border_is_searched_near_the_mask_only(small_config, make_image, oblique, grid_mm):
    config = small_config("dstRes=" + ",".join(str(side / 16) for side in grid_mm), "normDir=true")
    rng = np.random.default_rng(0)
    found = []
    for _ in range(40):
        array = np.zeros((9, 28, 30), np.uint8)
        low = rng.integers(0, (7, 24, 26))
        high = low + rng.integers(1, 5, 3)
        array[tuple(slice(*ends) for ends in zip(low, high, strict=True))] = 1
        mask = make_image(array, (1, 1, 3), direction=oblique)
        found.append(touches_border(mask, config))
        assert found[-1] == touches_border_of_all_voxels(mask, config)
    assert 0 < sum(found) < 40


def _stored(array_xyz, spacing_mm, axes, make_image):
    """A mask whose stored axis i is the patient's axis `axes[i]`."""
    direction = np.eye(3)[:, list(axes)]
    return make_image(
        array_xyz.transpose(axes).T, [float(spacing_mm[a]) for a in axes], direction=direction
    )


@pytest.mark.parametrize("trained", ["auto", "axial", "sagittal", "coronal"])
@pytest.mark.parametrize(
    ("spacing_mm", "plane"),
    [((0.5, 0.5, 3), "axial"), ((3, 0.5, 0.5), "sagittal"), ((0.5, 3, 0.5), "coronal")],
)
def test_a_stack_of_another_plane(small_config, make_image, trained, spacing_mm, plane):
    image = make_image(np.zeros((4, 4, 4), np.float32), spacing_mm)
    config = override_config(small_config(), [f"plane={trained}"])
    named = "axial" if trained == "auto" else trained
    text = {"plane": f"{plane} slices, trained on {named} ones"}
    assert plane_findings(image, config) == ({} if plane == named else text)


def test_cubes_have_no_plane(small_config):
    assert plane_findings(sitk.Image(4, 4, 4, sitk.sitkFloat32), small_config()) == {}


@pytest.mark.parametrize("page", ["docs/radiologists.md", "docs/zh/radiologists.md"])
def test_the_page_for_radiologists_tells_of_every_finding_and_bound(page):
    text = (ROOT / page).read_text("utf-8")
    assert set(re.findall(r"`(\w+)`", text)) == set(FINDINGS)
    (cut,) = re.findall(r"`cut`.*", text)
    assert set(map(int, re.findall(r"\d+", cut))) == {round(100 * LARGE_CUT), REACH_MM}
    numbers = [*PLAUSIBLE_ML, LOW_DICE, DISTANCE_LIMIT_MM, *GREY_PERCENTILES]
    for preset in PRESETS.values():
        numbers += [
            round(n * mm) for n, mm in zip(preset["VolSize"], preset["dstRes"], strict=True)
        ]
    assert {float(number) for number in re.findall(r"\d[\d.]*", text)} >= set(map(float, numbers))
    for readme in ("README.md", "README_CN.md"):
        assert (page in (ROOT / readme).read_text("utf-8")) == (("zh" in page) == ("CN" in readme))
