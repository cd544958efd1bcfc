"""Cases: found, brought to the network grid and back, kept preprocessed."""

import os
import re

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage, stats

from src import data_manager
from src.data_manager import (
    Case,
    content_digest,
    find_cases,
    image_to_network_grid,
    intensity_on_network_grid,
    load_training_volumes,
    mask_to_network_grid,
    network_grid,
    probability_to_case_grid,
    read_case,
    worker_count,
    xyz,
)
from src.images.intensity import z_score
from src.images.writing import write_volume
from src.training.validation import prepare_case
from src.utils.errors import DataError
from tests.helpers import flip_middle, touch, tree
from tests.volumes import STORAGE_ORDERS, geometry_error, stored_in_order


def test_cases_are_found_by_stem_in_the_order_of_the_split(tmp_path):
    touch(tmp_path / "img", "Case00.nii.gz", "Case01.mhd", "Case01.raw", "Case2.nrrd", "x.mha")
    touch(tmp_path / "gt", "Case00_segmentation.nrrd", "Case01_segmentation.mhd", "other.mhd")
    assert find_cases(tmp_path, ["Case01.mhd", "Case00.mhd"]) == [
        Case("Case01", tmp_path / "img/Case01.mhd", tmp_path / "gt/Case01_segmentation.mhd"),
        Case("Case00", tmp_path / "img/Case00.nii.gz", tmp_path / "gt/Case00_segmentation.nrrd"),
    ]


def test_of_two_files_of_a_stem_the_named_one_is_taken(tmp_path):
    touch(tmp_path / "img", "Case00.mhd", "Case00.nii")
    touch(tmp_path / "gt", "Case00_segmentation.nii")
    assert find_cases(tmp_path, ["Case00.nii"])[0].image_path.suffix == ".nii"


@pytest.mark.parametrize(
    "images, masks, words",
    [
        (None, [], ["img: no such folder"]),
        (["Case00.mhd"], None, ["gt: no such folder"]),
        (["Case01.mhd"], [], ["img: no image Case00 (", "take it out of the split"]),
        (["case00.mhd"], [], ["img: no image Case00 ("]),
        (["Case00.mhd"], ["Case00.mhd"], ["gt: no image Case00_segmentation ("]),
        (
            ["Case00.mha", "Case00.nii"],
            [],
            ["Case00.mha and Case00.nii have the same case name, Case00"],
        ),
        (
            ["Case00.mhd"],
            ["Case00_segmentation.mhd", "Case00_segmentation.mha"],
            ["Case00_segmentation.mha and Case00_segmentation.mhd have the same case name"],
        ),
    ],
)
def test_missing_and_ambiguous_files(tmp_path, images, masks, words):
    for folder, names in (("img", images), ("gt", masks)):
        if names is not None:
            touch(tmp_path / folder, *names)
    with pytest.raises(DataError) as error:
        find_cases(tmp_path, ["Case00"])
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


# To the network grid and back -------------------------------------------------------------------

# Spacing, size, normDir, VolSize and dstRes, such that no voxel lies exactly on another's border.
GRIDS = {
    "PROMISE12": ((0.625, 0.625, 3.6), (40, 36, 9), False, "16,32,16", "1,1,1.5"),
    "fine": ((0.27, 0.31, 2.2), (70, 61, 8), False, "32,16,16", "0.71,1,1.5"),
    "patient-axes": ((1.0, 0.8, 4.0), (24, 31, 7), True, "32,32,32", "0.93,1.1,1.3"),
    "small": ((0.9, 1.0, 2.0), (9, 8, 5), False, "32,32,16", "1,1,1.5"),
    "small-patient-axes": ((0.9, 1.0, 2.0), (9, 8, 5), True, "16,32,16", "1.03,1.01,1.53"),
}


@pytest.fixture(params=GRIDS)
def gridded(request, make_image, oblique, small_config):
    """(image up to 2^15, configuration) of one entry of GRIDS."""
    spacing_mm, size_xyz, patient, vol_size, dst_res = GRIDS[request.param]
    noise = np.random.default_rng(0).normal(size=size_xyz[::-1])
    values = ndimage.gaussian_filter(noise, 1)
    values = (values - values.min()) / np.ptp(values) * (2**15 - 1)
    image = make_image(values.astype(np.float32), spacing_mm, (-31.7, 12.9, 101.3), oblique)
    return image, small_config(f"normDir={patient}", f"VolSize={vol_size}", f"dstRes={dst_res}")


def axes_of(image, config):
    return np.eye(3) if config.normDir else np.reshape(image.GetDirection(), (3, 3))


# How far the grid is moved off the image's centre, in patient coordinates.
moved = pytest.mark.parametrize("moved_mm", [(0, 0, 0), (7.3, -4.1, 5.9)])


def grid_points(image, config, moved_mm=(0, 0, 0)):
    """Physical points (3, X, Y, Z) of the network grid, from its definition."""
    direction = np.reshape(image.GetDirection(), (3, 3))
    half = np.multiply(np.subtract(image.GetSize(), 1), image.GetSpacing()) / 2
    centre = np.array(image.GetOrigin()) + direction @ half + moved_mm
    steps = np.indices(config.VolSize) - (np.reshape(config.VolSize, (3, 1, 1, 1)) - 1) / 2
    return np.einsum(
        "ij,jxyz->ixyz", axes_of(image, config), steps * np.reshape(config.dstRes, (3, 1, 1, 1))
    ) + centre.reshape(3, 1, 1, 1)


def sampled(array, indices):
    """Linear interpolation; half a voxel beyond the outer centres still belongs to the image."""
    sides = np.reshape(array.shape, (3, 1, 1, 1))
    inside = ((indices >= -0.5) & (indices < sides - 0.5)).all(axis=0)
    return np.where(inside, ndimage.map_coordinates(array, indices, order=1, mode="nearest"), 0)


def blurred(array, image, config):
    """As wide (full width at half maximum) as the grid's voxels where these are wider."""
    own_mm, grid_mm = np.array(image.GetSpacing()), np.array(config.dstRes)
    sigma_mm = np.sqrt(np.maximum(grid_mm**2 - own_mm**2, 0) / (8 * np.log(2)))
    return ndimage.gaussian_filter(array.astype(float), sigma_mm / own_mm, mode="nearest")


def image_indices(image, points):
    """Continuous voxel indices (x, y, z) of physical points."""
    offset = points - np.reshape(image.GetOrigin(), (3, 1, 1, 1))
    direction = np.reshape(image.GetDirection(), (3, 3))
    along = np.einsum("ji,jxyz->ixyz", direction, offset)
    return along / np.reshape(image.GetSpacing(), (3, 1, 1, 1))


def centre_of(image, moved_mm):
    """The argument `centre_mm`."""
    middle = [(side - 1) / 2 for side in image.GetSize()]
    return np.add(image.TransformContinuousIndexToPhysicalPoint(middle), moved_mm)


def test_network_grid_lies_about_the_images_centre(gridded):
    image, config = gridded
    grid = network_grid(image, config)
    assert grid.GetSize() == tuple(config.VolSize)
    assert grid.GetSpacing() == tuple(config.dstRes)
    np.testing.assert_array_equal(np.reshape(grid.GetDirection(), (3, 3)), axes_of(image, config))
    points = grid_points(image, config)
    for index in ((0, 0, 0), (3, 7, 5), tuple(side - 1 for side in config.VolSize)):
        found = grid.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(found, points[(slice(None), *index)], atol=1e-9)


@moved
def test_image_is_sampled_where_it_lies(gridded, moved_mm):
    image, config = gridded
    array = sitk.GetArrayFromImage(image).T.astype(np.float64)
    unit = blurred((array - array.min()) / np.ptp(array), image, config)
    expected = sampled(unit, image_indices(image, grid_points(image, config, moved_mm)))
    positive = expected[expected > 0]
    expected = (expected - positive.mean()) / positive.std()
    centre_mm = centre_of(image, moved_mm) if any(moved_mm) else None
    volume = image_to_network_grid(image, config, centre_mm)
    assert volume.shape == tuple(config.VolSize) and volume.dtype == np.float32
    np.testing.assert_allclose(volume, expected, atol=0.02)  # the Gaussian ends at 3 sigma
    assert np.abs(volume - expected).mean() < 5e-3


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(
    ("period_mm", "most", "least"), [(1.9, 0.08, 0), (4, 0.6, 0.4), (16, 1, 0.9)]
)
def test_detail_that_the_grid_cannot_hold_does_not_alias(
    make_image, small_config, axis, period_mm, most, least
):
    """A wave in an image of 0.4 mm on a grid of 1.6 mm; sampled alone, the first would be full."""
    sides = [8, 8, 8]
    sides[axis] = 160
    place_mm = np.indices(sides)[axis] * 0.4
    wave = np.sin(2 * np.pi * place_mm / period_mm) / 2 + 0.5
    spacing_mm, grid_mm = [3.0] * 3, [3.0] * 3
    spacing_mm[axis], grid_mm[axis] = 0.4, 1.6
    config = small_config("VolSize=32,32,32", f"dstRes={','.join(map(str, grid_mm))}")
    found = intensity_on_network_grid(make_image(wave.T.astype(np.float32), spacing_mm), config)
    inner = found[tuple(slice(side // 2 - 3, side // 2 + 3) for side in found.shape)]
    line = np.moveaxis(found, axis, 0)[2:-2, 16, 16]
    assert inner.mean() == pytest.approx(0.5, abs=0.1)
    assert least <= np.ptp(line) <= most


def test_equalizing_sees_only_what_lies_on_the_grid(make_image, small_config):
    """A scan of the whole pelvis and the part of it on the grid give the network the same."""
    values = np.random.default_rng(0).gamma(9, 30, (12, 90, 90)).astype(np.float32)
    values[:, 50:] *= 3
    values[:, :, 70:] = 9000
    config = small_config("VolSize=32,32,16", "dstRes=1,1,2", "intensity=equalize")
    whole = intensity_on_network_grid(make_image(values, (1, 1, 2)), config)
    part = make_image(values[:, 25:65, 25:65], (1, 1, 2))
    np.testing.assert_allclose(whole, intensity_on_network_grid(part, config), atol=1e-6)
    assert whole.max() == 1


def test_what_lies_beyond_a_standardized_image_is_no_tissue(make_image, small_config):
    """Half of its voxels are below 0, which would make 0 a grey of its tissue."""
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(12, 64, 64)), 1)
    image = make_image((texture / texture.std()).astype(np.float32), (1.5, 1.5, 3))
    config = small_config("VolSize=64,64,32", "dstRes=2,2,2", "intensity=equalize")
    found = intensity_on_network_grid(image, config)
    indices = image_indices(image, grid_points(image, config))
    outside = sampled(np.ones(image.GetSize()), indices) == 0
    assert outside.mean() > 0.5 and not found[outside].any()
    assert (found[~outside] > 0).mean() > 0.99


def test_voxels_above_zero_have_mean_0_and_deviation_1(gridded):
    image, config = gridded
    volume = image_to_network_grid(image, config)
    points = grid_points(image, config)
    outside = sampled(np.ones(image.GetSize()), image_indices(image, points)) == 0
    # Outside the image is the darkest value of all, 0 before the z-score.
    if outside.any():
        assert np.ptp(volume[outside]) == 0 and volume[outside].max() == volume.min()
    positive = volume[volume > volume.min()].astype(np.float64) if outside.any() else volume
    assert positive.mean() == pytest.approx(0, abs=1e-4)
    assert positive.std() == pytest.approx(1, abs=1e-3)


def test_z_score_does_not_depend_on_the_scanners_scale(gridded):
    image, config = gridded
    volume = image_to_network_grid(image, config)
    for scale, shift in ((1 / 2**15, 0), (0.01, -500), (2.0, 1000)):
        other = sitk.Cast(image * scale + shift, sitk.sitkFloat32)
        np.testing.assert_allclose(image_to_network_grid(other, config), volume, atol=2e-2)


def test_equal_shares_of_an_equalized_image_are_equally_bright(make_image, small_config):
    """Against SciPy's Gaussian and the ranks of the voxels, on a grid that is the image's own."""
    spacing_mm = np.array([1.0, 1.5, 3.0])
    values = np.random.default_rng(0).gamma(9, 30, (16, 32, 48)).astype(np.float32)
    values *= np.exp(-np.arange(32) / 16)[:, None]  # a coil
    config = small_config("VolSize=48,32,16", "dstRes=1,1.5,3", "intensity=equalize")
    found = intensity_on_network_grid(make_image(values, spacing_mm), config)
    logarithm = np.log((values - values.min()) / np.ptp(values) + 0.01)
    mean = ndimage.gaussian_filter(logarithm, 20 / spacing_mm[::-1], mode="nearest", truncate=6)
    ranks = stats.rankdata(logarithm - mean).reshape(values.shape) / values.size
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, ranks.T, atol=0.02)
    assert np.abs(found - ranks.T).mean() < 2e-3


def test_mask_is_sampled_linearly_and_cut_at_one_half(gridded):
    image, config = gridded
    array = sitk.GetArrayFromImage(image).T > 2**14
    mask = sitk.Cast(image > 2**14, sitk.sitkUInt8)
    soft = blurred(array, image, config)
    expected = sampled(soft, image_indices(image, grid_points(image, config)))
    found = mask_to_network_grid(mask, config)
    assert found.dtype == bool and found.any() and not found.all()
    clear = np.abs(expected - 0.5) > 1e-2
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found[clear], expected[clear] > 0.5)


def test_a_voxel_that_is_half_prostate_is_none(make_image, small_config):
    """Each voxel of the grid lies half-way between two of the image's 15 columns."""
    array = np.zeros((16, 16, 15), np.uint8)
    array[:, :, 5:10] = 1
    config = small_config("VolSize=16,16,16", "dstRes=1,1,1")
    found = mask_to_network_grid(make_image(array, (1, 1, 1)), config)
    assert found.sum(axis=(1, 2)).tolist() == [0] * 6 + [256] * 4 + [0] * 6


@moved
def test_probability_comes_back_to_where_it_was(gridded, moved_mm):
    image, config = gridded
    noise = np.random.default_rng(1).random(config.VolSize)
    probability = ndimage.gaussian_filter(noise, 1).astype(np.float32)
    points = np.indices(image.GetSize()) * np.reshape(image.GetSpacing(), (3, 1, 1, 1))
    points = np.einsum("ij,jxyz->ixyz", np.reshape(image.GetDirection(), (3, 3)), points)
    points = points + np.reshape(image.GetOrigin(), (3, 1, 1, 1))
    axes, origin = axes_of(image, config), grid_points(image, config, moved_mm)[:, 0, 0, 0]
    along = np.einsum("ji,jxyz->ixyz", axes, points - origin.reshape(3, 1, 1, 1))
    expected = sampled(probability, along / np.reshape(config.dstRes, (3, 1, 1, 1)))
    centre_mm = centre_of(image, moved_mm) if any(moved_mm) else None
    found = probability_to_case_grid(probability, image, config, centre_mm)
    assert found.GetPixelID() == sitk.sitkFloat32
    assert geometry_error(found, image) == 0
    np.testing.assert_allclose(xyz(found), expected, atol=1e-5)


def ball(image, radius_mm):
    """Distance of each voxel (x, y, z) to the image's centre, divided by a radius."""
    middle = [(side - 1) / 2 for side in image.GetSize()]
    steps = np.indices(image.GetSize()) - np.reshape(middle, (3, 1, 1, 1))
    return np.linalg.norm(steps * np.reshape(image.GetSpacing(), (3, 1, 1, 1)), axis=0) / radius_mm


@pytest.mark.parametrize("patient", [False, True])
def test_there_and_back_again(make_image, oblique, small_config, patient):
    """A smooth probability and a mask survive a fine grid, whatever the axes."""
    empty = make_image(np.zeros((14, 60, 60), np.float32), (0.5, 0.5, 2.0), direction=oblique)
    config = small_config("VolSize=48,48,48", "dstRes=0.7,0.7,0.7", f"normDir={patient}")
    smooth = np.exp(-2 * ball(network_grid(empty, config), 8.0) ** 2)
    back = xyz(probability_to_case_grid(smooth, empty, config))
    within = ball(empty, 13.0) < 1  # of the network grid, however it is turned
    expected = np.exp(-2 * ball(empty, 8.0) ** 2)
    np.testing.assert_allclose(back[within], expected[within], atol=0.01)

    truth = ball(empty, 10.0) < 1
    mask = make_image(truth.T.astype(np.uint8), (0.5, 0.5, 2.0), direction=oblique)
    on_grid = mask_to_network_grid(mask, config)
    again = xyz(probability_to_case_grid(on_grid, empty, config)) > 0.5
    assert 2 * (truth & again).sum() / (truth.sum() + again.sum()) > 0.95
    volume_mm3 = 4 / 3 * np.pi * 10**3
    assert on_grid.sum() * 0.7**3 == pytest.approx(volume_mm3, rel=0.03)


@pytest.mark.parametrize("intensity", ["rescale", "equalize"])
@pytest.mark.parametrize("value", [0, 7, -3])
def test_an_image_without_contrast_on_the_grid_is_refused(
    tmp_path, make_image, write_case, small_config, intensity, value
):
    config = small_config("dstRes=0.5,0.5,1", f"intensity={intensity}")
    values = np.full((30, 40, 40), value, np.float32)
    values[0, :3] = np.random.default_rng(0).integers(100, 900, (3, 40))  # far from the centre
    words = "no contrast within 8 x 8 x 16 mm about its centre"
    with pytest.raises(DataError, match=f"^{words}"):
        image_to_network_grid(make_image(values), config)
    path, _ = write_case(tmp_path, "Case0", ".mha", size_xyz=(40, 40, 30))
    write_volume(make_image(values), path)
    (case,) = find_cases(tmp_path, ["Case0"])
    for use in (lambda: load_training_volumes([case], config), lambda: prepare_case(case, config)):
        with pytest.raises(DataError, match=f"^{path}: {words}"):
            use()


@pytest.mark.parametrize("intensity", ["rescale", "equalize"])
@pytest.mark.parametrize("constant", [-1024, -32768, 32767, 65535])
def test_padding_hardly_changes_the_networks_input(make_image, small_config, intensity, constant):
    config = small_config(f"intensity={intensity}")
    rng = np.random.default_rng(0)
    plain = ndimage.gaussian_filter(rng.normal(size=(16, 48, 48)), (1, 2, 2))
    plain = (300 + 100 * plain / plain.std()).clip(1).astype(np.float32)
    padded = plain.copy()
    padded[..., :16] = constant
    first, second = (intensity_on_network_grid(make_image(v), config) for v in (plain, padded))
    tissue = np.s_[8:]  # of the grid's 16 voxels along x the first 5 lie on the padding
    assert np.abs(first[tissue] - second[tissue]).max() < (0.1 if intensity == "rescale" else 0.25)
    assert np.corrcoef(first[tissue].ravel(), second[tissue].ravel())[0, 1] > 0.97


# Training volumes and their cache ---------------------------------------------------------------


@pytest.fixture
def cases(tmp_path, write_case):
    for number, suffix in enumerate((".mhd", ".nii.gz", ".nrrd")):
        write_case(tmp_path / "data", f"Case{number}", suffix, seed=number)
    return find_cases(tmp_path / "data", ["Case2.mhd", "Case0.mhd", "Case1.mhd"])


@pytest.fixture
def cached_config(tmp_path, small_config):
    return lambda *overrides: small_config(f"cache_dir={tmp_path / 'cache'}", *overrides)


@pytest.fixture
def reads(monkeypatch):
    """Case ids that were read from their images."""
    seen = []

    def counted(case, config):
        seen.append(case.case_id)
        return read_case(case, config)

    monkeypatch.setattr(data_manager, "read_case", counted)
    return seen


def assert_same(volumes, others):
    for volume, other in zip(volumes, others, strict=True):
        for array, other_array in zip(volume, other, strict=True):
            np.testing.assert_array_equal(array, other_array)
        assert (volume.intensity.dtype, volume.mask.dtype) == (np.float32, bool)
        assert volume.plane == "axial"


@pytest.mark.parametrize("workers", [1, 2])
def test_training_volumes_come_in_the_order_of_the_cases(cases, small_config, workers):
    config = small_config(f"num_workers={workers}")
    volumes = load_training_volumes(cases, config)
    for case, (intensity, mask, plane, digest) in zip(cases, volumes, strict=True):
        image, reference = read_case(case, config)
        assert digest == content_digest(image, reference)
        np.testing.assert_array_equal(z_score(intensity), image_to_network_grid(image, config))
        np.testing.assert_array_equal(mask, mask_to_network_grid(reference, config))
        assert intensity.min() >= 0 and 0.9 < intensity.max() <= 1 and mask.any()
        assert plane == "axial"


def test_a_digest_tells_edits_from_other_files_of_the_same_content(tmp_path, make_image, oblique):
    """An edited voxel, mask, voxel size, position or direction; not a compressed copy or NIfTI."""
    cosine, sine = np.cos(np.radians(0.5)), np.sin(np.radians(0.5))
    random = np.random.default_rng(0)
    image = make_image(random.random((6, 8, 7)).astype(np.float32), spacing_mm=(0.6125, 0.7, 3.3))
    mask = make_image(
        (random.random((6, 8, 7)) > 0.5).astype(np.uint8), spacing_mm=(0.6125, 0.7, 3.3)
    )
    digest = content_digest(image, mask)
    for suffix in (".mha", ".nii.gz", ".nrrd"):
        copies = [tmp_path / f"{name}{suffix}" for name in ("image", "mask")]
        for volume, path in zip((image, mask), copies, strict=True):
            sitk.WriteImage(volume, str(path), useCompression=True)
        assert content_digest(*map(sitk.ReadImage, copies)) == digest

    def edited(volume, edit):
        copy = sitk.Image(volume)
        edit(copy)
        return copy

    others = [
        content_digest(edited(image, edit), mask)
        for edit in (
            lambda volume: volume.SetPixel(1, 2, 3, 2.0),
            lambda volume: volume.SetSpacing((0.613, 0.7, 3.3)),
            lambda volume: volume.SetOrigin((1, 0, 0)),
            lambda volume: volume.SetDirection(oblique.ravel()),
            lambda volume: volume.SetDirection((cosine, -sine, 0, sine, cosine, 0, 0, 0, 1)),
        )
    ]
    others += [
        content_digest(image, edited(mask, edit))
        for edit in (lambda m: m.SetPixel(1, 2, 3, 7), lambda m: m.SetOrigin((1, 0, 0)))
    ]
    assert len({digest, *others}) == 8


def test_labels_and_channel_come_from_the_configuration(tmp_path, make_image, small_config):
    """Also in the cache, which must not give one prostate for another."""
    first, second = (np.random.default_rng(i).random((9, 20, 20)) for i in range(2))
    volumes = [make_image(values.astype(np.float32)) for values in (first, second)]
    labels = np.zeros((9, 20, 20), np.uint8)
    labels[3:6, 5:15, 5:9], labels[3:6, 5:15, 9:15] = 1, 2
    (tmp_path / "img").mkdir()
    (tmp_path / "gt").mkdir()
    sitk.WriteImage(sitk.JoinSeries(volumes), str(tmp_path / "img/Case0.mha"))
    sitk.WriteImage(make_image(labels), str(tmp_path / "gt/Case0_segmentation.mha"))
    cases = find_cases(tmp_path, ["Case0.mha"])
    means = {}
    for channel, values in enumerate((first, second)):
        for label, expected in (("1", labels == 1), ("2", labels == 2), ("1,2", labels > 0)):
            config = small_config(
                f"channel={channel}", f"labels={label}", f"cache_dir={tmp_path / 'cache'}"
            )
            image, mask = read_case(cases[0], config)
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values.astype(np.float32))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), expected)
            volume = load_training_volumes(cases, config)[0]
            means[channel, label] = volume.intensity.mean(), volume.mask.mean()
    assert len(set(means.values())) == 6
    with pytest.raises(DataError, match="2 volumes.*--channel"):
        read_case(cases[0], small_config("labels=1,2"))
    with pytest.raises(DataError, match="labels 0, 1, 2, expected only 0 and 1"):
        read_case(cases[0], small_config("channel=1"))


@pytest.mark.parametrize("normal_directions", ["false", "true"])
def test_a_training_set_of_mixed_orders_trains_as_one(
    tmp_path, write_case, small_config, oblique, normal_directions
):
    """The same scan in every order of storage becomes the same training volume, cached or not."""
    image_path, mask_path = write_case(tmp_path / "lps", "Case", size_xyz=(26, 24, 12))
    names = []
    for number, (axes, signs) in enumerate(STORAGE_ORDERS):
        names.append(f"Case{number}.mha")
        for path, name in (
            (image_path, tmp_path / f"data/img/Case{number}.mha"),
            (mask_path, tmp_path / f"data/gt/Case{number}_segmentation.mha"),
        ):
            volume = sitk.ReadImage(str(path))
            volume.SetDirection(oblique.ravel())
            write_volume(stored_in_order(volume, axes, signs), name)
    config = small_config(
        "VolSize=32,16,16",
        "dstRes=1.1,1.7,1.9",
        f"normDir={normal_directions}",
        f"cache_dir={tmp_path / 'cache'}",
    )
    cases = find_cases(tmp_path / "data", names)
    for _ in range(2):
        volumes = load_training_volumes(cases, config)
        first = volumes[STORAGE_ORDERS.index(((0, 1, 2), (1, 1, 1)))]
        assert first.mask.any()
        for volume in volumes:
            # But for a few voxels on the border, which rounding leaves in or out of the image.
            assert np.mean(np.abs(volume.intensity - first.intensity) > 1e-5) < 1e-3
            assert (volume.mask != first.mask).sum() <= 1
            assert volume.plane == "axial"


@pytest.mark.parametrize(
    "asked, cores, workers",
    [(0, 1, 1), (0, 4, 4), (0, 64, 8), (3, 64, 3), (16, 4, 4), (16, 64, 16)],
)
def test_worker_count(small_config, monkeypatch, asked, cores, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    assert worker_count(small_config(f"num_workers={asked}")) == workers


def test_the_second_start_reads_no_image(cases, cached_config, small_config, monkeypatch):
    first = load_training_volumes(cases, cached_config())

    def poison(*_):
        raise AssertionError("an image was read")

    monkeypatch.setattr(sitk, "ImageFileReader", poison)
    monkeypatch.setattr(sitk, "ReadImage", poison)
    monkeypatch.setattr(sitk, "Resample", poison)
    assert_same(load_training_volumes(cases, cached_config()), first)
    with pytest.raises(AssertionError):
        load_training_volumes(cases, small_config())
    monkeypatch.undo()
    assert_same(load_training_volumes(cases, small_config()), first)


def test_a_cache_that_may_not_be_read_is_none(cases, cached_config, monkeypatch, capsys):
    """Such as that of another user, with HOME as it was."""
    first = load_training_volumes(cases, cached_config())

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(np, "load", refuse)
    assert_same(load_training_volumes(cases, cached_config()), first)
    assert "cannot be read (Permission denied; " in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides",
    [["VolSize=16,32,16"], ["dstRes=2.5,2.5,2.6"], ["normDir=true"], ["intensity=equalize"]],
)
def test_another_grid_misses_the_cache(cases, cached_config, small_config, reads, overrides):
    load_training_volumes(cases, cached_config())
    reads.clear()
    volumes = load_training_volumes(cases, cached_config(*overrides))
    assert sorted(reads) == ["Case0", "Case1", "Case2"]
    assert_same(volumes, load_training_volumes(cases, small_config(*overrides)))


def test_another_version_of_the_preprocessing_misses_the_cache(
    cases, cached_config, reads, monkeypatch
):
    load_training_volumes(cases, cached_config())
    reads.clear()
    monkeypatch.setattr(data_manager, "PREPROCESSING", 99)
    load_training_volumes(cases, cached_config())
    assert sorted(reads) == ["Case0", "Case1", "Case2"]


def test_what_does_not_shape_a_volume_still_hits(cases, cached_config, reads):
    load_training_volumes(cases, cached_config())
    reads.clear()
    load_training_volumes(cases, cached_config("lr=0.1", "seed=3", "batch_size=1", "width=4"))
    assert reads == []


def invert_byte(path):
    """The lowest bit of one byte: a voxel of a mask still is 0 or 1."""
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)


def invert_byte_and_keep_the_time(path):
    before = path.stat()
    invert_byte(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def later(path):
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize(
    "change, name",
    [
        (change, name)
        for change in (invert_byte, invert_byte_and_keep_the_time, later)
        for name in ("img/Case0.raw", "gt/Case0_segmentation.raw")
    ]
    + [(later, "img/Case0.mhd"), (later, "gt/Case0_segmentation.mhd")],
)
def test_a_changed_file_misses_the_cache(
    tmp_path, cases, cached_config, small_config, reads, change, name
):
    load_training_volumes(cases, cached_config())
    reads.clear()
    change(tmp_path / "data" / name)
    volumes = load_training_volumes(cases, cached_config())
    assert reads == ["Case0"]
    assert_same(volumes, load_training_volumes(cases, small_config()))


def test_a_swapped_data_file_misses_the_cache(tmp_path, cases, cached_config, reads):
    """Same path, size and time, other content: a copy that kept the times."""
    path = tmp_path / "data" / "img" / "Case0.raw"
    load_training_volumes(cases, cached_config())
    before = path.stat()
    other = tmp_path / "other.raw"
    other.write_bytes(path.read_bytes()[::-1])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    reads.clear()
    load_training_volumes(cases, cached_config())
    assert reads == ["Case0"]


def break_zip(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "damage",
    [
        break_zip,
        flip_middle,
        lambda _: b"",
        lambda _: b"PK\x03\x04 and nothing behind",
        lambda _: b"\x93NUMPY",
        lambda _: b"garbage" * 100,
    ],
    ids=["cut", "flipped", "empty", "zip-magic", "npy-magic", "garbage"],
)
def test_a_damaged_cache_is_made_again(tmp_path, cases, cached_config, reads, damage):
    first = load_training_volumes(cases, cached_config())
    files = sorted((tmp_path / "cache").iterdir())
    assert [path.name[:6] for path in files] == ["Case0-", "Case1-", "Case2-"]
    whole = files[1].read_bytes()
    files[1].write_bytes(damage(whole))
    reads.clear()
    assert_same(load_training_volumes(cases, cached_config()), first)
    assert reads == ["Case1"]
    assert sorted((tmp_path / "cache").iterdir()) == files
    reads.clear()
    assert_same(load_training_volumes(cases, cached_config()), first)
    assert reads == []


def test_a_cache_file_of_other_arrays_is_made_again(tmp_path, cases, cached_config):
    first = load_training_volumes(cases, cached_config())
    for path in (tmp_path / "cache").iterdir():
        np.savez(path, intensity=np.zeros(3))
    assert_same(load_training_volumes(cases, cached_config()), first)


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below"])
def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path, cases, small_config, place):
    (tmp_path / "file").write_text("mine")
    config = small_config(f"cache_dir={tmp_path / place}")
    assert_same(load_training_volumes(cases, config), load_training_volumes(cases, small_config()))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_no_failure_of_the_cache(
    tmp_path, cases, cached_config, small_config, full_disk
):
    with full_disk(2000):
        volumes = load_training_volumes(cases, cached_config())
    assert list((tmp_path / "cache").iterdir()) == []
    assert_same(volumes, load_training_volumes(cases, small_config()))


def test_cache_lies_where_the_configuration_says(tmp_path, cases, small_config, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = tree(tmp_path)
    load_training_volumes(cases, small_config("cache_dir=off"))
    assert tree(tmp_path) == before
    load_training_volumes(cases, small_config(f"cache_dir={tmp_path / 'here'}"))
    assert len(list((tmp_path / "here").glob("*.npz"))) == 3
    assert not (tmp_path / "xdg").exists()
    load_training_volumes(cases, small_config("cache_dir=auto"))
    assert len(list((tmp_path / "xdg" / "vnet_mindspore").glob("*.npz"))) == 3
    monkeypatch.delenv("XDG_CACHE_HOME")
    load_training_volumes(cases, small_config("cache_dir=auto"))
    assert len(list((tmp_path / "home" / ".cache" / "vnet_mindspore").glob("*.npz"))) == 3


def test_a_broken_case_stops_the_loading_and_is_named(tmp_path, cases, cached_config):
    path = tmp_path / "data" / "img" / "Case0.raw"
    load_training_volumes(cases, cached_config())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"Case0\.raw: truncated"):
        load_training_volumes(cases, cached_config())
    path.unlink()
    with pytest.raises(DataError, match=r"Case0\.raw is missing"):
        load_training_volumes(cases, cached_config())


def test_a_gland_outside_the_network_grid_is_an_error(tmp_path, make_image, small_config):
    values = np.random.default_rng(0).integers(0, 900, (12, 60, 60)).astype(np.int16)
    mask = np.zeros((12, 60, 60), np.uint8)
    mask[:2, :3, :3] = 1
    for name, array in (("img/Case0.mha", values), ("gt/Case0_segmentation.mha", mask)):
        write_volume(make_image(array), tmp_path / name)
    with pytest.raises(DataError) as error:
        load_training_volumes(find_cases(tmp_path, ["Case0"]), small_config())
    assert "Case0_segmentation.mha: no foreground on the network grid" in str(error.value)
    assert "[16, 16, 16]" in str(error.value) and "[2.5, 2.5, 2.5] mm" in str(error.value)


@pytest.mark.parametrize(("first", "percent"), [(0, ["59"]), (12, ["91"]), (13, [])])
def test_a_gland_partly_outside_the_network_grid_is_said(
    tmp_path, make_image, small_config, capsys, first, percent
):
    """From a twentieth of it on; the grid holds columns 14 to 45."""
    values = np.random.default_rng(0).integers(0, 900, (12, 60, 60)).astype(np.int16)
    mask = np.zeros((12, 60, 60), np.uint8)
    mask[4:8, 25:35, first:34] = 1
    for name, array in (("img/Case0.mha", values), ("gt/Case0_segmentation.mha", mask)):
        write_volume(make_image(array), tmp_path / name)
    config = small_config(f"cache_dir={tmp_path / 'cache'}")
    for _ in range(2):  # the second time from the cache
        load_training_volumes(find_cases(tmp_path, ["Case0"]), config)
        said = capsys.readouterr().out
        assert re.findall(r"only (\d+)% of the prostate", said) == percent


def test_a_case_without_a_prostate_is_trained_on_with_a_word(
    tmp_path, make_image, small_config, capsys
):
    values = np.random.default_rng(0).integers(0, 900, (12, 20, 20)).astype(np.int16)
    write_volume(make_image(values), tmp_path / "img/Case0.mha")
    write_volume(
        make_image(np.zeros_like(values, np.uint8)), tmp_path / "gt/Case0_segmentation.mha"
    )
    config = small_config(f"cache_dir={tmp_path / 'cache'}")
    for _ in range(2):  # the second time from the cache
        (volume,) = load_training_volumes(find_cases(tmp_path, ["Case0"]), config)
        assert not volume.mask.any() and volume.intensity.any()
        assert "Case0_segmentation.mha: empty" in capsys.readouterr().out
