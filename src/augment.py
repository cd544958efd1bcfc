"""Random changes of training cases, after the V-Net paper (section 3) and what came after it.

`draw` chooses the parameters of one sample, `apply` does what they say, so that any sample can be
made again from (seed, epoch, case). The spatial transforms end in one set of sampling positions:
image and mask are resampled once. Arrays have axes (X, Y, Z); intensities lie in 0..1 with 0
outside the image. `vnet_cfg` holds the probability of each transform, `augment_NAME`.
"""

from typing import Any

import numpy as np
from easydict import EasyDict
from scipy import ndimage

from .data_manager import LEFT_RIGHT_AXIS, TrainingVolume
from .metrics import bounding_box

# In this order; each draws from a random stream of its own, so that switching one on or off leaves
# the others as they are.
SPATIAL = ("flip", "rotate", "scale", "shift", "deform")
INTENSITY = ("histogram", "gamma", "bias", "low_resolution", "blur", "noise")
TRANSFORMS = SPATIAL + INTENSITY
STREAM = 2  # of the seed; src.dataset has others

# Milletari et al. 2016, section 3: a 2x2x2 grid of B-splines whose control points move with a
# standard deviation of 15 voxels, of 1 x 1 x 1.5 mm there; read as the mesh of SimpleITK's
# BSplineTransform. A mesh of n cells has n + 3 control points along an axis.
DEFORM_MESH = 2
DEFORM_SIGMA_MM = (15.0, 15.0, 22.5)
# Of the others: ranges as they are usual for MR volumes (nnU-Net, TorchIO).
ROTATION_DEGREES = 10.0  # about each axis, either way
SCALE = (0.7, 1.4)
ASPECT = (0.9, 1.1)  # further scaling, of each axis by itself
SHIFT_MM = 8.0  # along each axis, either way
GAMMA = (0.7, 1.5)
BIAS_MESH = 1
BIAS_SIGMA = 0.5  # of the field's logarithm at its control points
LOW_RESOLUTION = (1.5, 3.0)  # times coarser, along one axis
BLUR_SIGMA_MM = (0.5, 1.5)
NOISE_SIGMA = (0.0, 0.25)  # as a share of the intensities' standard deviation
QUANTILES = 256  # that histogram matching follows, ...
QUANTILE_STEP = 7  # ... measured on every seventh voxel


# Random draws -----------------------------------------------------------------------------------


def draw(
    config: EasyDict,
    epoch: int,
    case: int,
    case_count: int,
    repeat: int = 0,
) -> dict[str, Any]:
    """Chooses the transforms of one sample and their parameters.

    Args:
        config: `seed` and the probabilities `augment_NAME`.
        epoch: from 0.
        case: its index among the training cases.
        case_count: how many there are; with one, nothing is matched to another's histogram.
        repeat: how often the epoch has had this case before, to fill its last batch.

    Returns:
        {name: parameters} of the chosen ones, in the order of `TRANSFORMS`; what the parameters
        are, `apply` and the functions below say.
    """
    drawn = {}
    for stream, name in enumerate(TRANSFORMS):
        rng = np.random.default_rng((config.seed, STREAM, epoch, case, repeat, stream))
        if rng.random() < config[f"augment_{name}"]:
            drawn[name] = _parameters(name, rng, case, case_count)
    return {name: value for name, value in drawn.items() if value is not None}


def _parameters(name, rng, case, case_count):
    if name == "flip":
        return LEFT_RIGHT_AXIS
    if name == "rotate":
        return rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES, 3)
    if name == "scale":
        return np.exp(rng.uniform(*np.log(SCALE)) + rng.uniform(*np.log(ASPECT), 3))
    if name == "shift":
        return rng.uniform(-SHIFT_MM, SHIFT_MM, 3)
    if name == "deform":
        points = (DEFORM_MESH + 3,) * 3
        return np.stack([rng.normal(0, sigma, points) for sigma in DEFORM_SIGMA_MM])
    if name == "histogram":
        return int(case + rng.integers(1, case_count)) % case_count if case_count > 1 else None
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
    raise ValueError(f"{name}: no such transform")


# Deterministic twins ----------------------------------------------------------------------------


def apply(
    drawn: dict[str, Any], volumes: list[TrainingVolume], case: int, voxel_mm: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Does to a case what `draw` chose.

    Args:
        drawn: from `draw`.
        volumes: of all training cases; not changed.
        case: index of the one that is meant.
        voxel_mm: (3,) of the network grid.

    Returns:
        Intensity (X, Y, Z) float32 in 0..1, but for noise and bias, and mask (X, Y, Z) bool.
    """
    intensity, mask, _ = volumes[case]
    spatial = {name: drawn[name] for name in SPATIAL if name in drawn}
    if spatial:
        positions = sampling_positions(intensity.shape, voxel_mm, **spatial)
        intensity = resampled(intensity, positions)
        mask = resampled_mask(mask, positions)
    if "histogram" in drawn:
        intensity = with_histogram(intensity, volumes[drawn["histogram"]].intensity)
    if "gamma" in drawn:
        intensity = with_gamma(intensity, drawn["gamma"])
    if "bias" in drawn:
        intensity = with_bias(intensity, drawn["bias"])
    if "low_resolution" in drawn:
        intensity = with_low_resolution(intensity, *drawn["low_resolution"])
    if "blur" in drawn:
        intensity = with_blur(intensity, drawn["blur"] / np.asarray(voxel_mm))
    if "noise" in drawn:
        intensity = with_noise(intensity, *drawn["noise"])
    return intensity, mask


def augmented(
    volumes: list[TrainingVolume], case: int, epoch: int, config: EasyDict, repeat: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A case as it is trained on in an epoch: `apply` of what `draw` chose."""
    drawn = draw(config, epoch, case, len(volumes), repeat)
    return apply(drawn, volumes, case, config.dstRes)


def rotation(degrees: np.ndarray) -> np.ndarray:
    """(3, 3) matrix of rotations about X, then Y, then Z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[j, i], turn[i, j] = np.sin(angle), -np.sin(angle)
        matrix = turn @ matrix
    return matrix


def sampling_positions(
    shape: tuple[int, int, int],
    voxel_mm: list[float],
    flip: int | None = None,
    rotate: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    shift: np.ndarray | None = None,
    deform: np.ndarray | None = None,
) -> np.ndarray:
    """Where each voxel of a transformed volume comes from.

    The content is moved, enlarged, turned and mirrored about the centre, in this order, and then
    deformed.

    Args:
        shape: (X, Y, Z).
        voxel_mm: (3,) sides of a voxel.
        flip: array axis that is mirrored.
        rotate: (3,) degrees about X, Y and Z.
        scale: (3,) enlargement along X, Y and Z.
        shift: (3,) mm towards higher X, Y and Z.
        deform: (3, n, n, n) displacements in mm at the control points of cubic B-splines over the
            result: how much further along the original's X, Y and Z each place comes from.

    Returns:
        (3, X, Y, Z) float32, in voxels of the original.
    """
    voxel_mm = np.asarray(voxel_mm)
    matrix = np.eye(3)  # from the place in the result to that in the original, in mm
    if flip is not None:
        matrix[flip, flip] = -1
    if rotate is not None:
        matrix = rotation(rotate).T @ matrix
    if scale is not None:
        matrix = np.diag(1 / scale) @ matrix
    matrix = matrix * voxel_mm / voxel_mm[:, None]
    centre = (np.array(shape) - 1) / 2
    offset = centre - matrix @ centre
    if shift is not None:
        offset -= shift / voxel_mm
    axes = [np.arange(side, dtype=np.float32) for side in shape]
    positions = np.empty((3, *shape), np.float32)
    for axis, position in enumerate(positions):
        x, y, z = (places * np.float32(matrix[axis, i]) for i, places in enumerate(axes))
        np.add((x + np.float32(offset[axis]))[:, None, None], y[:, None] + z, out=position)
        if deform is not None:
            position += spline_field(deform[axis] / voxel_mm[axis], shape)
    return positions


def spline_basis(count: int, mesh: int) -> np.ndarray:
    """Cubic B-splines over `mesh` equal cells at `count` voxels, the first and last on its ends.

    Returns:
        (count, mesh + 3) float32; each row sums to 1.
    """
    distance = np.abs(np.linspace(0, mesh, count)[:, None] - (np.arange(mesh + 3) - 1))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def spline_field(control: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The smooth field of `shape` that (n, n, n) control points make, float32."""
    field = control.astype(np.float32)
    for side in shape:  # each turn takes the first axis and puts the voxels' one last
        field = np.tensordot(field, spline_basis(side, control.shape[0] - 3), axes=(0, 1))
    return field


def resampled(intensity: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Linear interpolation at (3, ...) positions, 0 outside."""
    return ndimage.map_coordinates(intensity, positions, order=1, prefilter=False)


def resampled_mask(mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """`resampled`, then above one half; looks only at positions near the mask, for speed."""
    result = np.zeros(positions.shape[1:], bool)
    if not mask.any():
        return result
    near = np.ones_like(result)
    for position, side in zip(positions, bounding_box(mask), strict=True):
        near &= (position > side.start - 1) & (position < side.stop)
    result[near] = resampled(mask.astype(np.float32), positions[:, near]) > 0.5
    return result


def with_histogram(intensity: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Moves the quantiles of the voxels above 0 to those of a reference's; 0 stays 0.

    The paper matches histograms of training cases; here linearly between `QUANTILES` of them.
    """
    inside = intensity > 0
    own, other = (v[v > 0][::QUANTILE_STEP] for v in (intensity, reference))
    if not own.size or not other.size:
        return intensity
    share = np.linspace(0, 1, QUANTILES)
    moved = np.interp(intensity, np.quantile(own, share), np.quantile(other, share))
    return np.where(inside, moved, 0).astype(np.float32)


def with_gamma(intensity: np.ndarray, gamma: float) -> np.ndarray:
    """Intensities to the power of `gamma`."""
    return intensity ** np.float32(gamma)


def with_bias(intensity: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Times a smooth field, the exponential of `spline_field`: a coil's sensitivity."""
    return intensity * np.exp(spline_field(control, intensity.shape))


def with_low_resolution(intensity: np.ndarray, axis: int, factor: float) -> np.ndarray:
    """As if scanned `factor` times coarser along an axis: sampled there, interpolated linearly.

    0 stays 0, or a halo outside the image would count as tissue.
    """
    side = intensity.shape[axis]
    voxels, coarse = np.arange(side), np.linspace(0, side - 1, max(2, round(side / factor)))
    down, up = _interpolation(voxels, coarse), _interpolation(coarse, voxels)
    result = np.tensordot((up @ down).astype(np.float32), intensity, axes=(1, axis))
    return np.where(intensity > 0, np.moveaxis(result, 0, axis), 0)


def _interpolation(places, targets):
    """(targets, places) matrix that interpolates linearly."""
    return np.stack([np.interp(targets, places, unit) for unit in np.eye(len(places))], axis=1)


def with_blur(intensity: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Gaussian blur of a standard deviation of (3,) voxels; 0 stays 0 (see above)."""
    return np.where(intensity > 0, ndimage.gaussian_filter(intensity, sigma, truncate=3), 0)


def with_noise(intensity: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """Plus Gaussian noise of `sigma` times the standard deviation of the voxels above 0.

    These stay above 0, and 0 stays 0.
    """
    inside = intensity > 0
    spread = np.float32(sigma * intensity[inside].std()) if inside.any() else 0
    noise = np.random.default_rng(seed).standard_normal(intensity.shape, np.float32)
    return np.where(inside, np.maximum(intensity + spread * noise, np.float32(1e-6)), 0)
