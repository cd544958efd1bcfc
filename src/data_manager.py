"""Cases: finds them, resamples them to the network grid and back, caches the result.

Images are SimpleITK images (x, y, z in LPS mm); arrays here have axes (X, Y, Z), as in the
network's input. Resampling is linear, once to the network grid and once back; where the grid is
coarser than the image, the image is blurred first.
"""

import hashlib
import io
import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict
from scipy import ndimage

from .images.formats import MASK_SUFFIX, SUFFIXES, list_images, only_file, stem, suffix_of
from .images.grid import check_scalar_3d, image_like
from .images.intensity import (
    equalize,
    to_float32,
    without_padding,
    z_score,
)
from .images.metaimage import data_file
from .images.orientation import acquisition_plane, direction_matrix, patient_direction
from .images.reading import read_image, read_mask
from .metrics import mask_array
from .utils.errors import DataError, naming, reason_of
from .utils.files import check_name, user_cache_folder, write_files
from .utils.process import core_count

log = logging.getLogger(__name__)

LEFT_RIGHT_AXIS = 0  # of the network grid: flipping it swaps the patient's left and right
FULL_WIDTH_SIGMAS = np.sqrt(8 * np.log(2))  # a Gaussian's full width at half maximum, in sigmas
MIN_SHARE_ON_GRID = 0.95  # of the prostate's voxels; below it a line is logged
# A version: raise it when the same image gives another network input, or another cache file.
PREPROCESSING = 8


@dataclass(frozen=True)
class Case:
    """One examination: an image and its reference mask."""

    case_id: str
    image_path: Path
    mask_path: Path


# --- finding ---------------------------------------------------------------------------------


def _find_file(folder: Path, found: dict[str, list[Path]], name: str) -> Path:
    """Finds a file by name, else by stem and suffix, else by stem alone."""
    paths = found.get(stem(name), [])
    if not paths:
        for path in folder.iterdir():
            if stem(os.fsencode(path.name).decode("utf-8", "replace")) == stem(name):
                check_name(path)  # exists, but Python reads its name in another encoding
        raise DataError(
            f"{folder}: no image {stem(name)} ({', '.join(SUFFIXES)}); "
            "the split names it: add the file or take it out of the split"
        )
    named = [path for path in paths if path.name == Path(name).name]
    return only_file(
        named or [path for path in paths if suffix_of(path) == suffix_of(name)] or paths
    )


def _mask_name(name: str) -> str:
    """Case03_segmentation.mhd for Case03.mhd."""
    return stem(name) + MASK_SUFFIX + name[len(stem(name)) :]


def find_cases(data_path: str | Path, names: list[str]) -> list[Case]:
    """Returns the cases of `data_path/img` and `data_path/gt` that a split lists.

    Args:
        data_path: folder with `img/NAME.<ext>` and `gt/NAME_segmentation.<ext>`.
        names: lines of a split file. A single file of a case may have another suffix: Case03.mhd
            finds Case03.nii.gz.

    Raises:
        DataError: a file is missing or ambiguous.
    """
    image_folder, mask_folder = Path(data_path, "img"), Path(data_path, "gt")
    images = list_images(image_folder)
    masks = list_images(mask_folder)
    return [
        Case(
            stem(name),
            _find_file(image_folder, images, name),
            _find_file(mask_folder, masks, _mask_name(name)),
        )
        for name in names
    ]


# --- network grid ------------------------------------------------------------------------------


def xyz(image: sitk.Image) -> np.ndarray:
    """Returns a copy of an image's voxels with axes (X, Y, Z)."""
    return sitk.GetArrayFromImage(image).T


def network_grid(
    image: sitk.Image, config: EasyDict, centre_mm: Sequence[float] | None = None
) -> sitk.Image:
    """Returns an empty image that has the geometry of the network grid.

    Its axes are the image's, permuted and flipped to the nearest patient axes (left, posterior,
    superior), so that the result does not depend on the order in which a file stores its voxels.
    With `normDir` they are the patient axes themselves.

    Args:
        image: 3-D scalar.
        config: `VolSize` (voxels, X Y Z), `dstRes` (mm, X Y Z), `normDir`.
        centre_mm: (3,) the grid's centre in the image's patient coordinates; None: the image's
            centre.

    Raises:
        ValueError: not a 3-D scalar image.
    """
    check_scalar_3d(image)
    grid = sitk.Image([int(side) for side in config.VolSize], sitk.sitkUInt8)
    grid.SetSpacing([float(size_mm) for size_mm in config.dstRes])
    direction = np.eye(3) if config.normDir else patient_direction(image)
    grid.SetDirection(direction.ravel())
    wanted_mm = grid_centre_mm(image) if centre_mm is None else centre_mm
    grid.SetOrigin(np.subtract(wanted_mm, grid_centre_mm(grid)))
    return grid


def grid_centre_mm(image: sitk.Image) -> tuple[float, ...]:
    """Returns the centre of an image's voxel grid in patient coordinates."""
    return image.TransformContinuousIndexToPhysicalPoint(
        [(side - 1) / 2 for side in image.GetSize()]
    )


def intensity_on_network_grid(
    image: sitk.Image, config: EasyDict, centre_mm: Sequence[float] | None = None
) -> np.ndarray:
    """Scales an image to 0..1 and resamples it to the network grid.

    "rescale" takes the darkest and the brightest of all voxels; "equalize" sees only what lies on
    the network grid, so that its result does not depend on how far the image reaches beyond it.

    Args:
        image: 3-D scalar, of any voxel type.
        config: `VolSize`, `dstRes`, `normDir`, `intensity` ("rescale" or "equalize").
        centre_mm: of the grid, see `network_grid`.

    Returns:
        (X, Y, Z) float32, 0 outside the image.

    Raises:
        ValueError: not a 3-D scalar image, or NaN or infinity in it.
        DataError: the image has no contrast on the network grid.
    """
    image = without_padding(to_float32(image))
    grid = network_grid(image, config, centre_mm)
    if config.intensity == "equalize":
        intensity = equalize(xyz(_sampled(image, grid, np.nan)), config.dstRes)
    else:
        intensity = xyz(_sampled(sitk.RescaleIntensity(image, 0.0, 1.0), grid, 0.0))
    positive = intensity[intensity > 0]
    if not positive.size or positive.min() == positive.max():
        x, y, z = np.multiply(config.VolSize, config.dstRes)
        raise DataError(
            f"no contrast within {x:g} x {y:g} x {z:g} mm about its centre, where the prostate is "
            "expected; crop the image about the prostate"
        )
    return intensity


def _sampled(image, grid, outside):
    """Samples a float32 image linearly at the voxels of a grid.

    Along the image's axes where the grid is coarser, a Gaussian first removes the detail that the
    grid cannot hold and that would alias: voxels of the image, so blurred, are as wide as those of
    the grid (full width at half maximum).
    """
    spacing_mm = np.array(image.GetSpacing())
    cosines = direction_matrix(grid).T @ direction_matrix(image)
    grid_mm = np.array(grid.GetSpacing())[np.abs(cosines).argmax(axis=0)]
    widening_mm = np.sqrt(np.maximum(grid_mm**2 - spacing_mm**2, 0))
    sigma = widening_mm / FULL_WIDTH_SIGMAS / spacing_mm
    image = _part_around(image, grid, np.ceil(3 * sigma) + 1)
    if sigma.any():
        blurred = ndimage.gaussian_filter(
            sitk.GetArrayViewFromImage(image), sigma[::-1], mode="nearest", truncate=3
        )
        image = image_like(blurred, image)
    return sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, outside)


def _part_around(image, grid, margin):
    """Crops an image to what is at most `margin` (3,) voxels away from a grid, to save time."""
    ends = [(-0.5, side - 0.5) for side in grid.GetSize()]
    corners = [
        image.TransformPhysicalPointToContinuousIndex(
            grid.TransformContinuousIndexToPhysicalPoint(c)
        )
        for c in itertools.product(*ends)
    ]
    first = np.floor(np.min(corners, axis=0) - margin).astype(int).clip(0)
    stop = np.ceil(np.max(corners, axis=0) + margin).astype(int) + 1
    return image[tuple(slice(int(a), int(b)) for a, b in zip(first, stop, strict=True))]


def image_to_network_grid(
    image: sitk.Image, config: EasyDict, centre_mm: Sequence[float] | None = None
) -> np.ndarray:
    """Returns the network's input for an image, (X, Y, Z) float32: on the network grid, z-scored.

    Args:
        image, config, centre_mm: see `intensity_on_network_grid`.

    Raises:
        ValueError, DataError: see `intensity_on_network_grid`.
    """
    return z_score(intensity_on_network_grid(image, config, centre_mm))


def mask_to_network_grid(mask: sitk.Image, config: EasyDict) -> np.ndarray:
    """Resamples a reference mask to the network grid as an image, and cuts it at 0.5.

    Args:
        mask: 3-D, values 0 and 1.
        config: `VolSize`, `dstRes`, `normDir`.

    Returns:
        (X, Y, Z) bool.

    Raises:
        ValueError: not a 3-D scalar image, or values other than 0 and 1.
    """
    mask_array(mask)  # refuses all but a 3-D image of 0 and 1
    soft = _sampled(sitk.Cast(mask, sitk.sitkFloat32), network_grid(mask, config), 0.0)
    return xyz(soft) > 0.5


def probability_to_case_grid(
    probability: np.ndarray,
    image: sitk.Image,
    config: EasyDict,
    centre_mm: Sequence[float] | None = None,
) -> sitk.Image:
    """Resamples the network's output to the voxels of the case's image.

    Args:
        probability: (X, Y, Z) on the network grid.
        image: the case's image, for its geometry.
        config: `VolSize`, `dstRes`, `normDir`.
        centre_mm: of the network grid, see `network_grid`.

    Returns:
        float32 with the image's geometry; 0 outside the network grid.

    Raises:
        ValueError: `probability` does not have the shape `VolSize`.
    """
    if np.shape(probability) != tuple(config.VolSize):
        raise ValueError(f"shape {np.shape(probability)}, expected VolSize {config.VolSize}")
    grid = network_grid(image, config, centre_mm)
    on_grid = image_like(np.ascontiguousarray(probability.T, dtype=np.float32), grid)
    return sitk.Resample(on_grid, image, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)


# --- preprocessed cases ------------------------------------------------------------------------


class TrainingVolume(NamedTuple):
    """A case on the network grid, before augmentation and z-score."""

    intensity: np.ndarray  # (X, Y, Z) float32 in 0..1
    mask: np.ndarray  # (X, Y, Z) bool
    plane: str  # `acquisition_plane` of the image, "" for None
    digest: str = ""  # `content_digest` of the case


def read_case(case: Case, config: EasyDict) -> tuple[sitk.Image, sitk.Image]:
    """Reads a case.

    Args:
        case: the files.
        config: `labels`, `channel`.

    Returns:
        Image (float32) and reference mask (uint8, 0 and 1).

    Raises:
        DataError: see `read_image` and `read_mask`.
    """
    image = read_image(case.image_path, channel_of(config))
    return image, read_mask(case.mask_path, image, case.image_path, config.labels)


def content_digest(image: sitk.Image, mask: sitk.Image) -> str:
    """Returns a hash of the voxels and the geometry of a case; compression does not change it."""
    content = hashlib.sha256()
    for part in (image, mask):
        # NIfTI has no more digits than float32, and computes the cosines.
        cosines = np.round(part.GetDirection(), 4)
        geometry = part.GetSize(), part.GetSpacing(), part.GetOrigin(), cosines
        content.update((np.concatenate(geometry, dtype=np.float32) + 0).tobytes())  # 0 for -0
        content.update(sitk.GetArrayViewFromImage(part).tobytes())
    return content.hexdigest()[:32]


def edited_cases(digests: Mapping[str, str], cases: Iterable[Case], config: EasyDict) -> list[str]:
    """Returns the IDs of the cases whose image or mask is not what it was.

    Args:
        digests: case ID -> its earlier `content_digest`.
        cases: to look at; those without a digest are left out.
        config: see `read_case`; `num_workers`.

    Raises:
        DataError: see `read_case`.
    """

    def is_edited(case: Case) -> bool:
        return content_digest(*read_case(case, config)) != digests[case.case_id]

    known = [case for case in cases if case.case_id in digests]
    with ThreadPoolExecutor(worker_count(config)) as pool:
        found = pool.map(is_edited, known)
        return [case.case_id for case, edited in zip(known, found, strict=True) if edited]


def channel_of(config: EasyDict) -> int | None:
    """Returns the index of the image in a 4-D file, None for 3-D files (`channel` below 0)."""
    return None if config.channel < 0 else config.channel


def load_training_volumes(cases: list[Case], config: EasyDict) -> list[TrainingVolume]:
    """Returns all cases on the network grid; reads in parallel and caches in `cache_dir`.

    Args:
        cases: to train on.
        config: `VolSize`, `dstRes`, `normDir`, `intensity`, `labels`, `channel`, `num_workers`,
            `cache_dir`.

    Returns:
        In the order of `cases`.

    Raises:
        DataError: a case cannot be read, or its gland lies outside the network grid.
    """
    with ThreadPoolExecutor(worker_count(config)) as pool:
        return list(pool.map(lambda case: _training_volume(case, config), cases))


def worker_count(config: EasyDict) -> int:
    """Returns the number of threads that read and augment: `num_workers`, at most the cores.

    `num_workers` 0 stands for 8.
    """
    return min(config.num_workers or 8, core_count())


def _training_volume(case, config):
    cached = _cache_file(case, config)
    found = _read_cache(cached) if cached else None
    arrays = found or _preprocess(case, config)
    _check_gland(case, arrays, config)
    if cached and not found:
        _write_cache(cached, arrays)
    plane, digest = str(arrays["plane"]), str(arrays["digest"])
    return TrainingVolume(arrays["intensity"], arrays["mask"], plane, digest)


def _preprocess(case, config):
    image, mask = read_case(case, config)
    with naming(case.image_path):
        intensity = intensity_on_network_grid(image, config)
    return {
        "intensity": intensity,
        "mask": mask_to_network_grid(mask, config),
        "plane": acquisition_plane(image) or "",
        "digest": content_digest(image, mask),
        "share_on_grid": _share_on_grid(mask, config),
    }


def _share_on_grid(mask, config):
    """The share of the gland that lies on the network grid, NaN for an empty mask."""
    ones = network_grid(mask, config) + 1
    on_grid = sitk.Resample(ones, mask, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    prostate = sitk.GetArrayViewFromImage(mask) > 0
    return sitk.GetArrayViewFromImage(on_grid)[prostate].mean() if prostate.any() else np.nan


def _check_gland(case, arrays, config):
    """Raises a DataError for a gland outside the network grid; logs one cut off, or none."""
    share = float(arrays["share_on_grid"])
    if np.isnan(share):
        log.info(f"{case.mask_path}: empty mask, training on the case as one without a prostate")
    grid = (
        f"the network grid of {config.VolSize} voxels of {config.dstRes} mm about the image's "
        "centre; check the mask, or enlarge the grid"
    )
    if share == 0:
        raise DataError(f"{case.mask_path}: no foreground on {grid}")
    if share < MIN_SHARE_ON_GRID:
        log.info(f"{case.mask_path}: only {share:.0%} of the prostate lies on {grid}")


def _cache_file(case, config):
    """Path of a case's cache file; its name has a hash of the files' identity and the settings."""
    if config.cache_dir == "off":
        return None
    if config.cache_dir == "auto":
        root = user_cache_folder()
        if root is None:
            return None
    else:
        root = Path(config.cache_dir)
    identity = []
    for file in (case.image_path, case.mask_path):
        for path in (file, data_file(file)):
            if path.exists():
                status = path.stat()
                times = (status.st_mtime_ns, status.st_ctime_ns)  # copies may keep st_mtime_ns
                identity.append((str(path.resolve()), status.st_size, *times))
    settings = [
        config.VolSize,
        config.dstRes,
        config.normDir,
        config.intensity,
        config.labels,
        config.channel,
        PREPROCESSING,
        sitk.Version_VersionString(),
    ]
    key = hashlib.sha256(json.dumps([identity, settings]).encode()).hexdigest()[:32]
    return root / f"{case.case_id}-{key}.npz"


def _read_cache(path):
    """The arrays of a cache file; None if there is none, or only a damaged or earlier one."""
    try:
        with np.load(path) as archive:
            arrays = dict(archive)
        return arrays if "share_on_grid" in arrays else None
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged archives raise many kinds
        log.info(f"{path}: cannot be read ({reason_of(error)}), preprocessing the case again")
        return None


def _write_cache(path, arrays):
    """Caches a preprocessed case; if that fails, training continues without."""
    content = io.BytesIO()  # NumPy would print errors of an archive on a full disk
    np.savez(content, **arrays)
    with suppress(OSError, DataError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_files({path: content.getvalue()})
