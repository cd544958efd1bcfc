"""Small synthetic volumes, in folders and zips as sources have them."""

import zipfile

import numpy as np
import SimpleITK as sitk


def make_volume(path, seed=0, size=(6, 5, 4), values=None):
    """An image, or a mask where the name says so, in the format of its suffix; returns the path."""
    is_mask = "_segmentation" in path.name
    if values is None:
        values = np.random.default_rng(seed).integers(0, 900, size[::-1]).astype(np.int16)
        if is_mask:
            values = np.zeros(size[::-1], np.uint8)
            values[1:3, 1:4, 2:4] = 1  # 12 voxels
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.5, 0.5, 4.0))
    image.SetOrigin((-10.0, 20.0, 30.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def make_pairs(folder, names, suffix=".mhd", seed=0):
    for number, name in enumerate(names):
        make_volume(folder / f"{name}{suffix}", seed=seed + number)
        make_volume(folder / f"{name}_segmentation{suffix}")
    return folder


def zip_of(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"{prefix}{file.name}")
    return path


def tree(folder):
    """Relative path -> content of each file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
