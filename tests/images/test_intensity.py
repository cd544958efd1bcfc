"""Equalization; test_data_manager.py has its histogram, test_dataset.py the z-score."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from src.images import intensity
from src.images.intensity import equalize, tissue, without_padding
from tests.volumes import geometry_of, image_of


def test_an_equalized_image_has_lost_its_coils_field():
    rng = np.random.default_rng(0)
    anatomy = ndimage.gaussian_filter(rng.normal(size=(64, 64, 16)), 2)
    anatomy = np.exp(anatomy / anatomy.std() / 3)
    field = np.exp(-np.arange(64) / 28)[:, None]  # falls to a tenth over 64 mm
    plain, coil = (equalize(values, (1.25, 1.25, 2.5)) for values in (anatomy, anatomy * field))
    assert np.corrcoef(plain.ravel(), coil.ravel())[0, 1] > 0.9
    assert np.corrcoef(anatomy.ravel(), (anatomy * field).ravel())[0, 1] < 0.6


@pytest.mark.parametrize("beyond", [np.nan, 0, -1])
@pytest.mark.parametrize("shape", [(40, 16, 8), (40, 16, 1), (40, 3, 2)])
def test_what_is_no_tissue_stays_dark_and_is_not_counted(shape, beyond):
    values = np.random.default_rng(0).uniform(200, 300, shape).astype(np.float32)
    values[20:] = beyond  # outside the image, or padding
    given = values.copy()
    found = equalize(values, (0.8, 0.6, 3))
    np.testing.assert_array_equal(values, given)
    assert not found[30:].any() and found.max() == 1 and found.dtype == np.float32
    assert found[:20].mean() == pytest.approx(0.5, abs=0.15 if beyond <= 0 else 0.01)


def test_padding_hardly_changes_the_equalized_tissue():
    values = 100 + np.random.default_rng(0).gamma(9, 30, (40, 40, 12)).astype(np.float32)
    plain = equalize(values, (1, 1, 3))
    padding = ((9, 20), (0, 0), (0, 0))
    for outside in (np.nan, 0):
        padded = equalize(np.pad(values, padding, constant_values=outside), (1, 1, 3))[9:49]
        assert np.abs(padded - plain)[5:-5].mean() < 0.01


@pytest.mark.parametrize("offset", [0, -500])
def test_equalizing_forgets_the_scanners_scale(offset):
    values = 1000 + np.random.default_rng(0).gamma(2, 100, (48, 32, 16)).astype(np.float32)
    first, second = (equalize(array, (1, 1, 3)) for array in (values, 3 * values + offset))
    np.testing.assert_allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, 0, 3, -2])
def test_an_image_of_one_value_equalizes_to_zeros(value):
    assert not equalize(np.full((6, 5, 4), value, np.float32), (1, 1, 3)).any()


# Padding -----------------------------------------------------------------------------------------


def measured():
    """Intensities of an MR image from 3 to 2000, (8, 20, 20) float32."""
    values = np.random.default_rng(0).gamma(2, 150, (8, 20, 20)).clip(3, 2000)
    values[0, 0, :2] = 3, 2000
    return values.astype(np.float32)


@pytest.mark.parametrize("constant", [-1, -1024, -32768, -3.4e38, 32767, 65535, 3.4e38])
@pytest.mark.parametrize("is_interpolated", [False, True])
def test_padding_becomes_the_lowest_measured_intensity(constant, is_interpolated, oblique):
    values = measured()
    values[:, 12:] = constant
    expected = values.copy()
    expected[:, 12:] = 3
    if is_interpolated and constant < -2000:
        values[:, 12] = (values[:, 11].astype(float) + constant) / 2
        lowest = np.clip(values[:, 12].min(), 0, 3)
        expected[:, 12], expected[:, 13:] = values[:, 12].clip(lowest), lowest
    image = image_of(values, (1, 1.5, 3), direction=oblique)
    found = without_padding(image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), expected)
    assert geometry_of(found) == geometry_of(image)


@pytest.mark.parametrize(("count", "lowest"), [(15, -1024), (16, 3)])
def test_padding_is_at_least_half_a_percent(count, lowest):
    values = measured()  # of 3200 voxels
    values.flat[100 : 100 + count] = -1024
    assert sitk.GetArrayFromImage(without_padding(image_of(values))).min() == lowest


@pytest.mark.parametrize(("count", "lowest"), [(269, 0), (331, -5)])
def test_what_is_below_0_is_raised_where_it_is_a_tenth_at_most(count, lowest):
    """Of the 3000 voxels that are no padding."""
    values = measured()
    values.flat[100:300] = -3000
    values.flat[300 : 300 + count] = -5
    assert sitk.GetArrayFromImage(without_padding(image_of(values))).min() == lowest


def test_what_is_no_padding_stays():
    plain = measured()
    saturated = plain.clip(None, 900)
    hot = plain.copy()
    hot[0, 1, :3] = 65535  # fewer than half a percent
    background = plain.copy()
    background[:, 12:] = 0
    scaled = ((plain - plain.mean()) / plain.std()).astype(np.float32)
    two_valued = np.where(plain > 300, np.float32(255), np.float32(0))
    constant = np.full((4, 5, 6), -3, np.float32)
    for values in (plain, saturated, hot, background, scaled, two_valued, constant):
        found = without_padding(image_of(values))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), values)


@pytest.mark.parametrize("mean", [300, 20])
@pytest.mark.parametrize("background", [-9, -1.49])
def test_the_background_of_a_standardized_image_is_its_lowest_tissue(mean, background):
    """Tissue below 0 stays, also where most of it is above."""
    scaled = (measured() - mean) / 200
    assert scaled.min() > background
    padded = scaled.copy()
    padded[:, 12:] = background
    found = sitk.GetArrayFromImage(without_padding(image_of(padded)))
    np.testing.assert_array_equal(found[:, :12], scaled[:, :12])
    assert (found[:, 12:] == scaled.min()).all()


# Air ---------------------------------------------------------------------------------------------


def body_in_air(tissue_share, snr, coil):
    """A textured ellipse in air with Rician noise, (96, 96, 12), and where the ellipse is.

    A coil makes its right end brighter than its left by this factor, but not the noise.
    """
    rng = np.random.default_rng(0)
    x, y, _ = np.indices((96, 96, 12)) / 95 * 2 - 1
    body = (x / 1.2) ** 2 + y**2 < tissue_share * 4 / np.pi / 1.2
    texture = ndimage.gaussian_filter(rng.normal(size=body.shape), (2, 2, 1))
    signal = np.where(body, 300 * np.exp(texture / texture.std() / 2), 0) * coil ** (x / 2)
    noise = rng.normal(0, 300 / snr, (2, *body.shape))
    return np.hypot(signal + noise[0], noise[1]).astype(np.float32), body


@pytest.mark.parametrize("coil", [1, 3])
@pytest.mark.parametrize("tissue_share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("snr", [20, 60])
def test_noise_in_the_air_does_not_become_grey(tissue_share, snr, coil):
    values, body = body_in_air(tissue_share, snr, coil)
    spacing_mm = (1.5, 1.5, 3)
    equalized, found = equalize(values, spacing_mm), tissue(values, spacing_mm)
    far_out = ndimage.distance_transform_edt(~body, sampling=spacing_mm) > 8
    assert (equalized[far_out] > 0).mean() < 1e-3
    np.testing.assert_array_equal(found[far_out], equalized[far_out] > 0)
    assert found[body].mean() > 0.999
    # The body itself looks as it does without the air, but for its rim.
    alone = equalize(np.where(body, values, np.nan), spacing_mm)
    inner = ndimage.distance_transform_edt(body, sampling=spacing_mm) > 12
    assert np.abs(equalized - alone)[inner].mean() < 0.06


def test_air_is_what_stays_below_twice_its_lowest_mean():
    """Here 8, so that neither 4 % nor 10 % of the tissue's 300 are the bound."""
    values = np.full((48, 48, 24), 300, np.float32)
    values[:, :16] = 8
    values[2:14, 2:14], values[18:30, 2:14] = 14, 20
    assert tissue(values, (1, 1, 1))[[8, 24, 40], 8, 12].tolist() == [False, True, False]


def test_a_body_below_0_is_tissue():
    """As it is in a standardized image."""
    values, body = body_in_air(0.5, 20, 1)
    standardized = (values - values.mean()) / values.std()
    assert (standardized[body] < 0).mean() > 0.02
    assert tissue(standardized, (1.5, 1.5, 3))[body].all()


def test_the_whole_of_an_image_without_air_is_tissue():
    """Cropped to the pelvis, with an endorectal coil: dark parts are not taken for air."""
    rng = np.random.default_rng(0)
    x, y, z = np.indices((64, 64, 24))
    distance_mm = np.hypot(x - 32, y - 50) * 1.75
    field = 0.4 + 12 * np.exp(-distance_mm / 12)
    texture = ndimage.gaussian_filter(rng.normal(size=x.shape), 1)
    values = 150 * field * np.exp(texture / texture.std() / 3)
    assert tissue(values, (1.75, 1.75, 3)).all()


# The Gaussian ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [((70, 60, 20), (0.5, 1.3, 3)), ((40, 9, 5), (2, 4, 9)), ((2, 3, 1), (0.3, 0.5, 30))],
)
def test_the_mean_is_the_gaussian_mean(shape, spacing_mm):
    array = np.random.default_rng(0).random(shape, np.float32)
    array += np.linspace(0, 5, shape[0], dtype=np.float32)[:, None, None]
    sigmas = [20 / size_mm for size_mm in spacing_mm]
    exact = ndimage.gaussian_filter(array.astype(float), sigmas, mode="nearest", truncate=8)
    np.testing.assert_allclose(intensity._gaussian_mean(array, spacing_mm, 20), exact, atol=0.02)


def test_the_table_gives_the_share_of_the_quantiles():
    """An outlier makes the table's steps wide; half a step holds few voxels nonetheless."""
    contrast = np.random.default_rng(0).normal(0, 0.3, 50_000).astype(np.float32)
    contrast[7] = 9
    shares = np.linspace(0, 1, 1025)
    expected = np.interp(contrast, np.quantile(contrast, shares), shares)
    density = 1 / 0.3 / np.sqrt(2 * np.pi)
    half_step = np.ptp(contrast) / intensity.TABLE_STEPS / 2
    found = intensity._shares_below(contrast)
    np.testing.assert_allclose(found, expected, atol=2 * density * half_step + 1e-6)


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [1.0, 2.0], [1.0, 1.0, 1.0, 5.0]])
def test_shares_of_few_values(values):
    shares = np.linspace(0, 1, 1025)
    quantiles, first = np.unique(np.quantile(values, shares), return_index=True)
    expected = np.interp(values, quantiles, shares[first])
    found = intensity._shares_below(np.array(values, np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-3)
