"""Small synthetic volumes, in memory, in folders and in zips, and how they compare."""

import itertools
import zipfile

import numpy as np
import SimpleITK as sitk

# How far a written geometry may lie from the image's; NIfTI's header holds float32.
TOLERANCE = {".mhd": 0, ".mha": 0, ".nrrd": 1e-12, ".nii": 1e-5, ".nii.gz": 1e-5}


def image_of(array_zyx, spacing_mm=(1.25, 1.25, 2.5), origin=(-20.0, 31.5, 7.25), direction=None):
    """A SimpleITK image of an array, with this geometry (x, y, z)."""
    array_zyx = np.asarray(array_zyx)
    if array_zyx.dtype == bool:
        array_zyx = array_zyx.astype(np.uint8)
    image = sitk.GetImageFromArray(array_zyx)
    image.SetSpacing(spacing_mm)
    image.SetOrigin(origin)
    image.SetDirection(np.ravel(np.eye(3) if direction is None else direction).astype(float))
    return image


def read_array(path):
    """The voxels (z, y, x) of a file, by SimpleITK."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


# Geometry ----------------------------------------------------------------------------------------


def geometry_of(image):
    """Size, spacing, origin and direction of a SimpleITK image, in one tuple of numbers."""
    return (*image.GetSize(), *image.GetSpacing(), *image.GetOrigin(), *image.GetDirection())


def geometry_error(image, other):
    """Largest difference between two SimpleITK images in size, spacing, origin, direction."""
    return np.abs(np.subtract(geometry_of(image), geometry_of(other))).max()


STORAGE_ORDERS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def stored_in_order(image, axes, signs):
    """The same volume with its axes permuted and flipped in storage: voxels stay where they are.

    Args:
        image: a SimpleITK image.
        axes: its axis that becomes the first, second, third.
        signs: -1 for one that then runs backwards.
    """
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)  # X, Y, Z
    flips = tuple(slice(None, None, sign) for sign in signs)
    other = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(axes)[flips].T))
    sides = np.array(image.GetSize())
    corner = np.zeros(3)
    for axis, sign in zip(axes, signs, strict=True):
        corner[axis] = (sides[axis] - 1) * (sign < 0)
    direction = np.reshape(image.GetDirection(), (3, 3))
    spacing_mm = np.array(image.GetSpacing())
    other.SetSpacing(spacing_mm[list(axes)])
    other.SetDirection((direction[:, axes] * signs).ravel())
    other.SetOrigin(np.array(image.GetOrigin()) + direction @ (spacing_mm * corner))
    return other


# Files -------------------------------------------------------------------------------------------


def make_volume(path, seed=0, size=(6, 5, 4), values=None):
    """An image, or a mask where the name says so, in the format of its suffix; returns the path."""
    is_mask = "_segmentation" in path.name
    if values is None:
        values = np.random.default_rng(seed).integers(0, 900, size[::-1]).astype(np.int16)
        if is_mask:
            values = np.zeros(size[::-1], np.uint8)
            values[1:3, 1:4, 2:4] = 1  # 12 voxels
    image = image_of(values, (0.5, 0.5, 4.0), (-10.0, 20.0, 30.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def make_pairs(folder, names, suffix=".mhd", seed=0):
    """An image and its mask for each name; returns the folder."""
    for number, name in enumerate(names):
        make_volume(folder / f"{name}{suffix}", seed=seed + number)
        make_volume(folder / f"{name}_segmentation{suffix}")
    return folder


def zip_of(folder, path, prefix=""):
    """A zip of a folder's files, below `prefix` in it; returns its path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"{prefix}{file.name}")
    return path
