import math

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage, stats

from src.metrics import METRICS, apex_and_base, case_metrics, summarize, superior_axis, surface
from src.utils.errors import DataError
from tests.volumes import image_of

SPACING_XYZ_MM = (0.5, 0.8, 3.0)
DISTANCES = ("hausdorff_mm", "hausdorff95_mm", "boundary_distance_mm")
FLAGS = ("empty", "apex_empty", "base_empty")


def mask_of(array_zyx, spacing_xyz_mm=SPACING_XYZ_MM):
    return image_of(np.asarray(array_zyx, np.uint8), spacing_xyz_mm)


def blob(seed, shape_zyx=(9, 10, 11), threshold=0.0):
    """A random connected-looking mask with holes and spurs."""
    noise = np.random.default_rng(seed).normal(size=shape_zyx)
    return ndimage.gaussian_filter(noise, 1.2) > threshold


def ellipsoid(shape_zyx, centre_zyx_mm, radii_zyx_mm, spacing_xyz_mm):
    """Voxels whose centre lies inside; voxel 0 is at 0 mm."""
    grids = np.ogrid[tuple(slice(n) for n in shape_zyx)]
    terms = zip(grids, centre_zyx_mm, radii_zyx_mm, spacing_xyz_mm[::-1], strict=True)
    return sum(((i * step - c) / r) ** 2 for i, c, r, step in terms) <= 1


def brute_surface(mask):
    """Voxel by voxel, as the definition reads."""
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    points = []
    for voxel in map(tuple, np.argwhere(mask)):
        neighbours = [tuple(np.add(voxel, step)) for step in steps]
        inside = [
            all(0 <= i < n for i, n in zip(neighbour, mask.shape, strict=True)) and mask[neighbour]
            for neighbour in neighbours
        ]
        if not all(inside):
            points.append(voxel)
    return np.array(points)


def brute_distances(reference, prediction, low, high):
    """Distances over all pairs of surface points, of the points with low <= z < high."""
    spacing_zyx = np.array(SPACING_XYZ_MM[::-1])
    surfaces = [brute_surface(mask) for mask in (reference, prediction)]
    directed = []
    for points, others in (surfaces, surfaces[::-1]):
        points = points[(points[:, 0] >= low) & (points[:, 0] < high)]
        pairs = (points[:, None, :] - others[None, :, :]) * spacing_zyx
        directed.append(np.sqrt((pairs**2).sum(axis=-1)).min(axis=1))
    return {
        "hausdorff_mm": max(map(max, directed)),
        "hausdorff95_mm": max(stats.scoreatpercentile(values, 95) for values in directed),
        "boundary_distance_mm": sum(map(sum, directed)) / sum(map(len, directed)),
    }


@pytest.mark.parametrize("seed", range(6))
def test_all_measures_equal_brute_force(seed):
    reference, prediction = blob(seed, threshold=0.05), blob(seed + 100)
    occupied = np.flatnonzero(reference.any(axis=(1, 2)))
    low, high = occupied[0], occupied[-1] + 1
    third = (high - low + 1) // 3
    metrics = case_metrics(mask_of(reference), mask_of(prediction))
    parts = (
        ("", 0, len(reference)),
        ("apex_", low, low + third),
        ("base_", high - third, high),
    )
    for prefix, first, last in parts:
        expected = brute_distances(reference, prediction, first, last)
        r, p = (set(map(tuple, np.argwhere(mask[first:last]))) for mask in (reference, prediction))
        expected["dice"] = 2 * len(r & p) / (len(r) + len(p))
        expected["volume_difference_percent"] = (len(p) / len(r) - 1) * 100
        expected["absolute_volume_difference_percent"] = abs(len(p) / len(r) - 1) * 100
        for key, value in expected.items():
            assert metrics[prefix + key] == pytest.approx(value, abs=1e-9), prefix + key


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 5), (5, 6, 7)])
def test_a_mask_that_fills_the_image_has_the_image_shell_as_surface(shape):
    inside = math.prod(max(0, n - 2) for n in shape)
    assert np.count_nonzero(surface(np.ones(shape, bool))) == math.prod(shape) - inside


@pytest.mark.parametrize("axis", range(3))
def test_shifted_cubes(axis):
    reference = np.zeros((30, 30, 30), bool)
    reference[8:18, 8:18, 8:18] = True
    metrics = case_metrics(mask_of(reference), mask_of(np.roll(reference, 3, axis)))
    shift_mm = 3 * SPACING_XYZ_MM[::-1][axis]
    assert metrics["dice"] == pytest.approx(0.7)
    assert metrics["volume_difference_percent"] == 0
    assert metrics["hausdorff_mm"] == pytest.approx(shift_mm)
    assert metrics["hausdorff95_mm"] == pytest.approx(shift_mm)
    assert 0 < metrics["boundary_distance_mm"] < shift_mm


def test_concentric_spheres():
    spacing, centre, shape = (0.5, 0.6, 1.0), (20, 19.9, 20.1), (41, 67, 81)
    inner, outer = (ellipsoid(shape, centre, (r, r, r), spacing) for r in (10, 15))
    metrics = case_metrics(mask_of(inner, spacing), mask_of(outer, spacing))
    voxel_mm = np.linalg.norm(spacing)
    for key in DISTANCES:
        assert metrics[key] == pytest.approx(5, abs=voxel_mm), key
    assert metrics["dice"] == pytest.approx(2 * 10**3 / (10**3 + 15**3), abs=0.01)
    assert metrics["volume_difference_percent"] == pytest.approx((1.5**3 - 1) * 100, rel=0.02)
    assert metrics["reference_ml"] == pytest.approx(4 / 3 * math.pi, rel=0.02)
    assert metrics["prediction_ml"] == pytest.approx(4 / 3 * math.pi * 1.5**3, rel=0.02)


def test_single_voxels_are_apart_by_the_distance_of_their_centres():
    reference, prediction = np.zeros((2, 5, 6, 7), bool)
    reference[1, 1, 1] = prediction[3, 4, 6] = True
    metrics = case_metrics(mask_of(reference), mask_of(prediction))
    expected_mm = math.sqrt((2 * 3.0) ** 2 + (3 * 0.8) ** 2 + (5 * 0.5) ** 2)
    assert metrics["dice"] == 0
    for key in DISTANCES:
        assert metrics[key] == pytest.approx(expected_mm), key
    assert metrics["empty"] == 0
    # The reference's only slice is both its apex and its base; the prediction has nothing there.
    assert metrics["apex_empty"] == metrics["base_empty"] == 1


def test_simpleitk_agrees_on_dice_volume_and_convex_hausdorff():
    reference = mask_of(ellipsoid((20, 60, 70), (27, 22, 17), (20, 15, 11), SPACING_XYZ_MM))
    prediction = mask_of(ellipsoid((20, 60, 70), (30, 25, 16), (22, 13, 14), SPACING_XYZ_MM))
    metrics = case_metrics(reference, prediction)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(reference, prediction)
    # Directed from set to set and not from surface to surface: the same for convex shapes.
    hausdorff = sitk.HausdorffDistanceImageFilter()
    hausdorff.Execute(reference, prediction)
    shape = sitk.LabelShapeStatisticsImageFilter()
    volumes = []
    for mask in (reference, prediction):
        shape.Execute(mask)
        volumes.append(shape.GetPhysicalSize(1))
    assert metrics["dice"] == pytest.approx(overlap.GetDiceCoefficient())
    assert metrics["hausdorff_mm"] == pytest.approx(hausdorff.GetHausdorffDistance(), abs=1e-5)
    assert metrics["reference_ml"] == pytest.approx(volumes[0] / 1000)
    assert metrics["prediction_ml"] == pytest.approx(volumes[1] / 1000)
    assert metrics["volume_difference_percent"] == pytest.approx(
        (volumes[1] / volumes[0] - 1) * 100
    )


def test_identical_masks_are_perfect():
    mask = mask_of(blob(3))
    metrics = case_metrics(mask, mask)
    for key, _, better in METRICS:
        assert metrics[key] == (1 if better == "high" else 0), key
    assert not any(metrics[flag] for flag in FLAGS)


DIAGONAL_MM = math.sqrt((11 * 0.5) ** 2 + (10 * 0.8) ** 2 + (9 * 3.0) ** 2)


@pytest.mark.parametrize(
    ("reference", "prediction", "dice", "volume", "distance"),
    [
        (False, False, 1, 0, 0),
        (True, False, 0, -100, DIAGONAL_MM),
        (False, True, 0, 100, DIAGONAL_MM),
    ],
)
def test_empty_masks(reference, prediction, dice, volume, distance):
    metrics = case_metrics(mask_of(blob(1) & reference), mask_of(blob(1) & prediction))
    for prefix in ("", "apex_", "base_"):
        assert metrics[prefix + "dice"] == dice
        assert metrics[prefix + "volume_difference_percent"] == volume
        assert metrics[prefix + "absolute_volume_difference_percent"] == abs(volume)
        for key in DISTANCES:
            assert metrics[prefix + key] == pytest.approx(distance)
        assert metrics[prefix + "empty"] == 1
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_missed_apex_is_flagged_and_the_base_is_measured():
    reference = np.zeros((12, 8, 8), bool)
    reference[2:11, 2:6, 2:6] = True
    prediction = reference.copy()
    prediction[:5] = False
    metrics = case_metrics(mask_of(reference), mask_of(prediction))
    assert [metrics[flag] for flag in FLAGS] == [0, 1, 0]
    assert (metrics["apex_dice"], metrics["base_dice"]) == (0, 1)
    diagonal_mm = math.sqrt((8 * 0.5) ** 2 + (8 * 0.8) ** 2 + (12 * 3.0) ** 2)
    assert metrics["apex_hausdorff_mm"] == pytest.approx(diagonal_mm)
    assert metrics["base_hausdorff_mm"] == 0
    assert metrics["hausdorff_mm"] == pytest.approx(9)


def test_cutting_off_the_apex_adds_no_surface():
    """The inner cube's faces are 2 voxels away everywhere; the cut planes must not count as 0."""
    reference, prediction = np.zeros((2, 15, 15, 15), bool)
    reference[3:12, 3:12, 3:12] = True
    prediction[5:10, 5:10, 5:10] = True
    metrics = case_metrics(mask_of(reference, (1, 1, 1)), mask_of(prediction, (1, 1, 1)))
    assert metrics["apex_boundary_distance_mm"] >= 2


@pytest.mark.parametrize(
    ("count", "third"), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (7, 2), (8, 3), (9, 3)]
)
def test_thirds_are_rounded_to_the_nearest_slice(count, third):
    mask = np.zeros((3, 20, 3), bool)
    mask[1, [4, 4 + count - 1], 1] = True
    low, high = slice(4, 4 + third), slice(4 + count - third, 4 + count)
    assert apex_and_base(mask, axis=1, ascending=True) == (low, high)
    assert apex_and_base(mask, axis=1, ascending=False) == (high, low)


@pytest.mark.parametrize(
    ("orientation", "axis", "ascending"),
    [
        ("LPS", 0, True),
        ("RAS", 0, True),
        ("LPI", 0, False),
        ("PSR", 1, True),  # sagittal
        ("PIL", 1, False),
        ("LSP", 1, True),  # coronal
        ("SAL", 2, True),
        ("IRP", 2, False),
    ],
)
def test_apex_and_base_follow_the_patient_however_the_volume_is_stored(
    orientation, axis, ascending
):
    reference, prediction = mask_of(blob(5)), mask_of(blob(6))
    stored = [sitk.DICOMOrient(mask, orientation) for mask in (reference, prediction)]
    assert superior_axis(stored[0]) == (axis, ascending)
    assert case_metrics(*stored) == pytest.approx(case_metrics(reference, prediction))


@pytest.mark.parametrize("degrees", [-40, -10, 30])
def test_an_oblique_volume_is_cut_along_its_nearest_axis(degrees):
    reference, prediction = mask_of(blob(5)), mask_of(blob(6))
    expected = case_metrics(reference, prediction)
    rotation = sitk.Euler3DTransform((0, 0, 0), math.radians(degrees), 0.1, 0.2)
    for mask in (reference, prediction):
        mask.SetDirection(rotation.GetMatrix())
    assert case_metrics(reference, prediction) == pytest.approx(expected)


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_between_two_axes_the_storage_order_does_not_decide(order, sign):
    """At 45 degrees two axes are equally close to the patient's."""
    masks = [mask_of(blob(5)), mask_of(blob(6))]
    cosine = math.sqrt(0.5)
    for mask in masks:
        mask.SetDirection((1, 0, 0, 0, cosine, -sign * cosine, 0, sign * cosine, cosine))
    stored = [sitk.PermuteAxes(mask, order)[:, ::-1] for mask in masks]
    assert case_metrics(*stored) == pytest.approx(case_metrics(*masks))


def test_position_in_the_image_and_pixel_type_do_not_matter():
    reference, prediction = blob(7), blob(8)
    small = case_metrics(mask_of(reference), mask_of(prediction))
    margin = ((3, 5), (2, 7), (4, 1))
    large = case_metrics(
        sitk.Cast(mask_of(np.pad(reference, margin)), sitk.sitkInt16),
        sitk.Cast(mask_of(np.pad(prediction, margin)), sitk.sitkFloat32),
    )
    assert large == pytest.approx(small)


def test_every_value_is_a_finite_float_with_a_known_key():
    metrics = case_metrics(mask_of(blob(1)), mask_of(blob(2)))
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    others = {"reference_ml", "prediction_ml", *FLAGS}
    assert set(metrics) == {metric.key for metric in METRICS} | others


def test_masks_on_different_grids_are_refused():
    prediction = mask_of(blob(1))
    prediction.SetSpacing((0.5, 0.8, 2.0))
    with pytest.raises(DataError, match="spacing .*2.0.*3.0"):
        case_metrics(mask_of(blob(1)), prediction)


def test_summary():
    def case(dice, difference):
        return {"case": "a", **{m.key: 2.0 for m in METRICS}} | {
            "dice": dice,
            "volume_difference_percent": difference,
        }

    table = summarize([case(0.9, 5.0), case(0.6, -20.0), case(0.7, 0.0)])
    assert list(table) == [metric.key for metric in METRICS]
    assert table["dice"] == pytest.approx(
        {"mean": 2.2 / 3, "std": math.sqrt(0.14) / 3, "median": 0.7, "worst": 0.6}
    )
    assert table["volume_difference_percent"]["mean"] == -5
    assert table["volume_difference_percent"]["worst"] == -20
    assert table["hausdorff_mm"] == {"mean": 2, "std": 0, "median": 2, "worst": 2}


def test_the_worst_distance_is_the_largest():
    rows = [{metric.key: value for metric in METRICS} for value in (1.0, 4.0, 3.0)]
    assert summarize(rows)["hausdorff_mm"]["worst"] == 4


def test_distances_are_transformed_in_the_masks_own_box_alone(monkeypatch):
    """A prostate's box is a small part of a volume of 47 x 410 x 410 voxels."""
    spacing, shape = (0.45, 0.45, 3.0), (47, 410, 410)
    reference = ellipsoid(shape, (70, 92, 92), (25, 22, 28), spacing)
    prediction = ellipsoid(shape, (72, 95, 90), (27, 20, 30), spacing)
    extents = [
        np.flatnonzero((reference | prediction).any(axes)) for axes in ((1, 2), (0, 2), (0, 1))
    ]
    box = tuple(int(np.ptp(extent)) + 1 for extent in extents)
    transformed = []

    def counted(mask, **options):
        transformed.append(mask.shape)
        return distance_transform(mask, **options)

    distance_transform = ndimage.distance_transform_edt
    monkeypatch.setattr(ndimage, "distance_transform_edt", counted)
    case_metrics(mask_of(reference, spacing), mask_of(prediction, spacing))
    assert transformed == [box, box]
