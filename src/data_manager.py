"""Cases: find, bring to the network grid and back, keep preprocessed.

Images are SimpleITK images (x, y, z in LPS mm); arrays here have axes (X, Y, Z), as the network
takes them. Each way between the case's grid and the network grid is one linear resampling.
"""

import hashlib
import io
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict

from .images.formats import MASK_SUFFIX, SUFFIXES, images_in, stem, suffix_of
from .images.metaimage import data_file
from .images.orientation import acquisition_plane, patient_direction
from .images.reading import read_image, read_mask
from .utils.errors import DataError
from .utils.files import check_name, user_cache_folder, write_files

log = logging.getLogger(__name__)

LEFT_RIGHT_AXIS = 0  # of the network grid: along it a flip exchanges the patient's left and right
LEAST_SHARE_ON_GRID = 0.95  # of the prostate; less is said
# Of `equalized`: what keeps the logarithm finite, the Gaussian's size, the least share of it that
# must lie on tissue, steps of the histogram.
LOG_OFFSET = 0.01
FIELD_SIGMA_MM = 20.0
SMALLEST_WEIGHT = 1e-4
HISTOGRAM_STEPS = 1024
CACHE_VERSION = 4  # raise it when a preprocessed case would come out differently


@dataclass(frozen=True)
class Case:
    """One examination: an image and, where known, its reference mask."""

    case_id: str
    image_path: Path
    mask_path: Path | None = None


# --- finding ---------------------------------------------------------------------------------


def _only(folder, found, wanted):
    """The file of `found` that a name means: with its suffix, or the only one of its stem."""
    paths = found.get(stem(wanted), [])
    named = [path for path in paths if path.name == Path(wanted).name]
    named = named or [path for path in paths if suffix_of(path) == suffix_of(wanted)]
    if len(named) == 1:
        return named[0]
    if not paths:
        for path in folder.iterdir():
            if stem(os.fsencode(path.name).decode("utf-8", "replace")) == stem(wanted):
                check_name(path)  # there, but Python reads its name in another encoding
        raise DataError(
            f"{folder}: no image {stem(wanted)} ({', '.join(SUFFIXES)}); "
            "the split names it: add the file or take it out of the split"
        )
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise DataError(f"{folder}: {names} are all called {stem(wanted)}; keep one of them")
    return paths[0]


def _mask_name(name: str) -> str:
    """Case03_segmentation.mhd for Case03.mhd."""
    return stem(name) + MASK_SUFFIX + name[len(stem(name)) :]


def find_cases(data_path: str | Path, names: list[str], with_mask: bool = True) -> list[Case]:
    """The cases of `data_path/img` (and `gt`) that a split names.

    Args:
        data_path: folder with `img/NAME.<ext>` and `gt/NAME_segmentation.<ext>`.
        names: lines of a split file. Of several files of a stem the one with the suffix is meant;
            where there is only one it may have another: Case03.mhd finds Case03.nii.gz.
        with_mask: whether each must have its reference mask.

    Raises:
        DataError: a file is missing or ambiguous.
    """
    image_folder, mask_folder = Path(data_path, "img"), Path(data_path, "gt")
    images = images_in(image_folder)
    masks = images_in(mask_folder) if with_mask else {}
    return [
        Case(
            stem(name),
            _only(image_folder, images, name),
            _only(mask_folder, masks, _mask_name(name)) if with_mask else None,
        )
        for name in names
    ]


# --- to the network grid and back --------------------------------------------------------------


def xyz(image: sitk.Image) -> np.ndarray:
    """The voxels of an image, (X, Y, Z)."""
    return sitk.GetArrayFromImage(image).T


def network_grid(image: sitk.Image, config: EasyDict) -> sitk.Image:
    """An empty image on the network grid: `VolSize` voxels of `dstRes` mm about the image's centre.

    Its axes are the image's, permuted and flipped to the nearest of the patient's (left, posterior,
    superior), so that the order in which a file stores its voxels plays no part; with `normDir`
    they are the patient's own.

    Raises:
        ValueError: no 3-D image.
    """
    _check_axes(image)
    grid = sitk.Image([int(side) for side in config.VolSize], sitk.sitkUInt8)
    grid.SetSpacing([float(size_mm) for size_mm in config.dstRes])
    direction = np.eye(3) if config.normDir else patient_direction(image)
    grid.SetDirection(direction.ravel())
    centre = image.TransformContinuousIndexToPhysicalPoint(
        [(side - 1) / 2 for side in image.GetSize()]
    )
    grid_centre = grid.TransformContinuousIndexToPhysicalPoint(
        [(side - 1) / 2 for side in grid.GetSize()]
    )
    grid.SetOrigin(np.subtract(centre, grid_centre))
    return grid


def intensity_on_network_grid(image: sitk.Image, config: EasyDict) -> np.ndarray:
    """An image on the network grid: brought to 0..1 over the whole image, 0 outside it.

    Args:
        image: 3-D scalar, of any voxel type.
        config: `VolSize`, `dstRes`, `normDir`, `intensity`.

    Returns:
        (X, Y, Z) float32.

    Raises:
        ValueError: no 3-D scalar image, or NaN or infinity in it.
    """
    image = _as_float32(image)
    grid = network_grid(image, config)
    equalize = config.intensity == "equalize"
    unit = equalized(image) if equalize else sitk.RescaleIntensity(image, 0.0, 1.0)
    return xyz(sitk.Resample(unit, grid, sitk.Transform(), sitk.sitkLinear, 0.0))


def _check_axes(image):
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(
            f"an image of size {image.GetSize()} with {image.GetNumberOfComponentsPerPixel()} "
            "component(s) per voxel, expected a 3-D scalar image"
        )


def _as_float32(image):
    """Intensities as the filters here want them: integers would be rounded to 0 and 1."""
    _check_axes(image)
    image = sitk.Cast(image, sitk.sitkFloat32)
    if not np.isfinite(sitk.GetArrayViewFromImage(image)).all():
        raise ValueError("an image with NaN or infinite voxels")
    return image


def equalized(image: sitk.Image) -> sitk.Image:
    """The image without its coil's field, and with its histogram equalized.

    The logarithm of the intensities less its Gaussian mean is a ratio to the surroundings; each
    voxel becomes the share of voxels with a lower ratio, linear between quantiles. Tissue beside
    an endorectal coil is up to ten times as bright as the rest of an image, which a mere rescaling
    would squeeze into the dark end of 0..1.

    Args:
        image: 3-D scalar, of any voxel type.

    Returns:
        float32 in 0..1. The image's darkest voxels, as of padding, are 0; neither the means nor the
        shares count them.
    """
    image = _as_float32(image)
    intensity = sitk.GetArrayViewFromImage(image)
    tissue = intensity > intensity.min()
    unit = sitk.RescaleIntensity(image, 0.0, 1.0)
    logarithm = np.log(sitk.GetArrayFromImage(unit) + np.float32(LOG_OFFSET))
    logarithm[~tissue] = 0
    weight = np.maximum(_gaussian_mean(tissue, image.GetSpacing()), SMALLEST_WEIGHT)
    ratio = (logarithm - _gaussian_mean(logarithm, image.GetSpacing()) / weight)[tissue]
    equal = np.zeros_like(logarithm)  # (Z, Y, X)
    if ratio.size:
        shares = np.linspace(0, 1, HISTOGRAM_STEPS + 1)
        values, first = np.unique(np.quantile(ratio, shares), return_index=True)
        equal[tissue] = np.interp(ratio, values, shares[first])
    result = sitk.GetImageFromArray(equal)
    result.CopyInformation(image)
    return result


def _gaussian_mean(array, spacing_mm):
    """Under a Gaussian of `FIELD_SIGMA_MM`; border voxels go on beyond the array (Z, Y, X)."""
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing(spacing_mm)
    border = [4, 4, 4]  # the filter wants four voxels
    smooth = sitk.SmoothingRecursiveGaussian(
        sitk.ZeroFluxNeumannPad(image, border, border), FIELD_SIGMA_MM
    )
    return sitk.GetArrayFromImage(sitk.Crop(smooth, border, border))


def z_scored(intensity: np.ndarray) -> np.ndarray:
    """Intensities with mean 0 and standard deviation 1 over the voxels above 0, as float32.

    All 0 where no such voxel differs from another.

    Raises:
        ValueError: NaN or infinity.
    """
    if not np.isfinite(intensity).all():
        raise ValueError("intensities with NaN or infinity")
    positive = intensity[intensity > 0].astype(np.float64)
    if not positive.size or positive.min() == positive.max():
        return np.zeros(np.shape(intensity), np.float32)
    return ((intensity - positive.mean()) / positive.std()).astype(np.float32)


def image_to_network_grid(image: sitk.Image, config: EasyDict) -> np.ndarray:
    """The network's input of one image: `intensity_on_network_grid`, `z_scored`."""
    return z_scored(intensity_on_network_grid(image, config))


def mask_to_network_grid(mask: sitk.Image, config: EasyDict) -> np.ndarray:
    """A reference mask on the network grid, (X, Y, Z) bool: linear, then above one half.

    Raises:
        ValueError: no 3-D scalar image, or values other than 0 and 1.
    """
    _check_axes(mask)
    values = np.unique(sitk.GetArrayViewFromImage(mask))
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"a mask with the values {values[:6].tolist()}, expected 0 and 1")
    soft = sitk.Resample(
        sitk.Cast(mask, sitk.sitkFloat32),
        network_grid(mask, config),
        sitk.Transform(),
        sitk.sitkLinear,
        0.0,
    )
    return xyz(soft) > 0.5


def probability_to_case_grid(
    probability: np.ndarray, image: sitk.Image, config: EasyDict
) -> sitk.Image:
    """The network's output on the image's own voxels.

    Args:
        probability: (X, Y, Z) on the network grid.
        image: the case's image, which gives the geometry.
        config: that of the network grid.

    Returns:
        float32, with the image's geometry; 0 outside the network grid.

    Raises:
        ValueError: another shape than the network grid's.
    """
    if np.shape(probability) != tuple(config.VolSize):
        raise ValueError(f"shape {np.shape(probability)}, expected VolSize {config.VolSize}")
    on_grid = sitk.GetImageFromArray(np.ascontiguousarray(probability.T, dtype=np.float32))
    on_grid.CopyInformation(network_grid(image, config))
    return sitk.Resample(on_grid, image, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)


# --- preprocessed cases ------------------------------------------------------------------------


class TrainingVolume(NamedTuple):
    """A case on the network grid."""

    intensity: np.ndarray  # (X, Y, Z) float32, 0..1
    mask: np.ndarray  # (X, Y, Z) bool
    plane: str  # of acquisition, see `src.images.orientation.acquisition_plane`; "" for none


def read_case(case: Case, config: EasyDict) -> tuple[sitk.Image, sitk.Image | None]:
    """Image and reference mask (None if the case has none), read and checked.

    Args:
        case: what to read.
        config: `labels`, `channel`.
    """
    image = read_image(case.image_path, channel_of(config))
    if case.mask_path is None:
        return image, None
    return image, read_mask(case.mask_path, image, case.image_path, config.labels)


def channel_of(config: EasyDict) -> int | None:
    """Which volume of a 4-D file is the image; None where files are 3-D."""
    return None if config.channel < 0 else config.channel


def load_training_volumes(cases: list[Case], config: EasyDict) -> list[TrainingVolume]:
    """All cases on the network grid, read in parallel and kept in `cache_dir` for the next start.

    Args:
        cases: with masks.
        config: `VolSize`, `dstRes`, `normDir`, `intensity`, `labels`, `channel`, `num_workers`,
            `cache_dir`.

    Returns:
        In the order of `cases`.

    Raises:
        DataError: a case that cannot be read, or whose gland lies outside the network grid.
        ValueError: a case without a mask.
    """
    for case in cases:
        if case.mask_path is None:
            raise ValueError(f"case {case.case_id} without a mask, expected one for training")
    with ThreadPoolExecutor(worker_count(config)) as pool:
        return list(pool.map(lambda case: _training_volume(case, config), cases))


def worker_count(config: EasyDict) -> int:
    """Threads that read and augment: `num_workers`, or one per core up to 8; at most the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(config.num_workers or 8, cores)


def _training_volume(case, config):
    cached = _cache_file(case, config)
    if cached is not None and cached.is_file():
        try:
            with np.load(cached) as arrays:
                return _unpacked(arrays)
        except Exception as error:  # whatever a damaged archive raises: it is made again
            log.info(f"{cached}: damaged ({error}), made again")
    image, mask = read_case(case, config)
    arrays = {
        "intensity": intensity_on_network_grid(image, config),
        "mask": mask_to_network_grid(mask, config),
        "plane": acquisition_plane(image) or "",
    }
    if not sitk.GetArrayViewFromImage(mask).any():
        log.info(f"{case.mask_path}: empty, the case is trained on as one without a prostate")
    else:
        _check_gland_is_on_grid(case, mask, config)
    if cached is not None:
        _write_cache(cached, arrays)
    return _unpacked(arrays)


def _unpacked(arrays):
    return TrainingVolume(arrays["intensity"], arrays["mask"], str(arrays["plane"]))


def _check_gland_is_on_grid(case, mask, config):
    """Refuses a grid that misses the prostate, and says when it cuts off a good part."""
    everywhere = network_grid(mask, config) + 1
    on_grid = sitk.Resample(everywhere, mask, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    prostate = sitk.GetArrayViewFromImage(mask) > 0
    share = sitk.GetArrayViewFromImage(on_grid)[prostate].mean()
    grid = (
        f"the network grid of {config.VolSize} voxels of {config.dstRes} mm about the image's "
        "centre; check the mask, or enlarge the grid"
    )
    if share == 0:
        raise DataError(f"{case.mask_path}: no foreground on {grid}")
    if share < LEAST_SHARE_ON_GRID:
        log.info(f"{case.mask_path}: only {share:.0%} of the prostate lies on {grid}")


def _cache_file(case, config):
    """Where a case is kept; the name holds the files' identity and all that shapes the result."""
    if config.cache_dir == "off":
        return None
    if config.cache_dir == "auto":
        root = user_cache_folder()
        if root is None:
            return None
    else:
        root = Path(config.cache_dir)
    identity = []
    for image in (case.image_path, case.mask_path):
        for path in (image, data_file(image)):
            if path.exists():
                status = path.stat()
                times = (status.st_mtime_ns, status.st_ctime_ns)  # a copy may keep the former
                identity.append((str(path.resolve()), status.st_size, *times))
    geometry = [
        config.VolSize,
        config.dstRes,
        config.normDir,
        config.intensity,
        config.labels,
        config.channel,
        CACHE_VERSION,
        sitk.Version_VersionString(),
    ]
    key = hashlib.sha256(json.dumps([identity, geometry]).encode()).hexdigest()[:32]
    return root / f"{case.case_id}-{key}.npz"


def _write_cache(path, arrays):
    """Keeps a preprocessed case; a cache that cannot be written costs time, not the run."""
    content = io.BytesIO()  # an archive that is cut off while it is open complains aloud
    np.savez(content, **arrays)
    with suppress(OSError, DataError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_files({path: content.getvalue()})
