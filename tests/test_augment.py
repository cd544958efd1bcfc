"""Each transform against a closed form, SciPy or SimpleITK; random parameters; reproducibility.

SimpleITK works in mm (x, y, z) with voxel 0 at 0 mm; arrays have axes (X, Y, Z).
"""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import interpolate, ndimage, spatial, stats

from src import augment
from src.augment import (
    INTENSITY,
    SPATIAL,
    TRANSFORMS,
    add_noise,
    adjust_gamma,
    apply,
    apply_bias_field,
    augment_case,
    blur,
    draw,
    lower_resolution,
    match_histogram,
    resample,
    resample_mask,
    sampling_positions,
    spline_field,
    transplant,
)
from src.data_manager import TrainingVolume
from src.dataset import TrainingSamples, create_dataset
from tests.volumes import image_of

SHAPE, VOXEL_MM = (30, 26, 18), (1.0, 1.25, 2.0)
MIDDLE_MM = (np.array(SHAPE) - 1) / 2 * VOXEL_MM
STRONG = {
    "flip": 0,
    "rotate": np.array([8.0, -5.0, 25.0]),
    "scale": np.array([1.3, 0.8, 1.1]),
    "shift": np.array([4.5, -3.0, 2.5]),
    "deform": np.random.default_rng(5).normal(0, 4, (3, 5, 5, 5)),
}
SETS_OF_SPATIAL = [
    *((name,) for name in SPATIAL),
    ("rotate", "scale"),
    ("scale", "shift"),
    ("flip", "rotate", "scale", "shift"),
    SPATIAL,
]


def smooth(seed, shape=SHAPE):
    """A random volume without edges, float32 in 0.05..1."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return (0.05 + 0.95 * (noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def ellipsoid(centre_mm, radii_mm, shape=SHAPE, voxel_mm=VOXEL_MM):
    grids = np.ogrid[tuple(slice(n) for n in shape)]
    terms = zip(grids, voxel_mm, centre_mm, radii_mm, strict=True)
    return sum(((i * step - c) / r) ** 2 for i, step, c, r in terms) <= 1


def volume_of(seed, shape=SHAPE):
    """A case: smooth tissue in a border of zeros, and an ellipsoid as its mask."""
    inside = np.pad(np.ones(np.subtract(shape, 4), bool), 2)
    middle_mm = (np.array(shape) - 1) / 2 * VOXEL_MM
    mask = ellipsoid(middle_mm + 0.3, middle_mm / 2, shape)
    return TrainingVolume(smooth(seed, shape) * inside, mask, "axial")


def image_of_grid(array):
    return image_of(np.ascontiguousarray(array.T), VOXEL_MM, origin=(0, 0, 0))


def array_of(image):
    return sitk.GetArrayFromImage(image).T


def all_on(small_config, probability=1, *more):
    return small_config(*(f"augment_{name}={probability}" for name in TRANSFORMS), *more)


def same_parameters(one, other):
    """Whether two draws are equal; values are numbers, tuples, arrays, or dicts of such."""

    def same(first, second):
        if isinstance(first, dict):
            return same_parameters(first, second)
        return np.array_equal(first, second)

    return list(one) == list(other) and all(same(one[k], other[k]) for k in one)


# Spatial transforms ------------------------------------------------------------------------------


def sitk_spline(control_mm):
    """B-splines over the box from the first to the last voxel's centre."""
    spline = sitk.BSplineTransform(3, 3)
    spline.SetTransformDomainOrigin((0, 0, 0))
    spline.SetTransformDomainDirection(np.eye(3).ravel())
    spline.SetTransformDomainPhysicalDimensions(2 * MIDDLE_MM)
    spline.SetTransformDomainMeshSize([n - 3 for n in control_mm.shape[1:]])
    # x runs fastest in SimpleITK's parameters.
    spline.SetParameters(np.concatenate([axis.ravel(order="F") for axis in control_mm]))
    return spline


def sitk_transform(flip=None, rotate=None, scale=None, shift=None, deform=None):
    """Of a point in the result to that in the original, made of SimpleITK's own transforms.

    Content moves forward: shifted, scaled, turned, mirrored. The way back of a point x is the
    inverse A^-1 of that plus the splines' d(x), which is A^-1 of x + L d(x), L being A's matrix.
    """
    centre = [float(mm) for mm in MIDDLE_MM]
    forward = sitk.CompositeTransform(3)  # what is added last is done first
    if flip is not None:
        factors = np.ones(3)
        factors[flip] = -1
        mirror = sitk.AffineTransform(np.diag(factors).ravel(), (0, 0, 0), centre)
        forward.AddTransform(mirror)
    if rotate is not None:
        turn = sitk.Euler3DTransform(centre, *np.radians(rotate))
        turn.SetComputeZYX(True)  # about x first
        forward.AddTransform(turn)
    if scale is not None:
        grow = sitk.ScaleTransform(3, scale)
        grow.SetCenter(centre)
        forward.AddTransform(grow)
    if shift is not None:
        forward.AddTransform(sitk.TranslationTransform(3, shift))
    if not forward.GetNumberOfTransforms():
        forward.AddTransform(sitk.TranslationTransform(3))
    back = sitk.CompositeTransform([forward.GetInverse()])
    if deform is not None:
        start = np.array(forward.TransformPoint((0, 0, 0)))
        linear = np.stack([np.array(forward.TransformPoint(unit)) - start for unit in np.eye(3)], 1)
        back.AddTransform(sitk_spline(np.einsum("ij,jxyz->ixyz", linear, deform)))
    return back


@pytest.mark.parametrize("names", SETS_OF_SPATIAL, ids="+".join)
def test_positions_and_resampling_are_those_of_simpleitk(names):
    chosen = {name: STRONG[name] for name in names}
    transform = sitk_transform(**chosen)
    positions = sampling_positions(SHAPE, VOXEL_MM, **chosen)
    assert (positions.shape, positions.dtype) == ((3, *SHAPE), np.float32)
    for voxel in np.random.default_rng(0).integers(0, np.subtract(SHAPE, 1), (200, 3)):
        expected_mm = transform.TransformPoint([float(i) for i in voxel * VOXEL_MM])
        np.testing.assert_allclose(positions[(..., *voxel)] * VOXEL_MM, expected_mm, atol=1e-4)

    volume = smooth(1)
    image = image_of_grid(volume)
    expected = array_of(sitk.Resample(image, image, transform, sitk.sitkLinear, 0.0))
    found = resample(volume, positions)
    last = np.reshape(SHAPE, (3, 1, 1, 1)) - 1
    inside = ((positions > 0.01) & (positions < last - 0.01)).all(axis=0)
    inside &= (np.moveaxis(np.indices(SHAPE), 0, -1) < np.subtract(SHAPE, 1)).all(-1)  # the splines
    outside = ((positions < -0.6) | (positions > last + 0.6)).any(axis=0)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)
    assert not found[outside].any()


def test_a_deformation_moves_by_its_splines_in_mm():
    """The displacement itself, at the points where SimpleITK knows it best."""
    control = STRONG["deform"]
    spline = sitk_spline(control)
    moved = sampling_positions(SHAPE, VOXEL_MM, deform=control) - np.indices(SHAPE)
    for voxel in np.random.default_rng(1).integers(0, np.subtract(SHAPE, 1), (100, 3)):
        point = [float(i) for i in voxel * VOXEL_MM]
        expected_mm = np.subtract(spline.TransformPoint(point), point)
        np.testing.assert_allclose(moved[(..., *voxel)] * VOXEL_MM, expected_mm, atol=1e-4)


@pytest.mark.parametrize("axis", range(3))
def test_flip_is_that_of_numpy(axis):
    volume, mask = smooth(2), ellipsoid((9, 20, 11), (8, 9, 10))
    positions = sampling_positions(SHAPE, VOXEL_MM, flip=axis)
    np.testing.assert_array_equal(resample(volume, positions), np.flip(volume, axis))
    np.testing.assert_array_equal(resample_mask(mask, positions), np.flip(mask, axis))


@pytest.mark.parametrize("axis, plane", [(0, (1, 2)), (1, (2, 0)), (2, (0, 1))])
def test_a_quarter_turn_is_that_of_numpy(axis, plane):
    """About Z from X to Y, and so on."""
    volume = np.pad(smooth(3, (11, 11, 11)), 2)
    positions = sampling_positions(volume.shape, (1.5, 1.5, 1.5), rotate=90 * np.eye(3)[axis])
    expected = np.rot90(volume, axes=plane)
    np.testing.assert_allclose(resample(volume, positions), expected, atol=1e-5)


def cloud(centre_mm, sigma_mm):
    """A Gaussian ellipsoid: its centre and widths are known between the voxels too."""
    grids = np.ogrid[tuple(slice(n) for n in SHAPE)]
    terms = zip(grids, VOXEL_MM, centre_mm, sigma_mm, strict=True)
    return np.exp(-sum(((i * step - c) / s) ** 2 for i, step, c, s in terms) / 2)


def centre_and_sigma_mm(volume):
    points = np.indices(SHAPE).reshape(3, -1) * np.reshape(VOXEL_MM, (3, 1))
    centre = np.average(points, axis=1, weights=volume.ravel())
    return centre, np.sqrt(np.average((points.T - centre) ** 2, axis=0, weights=volume.ravel()))


def test_an_ellipsoid_moves_and_grows_as_said():
    sigma = np.array([2.5, 3.0, 3.0])
    shift, scale = np.array([3.0, -4.0, 2.0]), np.array([1.4, 0.8, 1.2])
    for chosen, centre, widths in (
        ({"shift": shift}, MIDDLE_MM + shift, sigma),
        ({"scale": scale}, MIDDLE_MM, sigma * scale),
        ({"shift": shift, "scale": scale}, MIDDLE_MM + shift * scale, sigma * scale),
    ):
        positions = sampling_positions(SHAPE, VOXEL_MM, **chosen)
        found = centre_and_sigma_mm(resample(cloud(MIDDLE_MM, sigma), positions))
        np.testing.assert_allclose(found, (centre, widths), atol=0.15)  # of voxels of 1 to 2 mm


@pytest.mark.parametrize("first, second", [(0, 1), (1, 2), (2, 0)])
def test_content_turns_from_one_axis_to_the_next(first, second):
    """A ball on the positive side of the first axis, turned by 30 degrees about the third."""
    arm_mm, axes = 7, np.eye(3)
    ball = cloud(MIDDLE_MM + arm_mm * axes[first], (2.5, 2.5, 2.5))
    positions = sampling_positions(SHAPE, VOXEL_MM, rotate=30 * axes[3 - first - second])
    centre, sigma = centre_and_sigma_mm(resample(ball, positions))
    expected = np.cos(np.pi / 6) * axes[first] + np.sin(np.pi / 6) * axes[second]
    np.testing.assert_allclose(centre - MIDDLE_MM, arm_mm * expected, atol=0.1)
    np.testing.assert_allclose(sigma, 2.5, atol=0.2)  # a ball in mm, though voxels are no cubes


def mask_like(kind):
    """A mask in which `resample_mask` could go wrong."""
    mask = np.random.default_rng(4).random(SHAPE) > 0.5 if kind == "speckles" else np.zeros(SHAPE)
    mask = mask.astype(bool)
    if kind == "edge":
        mask[:6, 4:, -1:] = True
    if kind == "one voxel":
        mask[0, 0, 0] = True
    return ~mask if kind == "full" else mask


@pytest.mark.parametrize("kind", ["speckles", "edge", "one voxel", "full", "empty"])
@pytest.mark.parametrize("seed", range(3))
def test_looking_only_near_the_mask_changes_nothing(kind, seed):
    mask, rng = mask_like(kind), np.random.default_rng(seed)
    for positions in (
        sampling_positions(SHAPE, VOXEL_MM, **STRONG),
        sampling_positions(SHAPE, VOXEL_MM, shift=rng.uniform(-2, 2, 3)),
        rng.uniform(-2, np.add(SHAPE, 1), (*SHAPE, 3)).transpose(3, 0, 1, 2).astype(np.float32),
        np.indices(SHAPE).astype(np.float32),
    ):
        everywhere = resample(mask.astype(np.float32), positions) > 0.5
        found = resample_mask(mask, positions)
        assert found.dtype == bool
        np.testing.assert_array_equal(found, everywhere)
    np.testing.assert_array_equal(found, mask)  # of the last positions, each voxel's own


# Splines and bias field ---------------------------------------------------------------------------


@pytest.mark.parametrize("mesh", [1, 2, 4])
def test_spline_field_is_that_of_scipy(mesh):
    control = np.random.default_rng(mesh).normal(size=(mesh + 3,) * 3)
    expected, knots = control, np.arange(-3.0, mesh + 4)
    for axis, side in enumerate(SHAPE):
        along = interpolate.BSpline(knots, expected, 3, axis=axis)
        expected = along(np.linspace(0, mesh, side))
    found = spline_field(control, SHAPE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bias_multiplies_by_a_smooth_positive_field():
    volume = volume_of(1).intensity
    even = apply_bias_field(volume, np.full((4, 4, 4), np.log(1.7)))
    np.testing.assert_allclose(even, 1.7 * volume, rtol=1e-5)
    control = np.random.default_rng(0).normal(0, 1, (4, 4, 4))
    uneven = apply_bias_field(volume, control)
    assert (uneven[volume > 0] > 0).all()
    assert not uneven[volume == 0].any()
    field = np.log(apply_bias_field(np.ones(SHAPE, np.float32), control))
    np.testing.assert_allclose(field, spline_field(control, SHAPE), atol=1e-5)
    # Third differences along a line of a single cubic are one constant.
    np.testing.assert_allclose(np.diff(field, 4, axis=0), 0, atol=1e-5)


# Other intensity transforms -----------------------------------------------------------------------


def without_tails(values):
    """Which lie between their 1st and 99th percentile: beyond, 256 quantiles say little."""
    low, high = np.percentile(values, (1, 99))
    return (values > low) & (values < high)


def test_histogram_gives_each_voxel_the_reference_value_of_its_rank():
    own, other = (smooth(seed).ravel() for seed in (1, 2))
    other **= 2.5
    ranks = stats.rankdata(own, "ordinal").astype(int) - 1
    expected = np.sort(other)[ranks]
    found = match_histogram(own, other)
    body = without_tails(own)
    np.testing.assert_allclose(found[body], expected[body], atol=0.02)
    assert np.abs(found - expected).mean() < 0.005
    assert (np.diff(found[np.argsort(own)]) >= 0).all()
    assert other.min() <= found.min() < found.max() <= other.max()
    np.testing.assert_allclose(match_histogram(own, own)[body], own[body], atol=1e-6)


def test_histogram_leaves_zeros_out():
    """The border of zeros neither moves nor counts, on either side."""
    own, other = volume_of(1).intensity, volume_of(2).intensity
    found = match_histogram(own, other)
    np.testing.assert_array_equal(found == 0, own == 0)
    bare = match_histogram(own[own > 0], other[other > 0])
    np.testing.assert_array_equal(found[own > 0], bare)


@pytest.mark.parametrize("value", [0, 0.4])
def test_histogram_of_a_constant_or_empty_image(value):
    constant, varied = np.full(SHAPE, value, np.float32), volume_of(2).intensity
    moved = match_histogram(constant, varied)
    assert np.isfinite(moved).all()
    assert len(np.unique(moved)) == 1
    assert moved.max() <= varied.max()
    levelled = match_histogram(varied, constant)
    np.testing.assert_allclose(levelled, np.where(varied > 0, value, 0) if value else varied)


@pytest.mark.parametrize("gamma", [0.5, 1, 2])
def test_gamma_is_a_power(gamma):
    volume = volume_of(1).intensity
    closed_form = {0.5: np.sqrt(volume), 1: volume, 2: volume * volume}[gamma]
    np.testing.assert_allclose(adjust_gamma(volume, gamma), closed_form, rtol=1e-6)


def test_noise_is_gaussian_of_a_share_of_the_spread():
    volume = 10 + smooth(1, (48, 48, 48))  # far from zero: nothing is cut off
    noise = (add_noise(volume, 0.4, 7) - volume).ravel() / volume.std()
    count = noise.size
    assert abs(noise.mean()) < 4 * 0.4 / np.sqrt(count)
    assert noise.std() == pytest.approx(0.4, rel=4 / np.sqrt(2 * count))
    assert stats.kstest(noise[::11] / 0.4, "norm").pvalue > 0.001
    cube = noise.reshape(volume.shape)
    for axis in range(3):  # neighbours know nothing of each other
        pairs = np.moveaxis(cube, axis, 0)
        assert abs(np.corrcoef(pairs[1:].ravel(), pairs[:-1].ravel())[0, 1]) < 4 / np.sqrt(count)
    np.testing.assert_array_equal(add_noise(volume, 0.4, 7), add_noise(volume, 0.4, 7))
    assert (add_noise(volume, 0.4, 8) != add_noise(volume, 0.4, 7)).mean() > 0.99
    np.testing.assert_array_equal(add_noise(volume, 0, 7), volume)


def test_noise_keeps_zeros_and_what_is_above_them():
    volume = volume_of(1).intensity
    noisy = add_noise(volume, 3, 1)
    np.testing.assert_array_equal(noisy > 0, volume > 0)
    assert (noisy >= 0).all()
    inside = volume > 0  # whose spread is meant, not that of the border
    added = (add_noise(volume, 0.1, 1) - volume)[inside]
    assert added.std() == pytest.approx(0.1 * volume[inside].std(), rel=0.03)
    empty = np.zeros(SHAPE, np.float32)
    np.testing.assert_array_equal(add_noise(empty, 1, 1), empty)


@pytest.mark.parametrize(
    "name, value",
    [
        ("histogram", 1),
        ("gamma", 0.7),
        ("bias", np.ones((4, 4, 4))),
        ("low_resolution", (0, 3.0)),
        ("blur", 3.0),
        ("noise", (0.25, 1)),
    ],
)
def test_outside_of_the_image_nothing_becomes_tissue(name, value):
    """The network's z-score takes every voxel above 0 for tissue."""
    volumes = [volume_of(1), volume_of(2)]
    outside = volumes[0].intensity == 0
    changed, _ = apply({name: value}, volumes, 0, list(VOXEL_MM))
    assert outside.any()
    np.testing.assert_array_equal(changed == 0, outside)
    assert (changed != volumes[0].intensity).any()


def test_blur_of_an_impulse_is_a_gaussian_of_the_same_width_in_mm():
    impulse = np.ones((41, 37, 27), np.float32)
    centre = np.array(impulse.shape) // 2
    impulse[tuple(centre)] = 2
    sigma_mm = 2.2
    blurred, _ = apply(
        {"blur": sigma_mm}, [TrainingVolume(impulse, impulse > 0, "axial")], 0, list(VOXEL_MM)
    )
    grids = np.ogrid[tuple(slice(n) for n in impulse.shape)]
    squared_mm = sum(((i - c) * v) ** 2 for i, c, v in zip(grids, centre, VOXEL_MM, strict=True))
    expected = np.exp(-squared_mm / (2 * sigma_mm**2))
    expected /= expected.sum()
    near = squared_mm < (2.5 * sigma_mm) ** 2  # further out it is cut off
    np.testing.assert_allclose(blurred[near] - 1, expected[near], atol=0.01 * expected.max())
    assert blurred.sum(dtype=float) - blurred.size == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("axis, factor", [(0, 1.5), (1, 2.6), (2, 3.0), (2, 100.0)])
def test_low_resolution_is_linear_interpolation_along_lines(axis, factor):
    volume = smooth(1)
    side = SHAPE[axis]
    coarse = np.linspace(0, side - 1, max(2, round(side / factor)))

    def through_coarse(line):
        voxels = np.arange(side)
        return np.interp(voxels, coarse, np.interp(coarse, voxels, line))

    found = lower_resolution(volume, axis, factor)
    assert (found.shape, found.dtype) == (SHAPE, np.float32)
    np.testing.assert_allclose(found, np.apply_along_axis(through_coarse, axis, volume), atol=1e-6)
    ramp = np.indices(SHAPE)[axis].astype(np.float32)
    np.testing.assert_allclose(lower_resolution(ramp, axis, factor), ramp, atol=1e-4)
    # Detail is lost along the axis and only there.
    others = np.indices(SHAPE)[(axis + 1) % 3] % 2 + np.ones(SHAPE, np.float32)
    np.testing.assert_allclose(lower_resolution(others, axis, factor), others, atol=1e-6)
    stripes = np.indices(SHAPE)[axis] % 2 + np.ones(SHAPE, np.float32)
    assert lower_resolution(stripes, axis, factor).std() < 0.85 * stripes.std()


# Another case's gland -----------------------------------------------------------------------------


@pytest.mark.parametrize("margin_mm", [2.0, 5.5, 12.0])
@pytest.mark.parametrize("off_mm", [(0, 0, 0), (5.3, -4.1, 6.2)])
def test_a_transplant_is_what_its_definition_says(margin_mm, off_mm):
    """Voxel by voxel: the nearest voxel of the other gland by brute force."""
    host, donor = volume_of(1), volume_of(2)
    host = host._replace(mask=ellipsoid(MIDDLE_MM + off_mm, (6, 5, 7)))
    found, mask = transplant(*host[:2], *donor[:2], margin_mm, VOXEL_MM)
    centres = [np.mean(np.argwhere(volume.mask), axis=0) for volume in (host, donor)]
    steps = np.rint(np.subtract(*centres)).astype(int)
    gland = np.argwhere(donor.mask) + steps
    gland = gland[((gland >= 0) & (gland < SHAPE)).all(axis=1)]
    voxels = np.indices(SHAPE).reshape(3, -1).T
    nearest_mm = spatial.cKDTree(gland * VOXEL_MM).query(voxels * VOXEL_MM)[0]
    sources = voxels - steps
    is_in_donor = ((sources >= 0) & (sources < SHAPE)).all(axis=1)
    values = np.zeros(len(voxels))
    values[is_in_donor] = donor.intensity[tuple(sources[is_in_donor].T)]
    share = np.where(values > 0, np.clip((margin_mm - nearest_mm) / 6 + 0.5, 0, 1), 0)
    expected = host.intensity.ravel() * (1 - share) + values * share
    np.testing.assert_allclose(found.ravel(), expected, rtol=0, atol=1e-5)
    expected = np.where(share > 0.5, nearest_mm == 0, host.mask.ravel())
    is_clear = np.abs(share - 0.5) > 1e-6
    np.testing.assert_array_equal(mask.ravel()[is_clear], expected[is_clear])
    assert len(gland) < (share > 0).sum() < found.size
    assert (found.dtype, mask.dtype) == (np.float32, bool)


@pytest.mark.parametrize("which", [0, 1])
def test_without_a_gland_nothing_is_transplanted(which):
    volumes = [volume_of(1), volume_of(2)]
    volumes[which] = volumes[which]._replace(mask=np.zeros(SHAPE, bool))
    (intensity, mask, *_), donor = volumes
    found = transplant(intensity, mask, *donor[:2], 5.0, VOXEL_MM)
    np.testing.assert_array_equal(found[0], intensity)
    np.testing.assert_array_equal(found[1], mask)


# Random parameters -------------------------------------------------------------------------------


def test_the_parameters_of_a_seed_do_not_change(small_config):
    """A training resumed by a later version gets the same samples; fields by a weighted sum."""
    params = draw(all_on(small_config, 1, "seed=1"), 2, 3, 5)

    def summed_fields(params):
        return {
            name: value.ravel() @ np.arange(value.size) if np.size(value) > 3 else value
            for name, value in params.items()
        }

    of_donor = summed_fields(params.pop("transplant"))
    summed = summed_fields(params)
    expected = {
        "flip": 0,
        "rotate": [-6.35342979, -1.51486158, -8.9177593],
        "scale": [0.84562723, 0.72784869, 0.74863535],
        "shift": [3.96912385, 3.73962871, -7.05372623],
        "deform": 34994.578250284554,
        "histogram": 1,
        "gamma": 1.4291292648688256,
        "bias": -251.06633619925427,
        "low_resolution": (1, 2.331356249120851),
        "blur": 0.9797706417306368,
        "noise": (0.03106860072969908, 152486447),
    }
    assert list(summed) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(summed[name], value, rtol=1e-7, err_msg=name)
    expected = {
        "case": 0,
        "margin_mm": 9.965977843169252,
        "flip": 0,
        "rotate": [9.52894657, -4.31784365, 0.07580579],
        "scale": [0.78585024, 0.82198923, 0.85773839],
        "shift": [5.03970129, 3.32483962, -2.84757236],
        "deform": 57965.98304555259,
    }
    assert list(of_donor) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(of_donor[name], value, rtol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_switch_rules_its_transform_alone(small_config, name):
    off, on = small_config(), small_config(f"augment_{name}=1")
    for epoch in range(30):
        assert draw(off, epoch, 0, 5) == {}
        assert list(draw(on, epoch, 0, 5)) == [name]


def test_probabilities_are_met_and_independent(small_config):
    config, count = all_on(small_config, 0.3), 400
    drawn = [draw(config, i // 20, i % 20, 20) for i in range(count)]
    chosen = np.array([[name in params for name in TRANSFORMS] for params in drawn])
    deviation = np.sqrt(0.3 * 0.7 / count)
    np.testing.assert_allclose(chosen.mean(axis=0), 0.3, atol=4 * deviation)
    between = np.corrcoef(chosen.T) - np.eye(len(TRANSFORMS))
    assert np.abs(between).max() < 4.5 / np.sqrt(count)


def test_parameters_fill_their_ranges(small_config):
    config = all_on(small_config)
    params = [draw(config, epoch, 3, 6) for epoch in range(1000)]
    donors = [one.pop("transplant") for one in params]
    assert {donor["case"] for donor in donors} == {0, 1, 2, 4, 5}  # any case but itself
    of = {name: np.array([one[name] for one in params]) for name in params[0]}
    low_resolution_axes, factors = of["low_resolution"].T
    sigmas, seeds = of["noise"].T
    least, most = np.multiply(augment.SCALE, augment.ASPECT)
    assert least <= of["scale"].min() < 1.1 * least < most / 1.1 < of["scale"].max() <= most
    aspects = np.log(of["scale"][:, 1:] / of["scale"][:, :1])
    widest = np.log(augment.ASPECT[1] / augment.ASPECT[0])
    assert 0.9 * widest < aspects.max() <= widest and -widest <= aspects.min() < -0.9 * widest
    for values, (low, high) in (
        (of["rotate"], (-augment.ROTATION_DEGREES, augment.ROTATION_DEGREES)),
        (of["shift"], (-augment.SHIFT_MM, augment.SHIFT_MM)),
        (of["gamma"], augment.GAMMA),
        (factors, augment.LOW_RESOLUTION),
        (of["blur"], augment.BLUR_SIGMA_MM),
        (sigmas, augment.NOISE_SIGMA),
        (np.array([d["margin_mm"] for d in donors]), augment.TRANSPLANT_MARGIN_MM),
        (np.array([d["rotate"] for d in donors]), [-10.0, 10.0]),
        (np.array([d["shift"] for d in donors]), [-augment.SHIFT_MM, augment.SHIFT_MM]),
    ):
        columns, margin = values.reshape(len(params), -1), 0.05 * (high - low)
        assert ((columns >= low) & (columns <= high)).all()
        assert (columns.min(axis=0) < low + margin).all()
        assert (columns.max(axis=0) > high - margin).all()
    for values, (low, high) in ((of["scale"][:, 0], augment.SCALE), (of["gamma"], augment.GAMMA)):
        # Uniform in the logarithm: as often n times larger as n times smaller.
        tolerance = 2.7 * np.log(high / low) / np.sqrt(12 * values.size)
        assert np.log(values).mean() == pytest.approx(np.log([low, high]).mean(), abs=tolerance)
    assert set(of["flip"]) == {0}
    assert set(of["histogram"]) == {0, 1, 2, 4, 5}  # any case but itself
    assert set(low_resolution_axes) == {0, 1, 2}
    assert len(set(seeds)) == len(params)
    deform, bias = of["deform"], of["bias"]
    assert (deform.shape[1:], bias.shape[1:]) == ((3, 5, 5, 5), (4, 4, 4))
    np.testing.assert_allclose(deform.std(axis=(0, 2, 3, 4)), augment.DEFORM_SIGMA_MM, rtol=0.02)
    assert bias.std() == pytest.approx(augment.BIAS_SIGMA, rel=0.03)
    for values in (deform, bias):
        assert abs(values.mean() / values.std()) < 4 / np.sqrt(values.size)


def test_the_papers_deformation_is_15_voxels_of_its_grid():
    np.testing.assert_allclose(np.divide(augment.DEFORM_SIGMA_MM, (1, 1, 1.5)), 15)
    assert augment.DEFORM_MESH == 2


def test_switching_one_transform_leaves_the_others_as_they_are(small_config):
    whole = draw(all_on(small_config), 4, 2, 5)
    for off in TRANSFORMS:
        rest = draw(all_on(small_config, 1, f"augment_{off}=0"), 4, 2, 5)
        kept = {key: whole[key] for key in whole if key != off}
        if "transplant" in kept:  # the other case has the same transforms
            of_donor = {key: value for key, value in kept["transplant"].items() if key != off}
            kept["transplant"] = of_donor
        assert same_parameters(rest, kept)
    often = draw(all_on(small_config, 0.999), 4, 2, 5)
    assert same_parameters(often, whole)


def test_a_draw_follows_from_seed_epoch_and_case(small_config):
    def params(seed, epoch, case):
        return draw(all_on(small_config, 1, f"seed={seed}"), epoch, case, 5)

    keys = list(itertools.product((1, 2), (0, 1, 7), (0, 1, 2)))
    draws = {key: params(*key) for key in keys}
    for key in reversed(keys):
        assert same_parameters(params(*key), draws[key])
    for name in set(TRANSFORMS) - {"flip", "histogram"}:
        assert len({str(one[name]) for one in draws.values()}) == len(keys), name


def test_a_single_case_has_no_other(small_config):
    params = draw(all_on(small_config), 0, 0, 1)
    assert list(params) == [n for n in TRANSFORMS if n not in ("histogram", "transplant")]
    assert set(draw(all_on(small_config), 0, 1, 2)) == set(TRANSFORMS)


# What is applied ---------------------------------------------------------------------------------


def two_volumes(small_config, **more):
    """Two cases of which nothing may be written to, and a configuration of their grid."""
    shape = (32, 32, 16)
    volumes = [volume_of(seed, shape, **more) for seed in (1, 2)]
    for volume in volumes:
        volume.intensity.flags.writeable = volume.mask.flags.writeable = False
    return volumes, ("VolSize=32,32,16", "dstRes=1.0,1.25,2.0")


def test_with_all_off_the_case_itself_comes_back(small_config):
    volumes, grid = two_volumes(small_config)
    intensity, mask = augment_case(volumes, 1, 3, small_config(*grid))
    assert intensity is volumes[1].intensity
    assert mask is volumes[1].mask


@pytest.mark.parametrize("name", [*TRANSFORMS, "all"])
def test_each_transform_changes_what_it_should_and_nothing_of_the_cases(small_config, name):
    volumes, grid = two_volumes(small_config)
    before = [(volume.intensity.copy(), volume.mask.copy()) for volume in volumes]
    names = TRANSFORMS if name == "all" else (name,)
    config = small_config(*grid, *(f"augment_{name}=1" for name in names))
    intensity, mask = augment_case(volumes, 0, 0, config)
    assert (intensity.dtype, mask.dtype) == (np.float32, bool)
    assert intensity.shape == mask.shape == (32, 32, 16)
    assert intensity.flags.c_contiguous
    assert np.isfinite(intensity).all()
    assert intensity.min() >= 0
    assert not np.array_equal(intensity, volumes[0].intensity)
    # Both cases have the same gland.
    assert np.array_equal(mask, volumes[0].mask) == (name in (*INTENSITY, "transplant"))
    for volume, (intensity, mask) in zip(volumes, before, strict=True):
        np.testing.assert_array_equal(volume.intensity, intensity)
        np.testing.assert_array_equal(volume.mask, mask)


def test_apply_does_them_in_order(small_config):
    """All of them against the functions one after another."""
    volumes, _ = two_volumes(small_config)
    params = {
        **STRONG,
        **{"histogram": 1, "gamma": 1.3, "bias": np.full((4, 4, 4), 0.1)},
        **{"low_resolution": (2, 2.0), "blur": 0.8, "noise": (0.2, 5)},
        "transplant": {"case": 1, "margin_mm": 4.0, "shift": np.array([3.0, 1.0, -2.0])},
    }
    positions = sampling_positions((32, 32, 16), VOXEL_MM, **STRONG)
    expected = resample(volumes[0].intensity, positions)
    expected_mask = resample_mask(volumes[0].mask, positions)
    positions = sampling_positions((32, 32, 16), VOXEL_MM, shift=params["transplant"]["shift"])
    donor = resample(volumes[1].intensity, positions), resample_mask(volumes[1].mask, positions)
    expected, expected_mask = transplant(expected, expected_mask, *donor, 4.0, VOXEL_MM)
    expected = adjust_gamma(match_histogram(expected, volumes[1].intensity), 1.3)
    expected = lower_resolution(apply_bias_field(expected, params["bias"]), 2, 2.0)
    expected = add_noise(blur(expected, 0.8 / np.array(VOXEL_MM)), 0.2, 5)
    found, mask = apply(params, volumes, 0, list(VOXEL_MM))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(mask, expected_mask)


def test_a_case_without_a_prostate(small_config):
    empty = TrainingVolume(volume_of(1).intensity, np.zeros(SHAPE, bool), "axial")
    _, mask = augment_case([empty, volume_of(2)], 0, 0, all_on(small_config))
    assert not mask.any()


def training_samples(small_config, *more):
    volumes, grid = two_volumes(small_config)
    return TrainingSamples(volumes, all_on(small_config, 0.7, *grid, *more), 0)


def test_a_training_sample_can_be_made_again(small_config):
    samples, later = training_samples(small_config), training_samples(small_config)
    first = [samples[index] for index in range(6)]
    for index in (5, 0, 3):  # in another order, by another process
        for made, again in zip(first[index], later[index], strict=True):
            np.testing.assert_array_equal(made, again)
    contents = {sample[0].tobytes() for sample in first}
    assert len(contents) == 6  # two cases in three epochs, none like another
    other_seed = training_samples(small_config, "seed=2")
    assert not contents & {other_seed[index][0].tobytes() for index in range(6)}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_dataset_of_a_resumed_run_yields_the_same_samples(small_config, workers):
    def images(first_epoch, epochs):
        dataset = create_dataset(training_samples(small_config), first_epoch, workers=workers)
        iterator = dataset.create_tuple_iterator(num_epochs=epochs, output_numpy=True)
        return [batch[0] for _ in range(epochs) for batch in iterator]

    np.testing.assert_array_equal(images(0, 3)[1:], images(1, 2))


def test_a_sample_is_interpolated_once_and_its_mask_only_near_it(small_config, monkeypatch):
    """Interpolation takes most of a sample's time."""
    interpolated = []

    def counted(volume, positions, **options):
        interpolated.append(positions[0].size)
        return map_coordinates(volume, positions, **options)

    map_coordinates = ndimage.map_coordinates
    monkeypatch.setattr(ndimage, "map_coordinates", counted)
    config = all_on(small_config, 1, "augment_transplant=0")
    intensity, mask = augment_case(two_volumes(small_config)[0], 0, 0, config)
    of_image, of_mask = interpolated
    assert of_image == intensity.size
    assert np.count_nonzero(mask) < of_mask < intensity.size / 2
