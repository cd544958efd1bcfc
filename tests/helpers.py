"""What several test files use."""

import itertools
from pathlib import Path

import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[1]  # of the repository
GEOMETRY = ("GetSize", "GetSpacing", "GetOrigin", "GetDirection")
# How far a written geometry may lie from the image's; NIfTI's header holds float32.
TOLERANCE = {".mhd": 0, ".mha": 0, ".nrrd": 1e-12, ".nii": 1e-5, ".nii.gz": 1e-5}


def geometry_error(image, other):
    """Largest difference between two SimpleITK images in size, spacing, origin, direction."""
    return max(
        np.abs(np.subtract(getattr(image, name)(), getattr(other, name)())).max()
        for name in GEOMETRY
    )


def tree(folder):
    """{path: bytes} of all files in a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def touch(folder, *names):
    """Makes empty files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def cut(count):
    """A function that takes bytes off the end."""
    return lambda content: content[:-count]


def flip_middle(content):
    """Inverts four bytes in the middle."""
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(255 ^ byte for byte in content[middle : middle + 4])
        + content[middle + 4 :]
    )


def replaced(old, new):
    """A function that replaces bytes, which must be there."""

    def change(content):
        assert old in content
        return content.replace(old, new)

    return change


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
