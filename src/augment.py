"""Random augmentation of training cases: the V-Net paper's (section 3) and later transforms.

`draw` chooses the parameters of a sample at random, `apply` is deterministic, so any sample can be
reproduced from (seed, epoch, case). The spatial transforms are combined into one set of sampling
positions, so image and mask are interpolated once. Arrays have axes (X, Y, Z); intensities are in
0..1, with 0 outside the image. The probability of each transform is `vnet_cfg.augment_NAME`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from easydict import EasyDict
from scipy import ndimage
from scipy.spatial.transform import Rotation

from .data_manager import LEFT_RIGHT_AXIS, TrainingVolume
from .metrics import bounding_box

# In the order of application; `transplant` comes between. Each draws from its own random stream, so
# that switching one on or off does not change the others; the spatial ones are also the donor's.
SPATIAL = ("flip", "rotate", "scale", "shift", "deform")
INTENSITY = ("histogram", "gamma", "bias", "low_resolution", "blur", "noise")
TRANSFORMS = (*SPATIAL, *INTENSITY, "transplant")
AUGMENT_STREAM = 2  # random stream of the seed; src.dataset and src.dropout use others

# Milletari et al. 2016, section 3: a 2x2x2 grid of B-splines, control points displaced with a
# standard deviation of 15 voxels of 1 x 1 x 1.5 mm. 2x2x2 is taken as the mesh size of SimpleITK's
# BSplineTransform; a mesh of n cells has n + 3 control points along an axis.
DEFORM_MESH = 2
DEFORM_SIGMA_MM = (15.0, 15.0, 22.5)
# The other ranges are usual for MR volumes (nnU-Net, TorchIO).
ROTATION_DEGREES = 10.0  # +-, about each axis
SCALE = (0.7, 1.4)
ASPECT = (0.9, 1.1)  # further scaling, for each axis by itself
SHIFT_MM = 8.0  # +-, along each axis
GAMMA = (0.7, 1.5)
BIAS_MESH = 1
BIAS_SIGMA = 0.5  # of the field's logarithm at its control points
LOW_RESOLUTION = (1.5, 3.0)  # times coarser, along one axis
BLUR_SIGMA_MM = (0.5, 1.5)
NOISE_SIGMA = (0.0, 0.25)  # relative to the standard deviation of the intensities
TRANSPLANT_MARGIN_MM = (2.0, 12.0)  # of the tissue around the gland that comes with it
TRANSPLANT_FADE_MM = 6.0
QUANTILES = 256  # of histogram matching
QUANTILE_STEP = 7  # quantiles are those of every seventh voxel, for speed


# --- random parameters ---------------------------------------------------------------------------


def draw(
    config: EasyDict, epoch: int, case: int, case_count: int, repeat: int = 0
) -> dict[str, Any]:
    """Chooses the transforms of one sample and their parameters at random.

    Args:
        config: `seed` and the probabilities `augment_NAME`.
        epoch: counted from 0.
        case: index of the training case.
        case_count: number of training cases; with one there is no `histogram` and no `transplant`.
        repeat: number of earlier samples of this case in the epoch; cases are repeated to fill the
            last batch.

    Returns:
        {name: parameters} of the chosen transforms, in the order of `TRANSFORMS`, for `apply`:
            flip: axis
            rotate, scale, shift: (3,) degrees about x, y, z; factors; mm
            deform: (3, n, n, n) mm, control points of the B-splines along x, y, z
            histogram: index of the other training case
            gamma: exponent
            bias: (m, m, m) control points of the field's logarithm
            low_resolution: axis, factor
            blur: standard deviation in mm
            noise: standard deviation, seed
            transplant: {"case": index of the other case, "margin_mm": margin about its gland,
                spatial transform: parameters as above, of the other case}
    """
    params = {}
    for stream, name in enumerate(TRANSFORMS):
        rng = np.random.default_rng((config.seed, AUGMENT_STREAM, epoch, case, repeat, stream))
        if rng.random() < config[f"augment_{name}"]:
            params[name] = _draw_one(name, rng, config, case, case_count)
    return {name: value for name, value in params.items() if value is not None}


def _draw_one(
    name: str, rng: np.random.Generator, config: EasyDict, case: int, case_count: int
) -> Any:
    if name in ("histogram", "transplant") and case_count < 2:
        return None
    if name == "flip":
        return LEFT_RIGHT_AXIS
    if name == "rotate":
        return rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES, 3)
    if name == "scale":
        scale = rng.uniform(*np.log(SCALE))
        return np.exp(scale + rng.uniform(np.log(ASPECT[0]), np.log(ASPECT[1]), 3))
    if name == "shift":
        return rng.uniform(-SHIFT_MM, SHIFT_MM, 3)
    if name == "deform":
        points = (DEFORM_MESH + 3,) * 3
        return np.stack([rng.normal(0, sigma, points) for sigma in DEFORM_SIGMA_MM])
    if name == "histogram":
        return _draw_other(rng, case, case_count)
    if name == "gamma":
        return float(np.exp(rng.uniform(*np.log(GAMMA))))
    if name == "bias":
        return rng.normal(0, BIAS_SIGMA, (BIAS_MESH + 3,) * 3)
    if name == "low_resolution":
        return int(rng.integers(3)), float(rng.uniform(*LOW_RESOLUTION))
    if name == "blur":
        return float(rng.uniform(*BLUR_SIGMA_MM))
    if name == "noise":
        return float(rng.uniform(*NOISE_SIGMA)), int(rng.integers(2**32))
    assert name == "transplant", name
    donor = _draw_other(rng, case, case_count)
    params = {"case": donor, "margin_mm": float(rng.uniform(*TRANSPLANT_MARGIN_MM))}
    for move in SPATIAL:
        is_chosen = rng.random() < config[f"augment_{move}"]
        value = _draw_one(move, rng, config, donor, case_count)
        if is_chosen:
            params[move] = value
    return params


def _draw_other(rng, case, case_count):
    """A training case other than this one."""
    return int(case + rng.integers(1, case_count)) % case_count


# --- deterministic transforms --------------------------------------------------------------------


def apply(
    params: dict[str, Any], volumes: list[TrainingVolume], case: int, voxel_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Applies the transforms that `draw` chose to a case.

    Args:
        params: from `draw`.
        volumes: all training cases; not changed.
        case: index of the case.
        voxel_mm: (3,) voxel size of the network grid.

    Returns:
        Intensity (X, Y, Z) float32, in 0..1 before noise and bias field, and mask (X, Y, Z) bool.
    """
    intensity, mask = _apply_spatial(params, volumes[case], voxel_mm)
    if "transplant" in params:
        of_donor = params["transplant"]
        new, new_mask = _apply_spatial(of_donor, volumes[of_donor["case"]], voxel_mm)
        margin_mm = of_donor["margin_mm"]
        intensity, mask = transplant(intensity, mask, new, new_mask, margin_mm, voxel_mm)
    if "histogram" in params:
        intensity = match_histogram(intensity, volumes[params["histogram"]].intensity)
    if "gamma" in params:
        intensity = adjust_gamma(intensity, params["gamma"])
    if "bias" in params:
        intensity = apply_bias_field(intensity, params["bias"])
    if "low_resolution" in params:
        intensity = lower_resolution(intensity, *params["low_resolution"])
    if "blur" in params:
        intensity = blur(intensity, params["blur"] / np.asarray(voxel_mm))
    if "noise" in params:
        intensity = add_noise(intensity, *params["noise"])
    return intensity, mask


def _apply_spatial(params, volume, voxel_mm):
    """Intensity and mask of a case after the spatial ones of the transforms."""
    intensity, mask = volume.intensity, volume.mask
    spatial = {name: params[name] for name in SPATIAL if name in params}
    if not spatial:
        return intensity, mask
    positions = sampling_positions(intensity.shape, voxel_mm, **spatial)
    return resample(intensity, positions), resample_mask(mask, positions)


def augment_case(
    volumes: list[TrainingVolume], case: int, epoch: int, config: EasyDict, repeat: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sample of a case in an epoch: `draw`, then `apply`.

    Args:
        volumes, case: see `apply`.
        epoch, repeat: see `draw`.
        config: `seed`, `dstRes` and the probabilities `augment_NAME`.

    Returns:
        Intensity and mask, see `apply`.
    """
    params = draw(config, epoch, case, len(volumes), repeat)
    return apply(params, volumes, case, config.dstRes)


def sampling_positions(
    shape: tuple[int, ...],
    voxel_mm: Sequence[float],
    flip: int | None = None,
    rotate: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    shift: np.ndarray | None = None,
    deform: np.ndarray | None = None,
) -> np.ndarray:
    """Returns where to sample the original for each voxel of the transformed volume.

    The content is shifted, scaled, rotated and flipped about the centre, in this order, and then
    deformed.

    Args:
        shape: (X, Y, Z).
        voxel_mm: (3,) voxel size.
        flip: array axis to flip.
        rotate: (3,) angles in degrees about X, Y and Z.
        scale: (3,) magnification along X, Y and Z.
        shift: (3,) mm towards higher X, Y and Z.
        deform: (3, n, n, n) displacements of the sampling positions, in mm along the original's X,
            Y and Z, at the control points of cubic B-splines over the result.

    Returns:
        (3, X, Y, Z) float32, in voxels of the original.
    """
    side_mm = np.asarray(voxel_mm)
    matrix = np.eye(3)  # maps positions in the result to positions in the original, mm
    if flip is not None:
        matrix[flip, flip] = -1
    if rotate is not None:
        matrix = Rotation.from_euler("xyz", rotate, degrees=True).as_matrix().T @ matrix
    if scale is not None:
        matrix = np.diag(1 / scale) @ matrix
    matrix = matrix * side_mm / side_mm[:, None]  # voxels
    centre = (np.array(shape) - 1) / 2
    offset = centre - matrix @ centre
    if shift is not None:
        offset -= shift / side_mm
    axes = [np.arange(side, dtype=np.float32) for side in shape]
    positions = np.empty((3, *shape), np.float32)
    for axis, position in enumerate(positions):
        x, y, z = (places * np.float32(matrix[axis, i]) for i, places in enumerate(axes))
        np.add((x + np.float32(offset[axis]))[:, None, None], y[:, None] + z, out=position)
        if deform is not None:
            position += spline_field(deform[axis] / side_mm[axis], shape)
    return positions


def spline_basis(count: int, mesh: int) -> np.ndarray:
    """Evaluates cubic B-splines over `mesh` equal cells at `count` points from end to end.

    Returns:
        (count, mesh + 3) float32; each row sums to 1.
    """
    distance = np.abs(np.linspace(0, mesh, count)[:, None] - (np.arange(mesh + 3) - 1))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def spline_field(control: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the field (X, Y, Z) float32 of cubic B-splines with control points (n, n, n)."""
    field = control.astype(np.float32)
    for side in shape:  # each pass turns the first axis into voxels and moves it to the end
        field = np.tensordot(field, spline_basis(side, control.shape[0] - 3), axes=(0, 1))
    return field


def resample(intensity: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Interpolates linearly at positions (3, ...) in voxels; 0 outside the array."""
    return ndimage.map_coordinates(intensity, positions, order=1, prefilter=False)


def resample_mask(mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """`resample`, then threshold 0.5; for speed only at positions near the mask."""
    result = np.zeros(positions.shape[1:], bool)
    if not mask.any():
        return result
    near = np.ones_like(result)
    for position, side in zip(positions, bounding_box(mask), strict=True):
        near &= (position > side.start - 1) & (position < side.stop)
    result[near] = resample(mask.astype(np.float32), positions[:, near]) > 0.5
    return result


def transplant(
    intensity: np.ndarray,
    mask: np.ndarray,
    donor_intensity: np.ndarray,
    donor_mask: np.ndarray,
    margin_mm: float,
    voxel_mm: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Puts the gland of another case, with the tissue near it, in the place of the gland.

    As CarveMix does with lesions (Zhang et al. 2021, https://arxiv.org/abs/2108.06883), but the
    centres of mass are brought together, by whole voxels, and the border is faded. What the new
    tissue does not cover stays as it is, with its mask.

    Args:
        intensity, mask: (X, Y, Z) of the case.
        donor_intensity, donor_mask: (X, Y, Z) of the other case.
        margin_mm: distance from the donor's gland at which either image has half of the weight. It
            changes from all to none over `TRANSPLANT_FADE_MM`.
        voxel_mm: (3,) voxel size.

    Returns:
        Intensity (X, Y, Z) float32 and mask (X, Y, Z) bool; the case's own if either mask is empty.
    """
    if not (mask.any() and donor_mask.any()):
        return intensity, mask
    centre, donor_centre = (np.mean(np.nonzero(one), axis=1) for one in (mask, donor_mask))
    steps = np.rint(centre - donor_centre).astype(int)
    donor_intensity, donor_mask = _moved(donor_intensity, steps), _moved(donor_mask, steps)
    if not donor_mask.any():  # of pieces that all left the grid
        return intensity, mask
    reach = np.ceil((margin_mm + TRANSPLANT_FADE_MM / 2) / np.asarray(voxel_mm)).astype(int)
    box = tuple(
        slice(max(0, side.start - voxels), side.stop + voxels)
        for side, voxels in zip(bounding_box(donor_mask), reach, strict=True)
    )
    donor_intensity, donor_mask = donor_intensity[box], donor_mask[box]
    distance_mm = ndimage.distance_transform_edt(~donor_mask, sampling=voxel_mm)
    share = np.clip((margin_mm - distance_mm) / TRANSPLANT_FADE_MM + 0.5, 0, 1)
    share = np.where(donor_intensity > 0, share, 0).astype(np.float32)
    intensity, mask = intensity.copy(), mask.copy()
    intensity[box] += share * (donor_intensity - intensity[box])
    mask[box] = np.where(share > 0.5, donor_mask, mask[box])
    return intensity, mask


def _moved(array, steps):
    """The array moved by whole voxels along each axis; what comes in is 0."""
    moved = np.zeros_like(array)
    target = tuple(slice(max(0, n), min(0, n) or None) for n in steps)
    source = tuple(slice(max(0, -n), min(0, -n) or None) for n in steps)
    moved[target] = array[source]
    return moved


def match_histogram(intensity: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Maps the quantiles of the voxels above 0 to those of a reference; 0 stays 0.

    As in the paper, the reference is another training case. The map is linear between `QUANTILES`
    quantiles.

    Args:
        intensity, reference: (X, Y, Z), may differ in shape.
    """
    inside = intensity > 0
    own, other = (v[v > 0][::QUANTILE_STEP] for v in (intensity, reference))
    if not own.size or not other.size:
        return intensity
    share = np.linspace(0, 1, QUANTILES)
    matched = np.interp(intensity, np.quantile(own, share), np.quantile(other, share))
    return np.where(inside, matched, 0).astype(np.float32)


def adjust_gamma(intensity: np.ndarray, gamma: float) -> np.ndarray:
    """Raises intensities to the power of `gamma`."""
    return intensity ** np.float32(gamma)


def apply_bias_field(intensity: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Multiplies by a smooth field, as a coil's sensitivity does.

    Args:
        intensity: (X, Y, Z).
        control: (n, n, n) control points of the field's logarithm, see `spline_field`.
    """
    return intensity * np.exp(spline_field(control, intensity.shape))


def lower_resolution(intensity: np.ndarray, axis: int, factor: float) -> np.ndarray:
    """Simulates a scan that is `factor` times coarser along an axis.

    Samples linearly at the coarse positions and interpolates linearly back. Voxels of 0 stay 0,
    since the rim that interpolation creates around the image would count as tissue.
    """
    side = intensity.shape[axis]
    voxels, coarse = np.arange(side), np.linspace(0, side - 1, max(2, round(side / factor)))
    down, up = _interpolation_matrix(voxels, coarse), _interpolation_matrix(coarse, voxels)
    result = np.tensordot((up @ down).astype(np.float32), intensity, axes=(1, axis))
    return np.where(intensity > 0, np.moveaxis(result, 0, axis), 0)


def _interpolation_matrix(positions, targets):
    """Matrix (targets, positions) of linear interpolation."""
    return np.stack(
        [np.interp(targets, positions, unit) for unit in np.eye(len(positions))], axis=1
    )


def blur(intensity: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Gaussian blur with standard deviations of (3,) voxels; 0 stays 0, see `lower_resolution`."""
    return np.where(intensity > 0, ndimage.gaussian_filter(intensity, sigma, truncate=3), 0)


def add_noise(intensity: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """Adds Gaussian noise to the voxels above 0, which stay above 0; 0 stays 0.

    Args:
        intensity: (X, Y, Z).
        sigma: of the noise, relative to the standard deviation of the voxels above 0.
        seed: of the noise.
    """
    inside = intensity > 0
    sigma_abs = np.float32(sigma * intensity[inside].std()) if inside.any() else 0
    noise = np.random.default_rng(seed).standard_normal(intensity.shape, np.float32)
    return np.where(inside, np.maximum(intensity + sigma_abs * noise, np.float32(1e-6)), 0)
