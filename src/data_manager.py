"""Cases: find, read, check, bring to the network grid and back, write.

Images are SimpleITK images (x, y, z in LPS mm); arrays here have axes (X, Y, Z), as the network
takes them. Each way between the case's grid and the network grid is one linear resampling.
"""

import gzip
import hashlib
import io
import json
import os
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import BinaryIO, NamedTuple

import numpy as np
import SimpleITK as sitk
from easydict import EasyDict

from src.errors import DataError

SUFFIXES = (".mhd", ".mha", ".nii.gz", ".nii", ".nrrd")
META_SUFFIXES = (".mhd", ".mha")  # MetaImage
MASK_SUFFIX = "_segmentation"
SAME_GRID_VOXELS = 0.05  # corners of an image and its mask may lie this far apart
LEAST_SHARE_ON_GRID = 0.95  # of the prostate; less is said
# Of `equalized`: what keeps the logarithm finite, the Gaussian's size, the least share of it that
# must lie on tissue, steps of the histogram.
LOG_OFFSET = 0.01
FIELD_SIGMA_MM = 20.0
SMALLEST_WEIGHT = 1e-4
HISTOGRAM_STEPS = 1024
CACHE_VERSION = 3  # raise it when a preprocessed case would come out differently


@dataclass(frozen=True)
class Case:
    """One examination: an image and, where known, its reference mask."""

    case_id: str
    image_path: Path
    mask_path: Path | None = None


# --- finding ---------------------------------------------------------------------------------


def suffix_of(path: str | PurePath) -> str | None:
    """Which of `SUFFIXES` a file name ends with, None for any other."""
    return next((suffix for suffix in SUFFIXES if Path(path).name.lower().endswith(suffix)), None)


def stem(path: str | PurePath) -> str:
    """The file's name without folder and image suffix: Case03 of img/Case03.nii.gz."""
    name = Path(path).name
    return name[: len(name) - len(suffix_of(name) or "")]


def images_in(folder: str | Path) -> dict[str, list[Path]]:
    """Image files of a folder, `{stem: [paths]}`, sorted by name.

    Raises:
        DataError: no such folder.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder; expected the images there")
    found = {}
    for path in sorted(Path(folder).iterdir()):
        if suffix_of(path) and not path.name.startswith("."):
            found.setdefault(stem(path), []).append(path)
    return found


def _only(folder, found, wanted):
    """The file of `found` that a name means: with its suffix, or the only one of its stem."""
    paths = found.get(stem(wanted), [])
    exact = [path for path in paths if path.name == Path(wanted).name]
    if exact:
        return exact[0]
    if not paths:
        raise DataError(
            f"{folder}: no image {stem(wanted)} ({', '.join(SUFFIXES)}); "
            "the split names it: add the file or take it out of the split"
        )
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise DataError(f"{folder}: {names} are all called {stem(wanted)}; keep one of them")
    return paths[0]


def find_cases(data_path: str | Path, names: list[str], with_mask: bool = True) -> list[Case]:
    """The cases of `data_path/img` (and `gt`) that a split names.

    Args:
        data_path: folder with `img/NAME.<ext>` and `gt/NAME_segmentation.<ext>`.
        names: lines of a split file; matched by stem, so Case03.mhd finds Case03.nii.gz.
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
            _only(mask_folder, masks, stem(name) + MASK_SUFFIX) if with_mask else None,
        )
        for name in names
    ]


# --- reading and checking ----------------------------------------------------------------------


def meta_header(file: BinaryIO) -> tuple[dict[str, str], int]:
    """The `key = value` lines of a MetaImage header, and how many bytes they take."""
    header = {}
    for line in file:
        key, _, value = line.decode("utf-8", "replace").partition("=")
        header[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile" or len(header) > 200:
            break
    return header, file.tell()


def _data_file(path):
    """The file that holds the voxels: the image file, or the one that a MetaImage header names.

    A header may name any file of the disk; only one in its own folder is the image's.
    """
    path = Path(path)
    if suffix_of(path) not in META_SUFFIXES:
        return path
    with path.open("rb") as file:
        name = meta_header(file)[0].get("ElementDataFile", "")
    if not name:
        raise DataError(f"{path}: no ElementDataFile in its header; expected a MetaImage header")
    place = PureWindowsPath(name)  # knows both kinds of slashes, and drives
    if place.anchor or ".." in place.parts:
        raise DataError(
            f"{path}: ElementDataFile {name} is not in its folder; put the file there and "
            "write its bare name into the header"
        )
    if name.upper().startswith("LIST") or "%" in name:
        raise DataError(f"{path}: its voxels lie in several files; expected one, save it as .mha")
    return path if name.upper() == "LOCAL" else path.parent / name


def _check_data_is_whole(path, reader):
    """SimpleITK fills up a truncated NIfTI or a damaged compressed MetaImage without a word."""
    data_file, suffix, start = _data_file(path), suffix_of(path), 0
    if suffix in META_SUFFIXES:
        with path.open("rb") as file:
            header, header_bytes = meta_header(file)
        packed = header.get("CompressedData", "").lower() == "true"
        start = header_bytes if data_file == path else 0
        expected = int(np.prod(reader.GetSize())) * _component_bytes(reader.GetPixelID())
    elif suffix in (".nii", ".nii.gz"):
        packed = suffix == ".nii.gz"
        voxel_bits = int(reader.GetMetaData("bitpix"))  # stored, before the header's scaling
        expected = int(float(reader.GetMetaData("vox_offset")))
        expected += int(np.prod(reader.GetSize())) * voxel_bits // 8
    else:
        return  # SimpleITK's NRRD reader looks itself
    if not data_file.is_file():
        raise DataError(
            f"{path}: its data file {data_file.name} is missing; copy it beside the header"
        )
    found = data_file.stat().st_size - start
    if packed:
        content = data_file.read_bytes()[start:]
        try:
            unpacked = (
                gzip.decompress(content)
                if suffix == ".nii.gz"
                else zlib.decompress(content, wbits=32 + zlib.MAX_WBITS)  # zlib or gzip, as MetaIO
            )
        except (EOFError, OSError, zlib.error):
            raise DataError(
                f"{data_file}: its compressed data is truncated or damaged; get the file again"
            ) from None
        found = len(unpacked)
    if found < expected:
        raise DataError(f"{data_file}: truncated, {found} bytes of {expected}; get the file again")


def _component_bytes(pixel_id):
    return sitk.GetArrayViewFromImage(sitk.Image([1, 1], pixel_id)).itemsize


def _read(path):
    """A 3-D scalar image as it is stored, whole and finite."""
    path = Path(path)
    if path.is_dir():
        return _read_dicom_series(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if suffix_of(path) is None:
        raise DataError(f"{path}: not one of the image formats {', '.join(SUFFIXES)}")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise DataError(
            f"{path}: its header cannot be read as {suffix_of(path)}; check the file's "
            "permissions, or get it again"
        ) from None
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    if len(size) != 3 or 0 in size or components != 1:
        raise DataError(
            f"{path}: size {size} with {components} component(s) per voxel, "
            "expected a 3-D scalar volume"
        )
    _check_data_is_whole(path, reader)
    try:
        image = reader.Execute()
    except RuntimeError:
        raise DataError(
            f"{path}: truncated, damaged, or of an impossible geometry; get the file again"
        ) from None
    return _finite(image, path)


def _finite(image, path):
    geometry = [*image.GetOrigin(), *image.GetSpacing(), *image.GetDirection()]
    if not np.isfinite(geometry).all():
        raise DataError(f"{path}: its geometry holds NaN or infinity; repair the header")
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise DataError(f"{path}: {count} voxels are NaN or infinite; repair or leave out the file")
    return image


def _read_dicom_series(folder):
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise DataError(
            f"{folder}: neither images ({', '.join(SUFFIXES)}) nor a DICOM series in this folder; "
            "name the folder or the files that are meant"
        )
    if len(series) > 1:
        raise DataError(
            f"{folder}: {len(series)} DICOM series, expected one; give each a folder of its own"
        )
    try:
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    except RuntimeError as error:
        raise DataError(f"{folder}: cannot be read ({str(error).splitlines()[-1]})") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError(f"{folder}: expected a 3-D scalar DICOM series")
    return _finite(image, folder)


def read_image(path: str | Path) -> sitk.Image:
    """An MR image, as float32 in its own intensities.

    Args:
        path: a file with one of `SUFFIXES`, or the folder of one DICOM series.

    Raises:
        DataError: missing, unreadable, truncated, no 3-D scalar volume, NaN, all of one value, or
            a header that names voxels outside its folder.
    """
    image = _finite(sitk.Cast(_read(path), sitk.sitkFloat32), path)
    values = sitk.GetArrayViewFromImage(image)
    if values.min() == values.max():
        raise DataError(f"{path}: every voxel is {values.min():g}, expected an MR image")
    return image


def read_mask(path: str | Path, image: sitk.Image, image_path: str | Path) -> sitk.Image:
    """The reference mask of `image`, uint8 0 and 1, with exactly the image's geometry.

    Raises:
        DataError: unreadable, of another size or geometry than its image, or other labels.
    """
    mask = _read(path)
    check_same_grid(image, image_path, mask, path)
    labels = np.unique(sitk.GetArrayViewFromImage(mask))
    if not np.isin(labels, (0, 1)).all():
        shown = ", ".join(f"{label:g}" for label in labels[:6])
        raise DataError(f"{path}: labels {shown}, expected only 0 and 1 (1 is the prostate)")
    mask = sitk.Cast(mask, sitk.sitkUInt8)
    mask.CopyInformation(image)
    return mask


def check_same_grid(
    image: sitk.Image, image_path: str | Path, mask: sitk.Image, mask_path: str | Path
) -> None:
    """Raises a DataError where a mask does not lie on its image's voxels."""
    if image.GetSize() != mask.GetSize():
        raise DataError(
            f"{mask_path}: size {mask.GetSize()} differs from its image {image_path} "
            f"{image.GetSize()}"
        )
    size = image.GetSize()
    corners = [
        [i * (size[0] - 1), j * (size[1] - 1), k * (size[2] - 1)] for i, j, k in np.ndindex(2, 2, 2)
    ]
    apart_mm = max(
        np.linalg.norm(
            np.subtract(
                image.TransformIndexToPhysicalPoint(corner),
                mask.TransformIndexToPhysicalPoint(corner),
            )
        )
        for corner in corners
    )
    if apart_mm > SAME_GRID_VOXELS * min(image.GetSpacing()):
        raise DataError(
            f"{mask_path}: geometry differs from its image {image_path}, corners lie "
            f"{apart_mm:.2f} mm apart; expected the same spacing, origin and direction"
        )


# --- to the network grid and back --------------------------------------------------------------


def xyz(image: sitk.Image) -> np.ndarray:
    """The voxels of an image, (X, Y, Z)."""
    return sitk.GetArrayFromImage(image).T


def network_grid(image: sitk.Image, config: EasyDict) -> sitk.Image:
    """An empty image on the network grid: `VolSize` voxels of `dstRes` mm about the image's centre.

    Its axes are the image's, or with `normDir` the patient's.
    """
    grid = sitk.Image([int(side) for side in config.VolSize], sitk.sitkUInt8)
    grid.SetSpacing([float(size_mm) for size_mm in config.dstRes])
    grid.SetDirection(np.eye(3).ravel() if config.normDir else image.GetDirection())
    centre = image.TransformContinuousIndexToPhysicalPoint(
        [(side - 1) / 2 for side in image.GetSize()]
    )
    grid_centre = grid.TransformContinuousIndexToPhysicalPoint(
        [(side - 1) / 2 for side in grid.GetSize()]
    )
    grid.SetOrigin(np.subtract(centre, grid_centre))
    return grid


def left_right_axis(grid: sitk.Image) -> int:
    """The array axis (0, 1, 2 of X, Y, Z) of an image that runs closest to the patient's left."""
    left_of_axes = np.abs(grid.GetDirection()[:3])
    return int(np.argmax(left_of_axes))


def intensity_on_network_grid(image: sitk.Image, config: EasyDict) -> np.ndarray:
    """An image on the network grid: brought to 0..1 over the whole image, 0 outside it.

    Args:
        image: float32, from `read_image`.
        config: `VolSize`, `dstRes`, `normDir`, `intensity`.

    Returns:
        (X, Y, Z) float32.
    """
    grid = network_grid(image, config)
    equalize = config.intensity == "equalize"
    unit = equalized(image) if equalize else sitk.RescaleIntensity(image, 0.0, 1.0)
    return xyz(sitk.Resample(unit, grid, sitk.Transform(), sitk.sitkLinear, 0.0))


def equalized(image: sitk.Image) -> sitk.Image:
    """The image without its coil's field, and with its histogram equalized.

    The logarithm of the intensities less its Gaussian mean is a ratio to the surroundings; each
    voxel becomes the share of voxels with a lower ratio, linear between quantiles. Tissue beside
    an endorectal coil is up to ten times as bright as the rest of an image, which a mere rescaling
    would squeeze into the dark end of 0..1.

    Args:
        image: float32, from `read_image`.

    Returns:
        float32 in 0..1. The image's darkest voxels, as of padding, are 0; neither the means nor the
        shares count them.
    """
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
    """
    positive = intensity[intensity > 0].astype(np.float64)
    if not positive.size or positive.min() == positive.max():
        return np.zeros_like(intensity)
    return ((intensity - positive.mean()) / positive.std()).astype(np.float32)


def image_to_network_grid(image: sitk.Image, config: EasyDict) -> np.ndarray:
    """The network's input of one image: `intensity_on_network_grid`, `z_scored`."""
    return z_scored(intensity_on_network_grid(image, config))


def mask_to_network_grid(mask: sitk.Image, config: EasyDict) -> np.ndarray:
    """A reference mask on the network grid, (X, Y, Z) bool: linear, then above one half."""
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
    """
    on_grid = sitk.GetImageFromArray(np.ascontiguousarray(probability.T, dtype=np.float32))
    on_grid.CopyInformation(network_grid(image, config))
    return sitk.Resample(on_grid, image, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)


# --- preprocessed cases ------------------------------------------------------------------------


class TrainingVolume(NamedTuple):
    """A case on the network grid."""

    intensity: np.ndarray  # (X, Y, Z) float32, 0..1
    mask: np.ndarray  # (X, Y, Z) bool
    left_right_axis: int  # see `left_right_axis`


def read_case(case: Case) -> tuple[sitk.Image, sitk.Image | None]:
    """Image and reference mask (None if the case has none), read and checked."""
    image = read_image(case.image_path)
    mask = read_mask(case.mask_path, image, case.image_path) if case.mask_path else None
    return image, mask


def load_training_volumes(cases: list[Case], config: EasyDict) -> list[TrainingVolume]:
    """All cases on the network grid, read in parallel and kept in `cache_dir` for the next start.

    Args:
        cases: with masks.
        config: `VolSize`, `dstRes`, `normDir`, `intensity`, `num_workers`, `cache_dir`.

    Returns:
        In the order of `cases`.

    Raises:
        DataError: a case that cannot be read, or whose gland lies outside the network grid.
    """
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
            print(f"{cached}: damaged ({error}), made again")
    image, mask = read_case(case)
    arrays = {
        "intensity": intensity_on_network_grid(image, config),
        "mask": mask_to_network_grid(mask, config),
        "left_right_axis": left_right_axis(network_grid(image, config)),
    }
    if not sitk.GetArrayViewFromImage(mask).any():
        print(f"{case.mask_path}: empty, the case is trained on as one without a prostate")
    else:
        _check_gland_is_on_grid(case, mask, config)
    if cached is not None:
        _write_cache(cached, arrays)
    return _unpacked(arrays)


def _unpacked(arrays):
    return TrainingVolume(arrays["intensity"], arrays["mask"], int(arrays["left_right_axis"]))


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
        print(f"{case.mask_path}: only {share:.0%} of the prostate lies on {grid}")


def _cache_file(case, config):
    """Where a case is kept; the name holds the files' identity and all that shapes the result."""
    if config.cache_dir == "off":
        return None
    if config.cache_dir == "auto":
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "vnet_mindspore")
    else:
        root = Path(config.cache_dir)
    identity = []
    for image in (case.image_path, case.mask_path):
        for path in (image, _data_file(image)):
            if path.exists():
                status = path.stat()
                times = (status.st_mtime_ns, status.st_ctime_ns)  # a copy may keep the former
                identity.append((str(path.resolve()), status.st_size, *times))
    geometry = [
        config.VolSize,
        config.dstRes,
        config.normDir,
        config.intensity,
        CACHE_VERSION,
        sitk.Version_VersionString(),
    ]
    key = hashlib.sha256(json.dumps([identity, geometry]).encode()).hexdigest()[:32]
    return root / f"{case.case_id}-{key}.npz"


def _write_cache(path, arrays):
    """Keeps a preprocessed case; a cache that cannot be written costs time, not the run."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = io.BytesIO()  # an archive that is cut off while it is open complains aloud
        np.savez(content, **arrays)
        temporary.write_bytes(content.getvalue())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


# --- writing -----------------------------------------------------------------------------------


def write_volume(image: sitk.Image, path: str | Path) -> None:
    """Writes an image, whole or not at all.

    It is written under a folder of its own, read back and compared, since SimpleITK does not notice
    every full disk, and then renamed, the voxels of a `.mhd` before its header.

    Args:
        image: of any size and voxel type.
        path: with one of `SUFFIXES`; `.mhd` gets a compressed `.zraw` beside it.

    Raises:
        DataError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
            temporary = Path(folder, path.name)
            sitk.WriteImage(image, str(temporary), True)
            written = sitk.ReadImage(str(temporary))
            if not np.array_equal(
                sitk.GetArrayViewFromImage(written), sitk.GetArrayViewFromImage(image)
            ):
                raise RuntimeError("what was written reads back differently")
            for file in sorted(Path(folder).iterdir(), key=lambda file: file == temporary):
                file.replace(path.with_name(file.name))
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{path}: cannot be written ({reason}); is the disk full?") from None
