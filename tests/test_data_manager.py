"""Files in every state, the way to the network grid and back, the cache, and what is written."""

import gzip
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage, stats

from src import data_manager
from src.data_manager import (
    SUFFIXES,
    Case,
    check_same_grid,
    equalized,
    find_cases,
    image_to_network_grid,
    images_in,
    intensity_on_network_grid,
    left_right_axis,
    load_training_volumes,
    mask_to_network_grid,
    network_grid,
    probability_to_case_grid,
    read_case,
    read_image,
    read_mask,
    stem,
    suffix_of,
    worker_count,
    write_volume,
    xyz,
    z_scored,
)
from src.errors import DataError

GEOMETRY = ("GetSize", "GetSpacing", "GetOrigin", "GetDirection")
# How far a written geometry may lie from the image's; NIfTI's header holds float32.
TOLERANCE = {".mhd": 0, ".mha": 0, ".nrrd": 1e-12, ".nii": 1e-5, ".nii.gz": 1e-5}


def geometry_error(image, other):
    return max(
        np.abs(np.subtract(getattr(image, name)(), getattr(other, name)())).max()
        for name in GEOMETRY
    )


def tree(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Finding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, name, suffix",
    [
        ("Case03.mhd", "Case03", ".mhd"),
        ("img/Case03.nii.gz", "Case03", ".nii.gz"),
        ("/a.mha/Case03.nii", "Case03", ".nii"),
        ("P.1 T2.nrrd", "P.1 T2", ".nrrd"),
        ("CASE03.NII.GZ", "CASE03", ".nii.gz"),
        ("Case03.mha", "Case03", ".mha"),
        ("Case03_segmentation.mhd", "Case03_segmentation", ".mhd"),
        ("Case03", "Case03", None),
        ("Case03.raw", "Case03.raw", None),
        ("Case03.gz", "Case03.gz", None),
        (Path("a") / "b.mhd", "b", ".mhd"),
    ],
)
def test_stem_and_suffix(path, name, suffix):
    assert stem(path) == name and suffix_of(path) == suffix


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_images_in_a_folder(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.mhd", "a.raw", "a.mha", ".c.mhd", "notes.txt", "d.zraw")
    assert images_in(tmp_path) == {
        "a": [tmp_path / "a.mha", tmp_path / "a.mhd"],
        "b": [tmp_path / "b.nii.gz"],
    }


def test_cases_are_found_by_stem_in_the_order_of_the_split(tmp_path):
    touch(tmp_path / "img", "Case00.nii.gz", "Case01.mhd", "Case01.raw", "Case2.nrrd", "x.mha")
    touch(tmp_path / "gt", "Case00_segmentation.nrrd", "Case01_segmentation.mhd", "other.mhd")
    assert find_cases(tmp_path, ["Case01.mhd", "Case00.mhd"]) == [
        Case("Case01", tmp_path / "img/Case01.mhd", tmp_path / "gt/Case01_segmentation.mhd"),
        Case("Case00", tmp_path / "img/Case00.nii.gz", tmp_path / "gt/Case00_segmentation.nrrd"),
    ]
    assert find_cases(tmp_path, ["Case2"], with_mask=False) == [
        Case("Case2", tmp_path / "img/Case2.nrrd", None)
    ]


def test_of_two_files_of_a_stem_the_named_one_is_taken(tmp_path):
    touch(tmp_path / "img", "Case00.mhd", "Case00.nii")
    assert find_cases(tmp_path, ["Case00.nii"], with_mask=False)[0].image_path.suffix == ".nii"


@pytest.mark.parametrize(
    "images, masks, words",
    [
        (None, [], ["img: no such folder"]),
        (["Case00.mhd"], None, ["gt: no such folder"]),
        (["Case01.mhd"], [], ["img: no image Case00 (", "take it out of the split"]),
        (["case00.mhd"], [], ["img: no image Case00 ("]),
        (["Case00.mhd"], ["Case00.mhd"], ["gt: no image Case00_segmentation ("]),
        (["Case00.mha", "Case00.nii"], [], ["Case00.mha, Case00.nii are all called Case00"]),
        (
            ["Case00.mhd"],
            ["Case00_segmentation.mhd", "Case00_segmentation.mha"],
            ["Case00_segmentation.mha, Case00_segmentation.mhd are all called"],
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


# Reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("packed", [False, True])
def test_every_format_is_read(tmp_path, make_image, oblique, suffix, packed):
    values = np.random.default_rng(0).integers(-500, 2**15 - 1, (5, 6, 7)).astype(np.int16)
    stored = make_image(values, (0.27, 0.31, 3.6), (1 / 3, -77.7, 1e3), oblique)
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(stored, str(path), packed)
    image = read_image(path)
    assert image.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values)
    assert geometry_error(image, stored) <= 10 * TOLERANCE[suffix]  # the origin is 1000 mm off
    np.testing.assert_array_equal(xyz(image), values.transpose(2, 1, 0))


def test_a_suffix_in_capitals_is_read(tmp_path, make_image):
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    sitk.WriteImage(make_image(values), str(tmp_path / "scan.nii.gz"))
    path = (tmp_path / "scan.nii.gz").rename(tmp_path / "SCAN.NII.GZ")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(path)), values)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64]
)
def test_every_number_format_is_read(tmp_path, make_image, dtype):
    values = np.arange(60, dtype=dtype).reshape(3, 4, 5)
    sitk.WriteImage(make_image(values), str(tmp_path / "a.nii"))
    sitk.WriteImage(make_image(values), str(tmp_path / "a.mhd"), True)
    for name in ("a.nii", "a.mhd"):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / name)), values)


def test_nifti_scaling_of_the_header_counts(tmp_path, make_image):
    """Stored as int16, meant as 0.5 v + 10: more bytes in memory than in the file."""
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    path = tmp_path / "scaled.nii"
    sitk.WriteImage(make_image(values), str(path))
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<ff", 0.5, 10)
    path.write_bytes(content)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(path)), 0.5 * values + 10)
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"scaled\.nii: truncated, 471 bytes of 472"):
        read_image(path)


def test_voxels_may_lie_in_the_header_file(tmp_path, make_image):
    """`ElementDataFile = LOCAL` in a .mhd, and a data file elsewhere named by a .mha."""
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    sitk.WriteImage(make_image(values), str(tmp_path / "a.mha"))
    (tmp_path / "a.mha").rename(tmp_path / "local.mhd")
    sitk.WriteImage(make_image(values), str(tmp_path / "b.mhd"))
    (tmp_path / "b.mhd").rename(tmp_path / "apart.mha")
    for name in ("local.mhd", "apart.mha"):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(tmp_path / name)), values)
    (tmp_path / "local.mhd").write_bytes((tmp_path / "local.mhd").read_bytes()[:-1])
    (tmp_path / "b.raw").write_bytes((tmp_path / "b.raw").read_bytes()[:-1])
    for name, blamed in (("local.mhd", "local.mhd"), ("apart.mha", "b.raw")):
        with pytest.raises(DataError, match=rf"{blamed}: truncated, 119 bytes of 120"):
            read_image(tmp_path / name)


# Each entry breaks a good scan (7 x 6 x 5, int16): suffix, compressed, what is done to the file
# that holds the voxels or to the header, the file that the error must name, and its words.
def cut(count):
    return lambda content: content[:-count]


def flip_middle(content):
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(255 ^ byte for byte in content[middle : middle + 4])
        + content[middle + 4 :]
    )


def replaced(old, new):
    def change(content):
        assert old in content
        return content.replace(old, new)

    return change


BROKEN_VOXELS = [
    (".mhd", False, cut(1), "scan.raw", "truncated, 419 bytes of 420"),
    (".mhd", False, lambda _: b"", "scan.raw", "truncated, 0 bytes of 420"),
    (".mhd", True, cut(1), "scan.zraw", "truncated or damaged"),
    (".mhd", True, flip_middle, "scan.zraw", "truncated or damaged"),
    (".mhd", True, lambda _: zlib.compress(b"1" * 419), "scan.zraw", "419 bytes of 420"),
    (".mha", False, cut(1), "scan.mha", "truncated, 419 bytes of 420"),
    (".mha", False, cut(500), "scan.mha", "header cannot be read"),
    (".mha", True, cut(1), "scan.mha", "truncated or damaged"),
    (".mha", True, flip_middle, "scan.mha", "truncated or damaged"),
    (".nii", False, cut(1), "scan.nii", "truncated, 771 bytes of 772"),
    (".nii", False, cut(352), "scan.nii", "truncated, 420 bytes of 772"),
    (".nii.gz", True, cut(1), "scan.nii.gz", "truncated or damaged"),
    (".nii.gz", True, flip_middle, "scan.nii.gz", ""),
    (".nii.gz", True, lambda content: gzip.compress(gzip.decompress(content)[:-1]), "scan.nii.gz",
     "truncated, 771 bytes of 772"),
    (".nrrd", False, cut(1), "scan.nrrd", "truncated, damaged"),
    (".nrrd", True, cut(20), "scan.nrrd", "truncated, damaged"),
]  # fmt: skip
BROKEN_HEADERS = [
    *[(suffix, lambda _: b"", "header cannot be read") for suffix in SUFFIXES],
    *[(suffix, lambda _: b"garbage\n" * 99, "header cannot be read") for suffix in SUFFIXES],
    (".mhd", replaced(b"DimSize = 7", b"DimSize = x"), "header cannot be read"),
    (".mhd", replaced(b"DimSize = 7", b"DimSize = 0"), "expected a 3-D scalar volume"),
    (".mhd", replaced(b"MET_SHORT", b"MET_STRANGE"), "header cannot be read"),
    (".mhd", replaced(b"ElementDataFile = scan.raw", b""), "header cannot be read|ElementDataFile"),
    (".mhd", replaced(b"scan.raw", b"LIST"), "several files"),
    (".mhd", replaced(b"scan.raw", b"scan%02d.raw 1 5 1"), "several files"),
    (".mhd", replaced(b"ElementSpacing = 1.25", b"ElementSpacing = 0"), "impossible geometry"),
    (".mhd", replaced(b"Matrix = 1 0 0 0 1 0", b"Matrix = 1 0 0 1 0 0"), "impossible geometry"),
    (".nii", lambda content: content[:292] + struct.pack("<f", np.nan) + content[296:],
     "geometry holds NaN or infinity"),
    (".mhd", replaced(b"CompressedData = False", b"CompressedData = True"), "damaged"),
    (".nrrd", replaced(b"sizes: 7 6 5", b"sizes: 7 6 x"), "header cannot be read"),
]  # fmt: skip


def stored_scan(folder, make_image, suffix, packed=False):
    values = np.random.default_rng(0).integers(0, 900, (5, 6, 7)).astype(np.int16)
    path = folder / f"scan{suffix}"
    sitk.WriteImage(make_image(values), str(path), packed)
    read_image(path)
    return path


def refusal(path):
    with pytest.raises(DataError) as error:
        read_image(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix, packed, damage, blamed, words", BROKEN_VOXELS)
def test_damaged_voxels(tmp_path, make_image, suffix, packed, damage, blamed, words):
    path = stored_scan(tmp_path, make_image, suffix, packed)
    data = tmp_path / blamed
    data.write_bytes(damage(data.read_bytes()))
    message = refusal(path)
    assert message.startswith(f"{data}: ") and words in message


@pytest.mark.parametrize("suffix, damage, words", BROKEN_HEADERS)
def test_damaged_headers(tmp_path, make_image, suffix, damage, words):
    path = stored_scan(tmp_path, make_image, suffix)
    path.write_bytes(damage(path.read_bytes()))
    message = refusal(path)
    assert str(tmp_path / "scan.") in message
    assert any(word in message for word in words.split("|"))


@pytest.mark.parametrize("place", ["{parent}/other.raw", "../other.raw", "x/../../other.raw"])
def test_voxels_outside_the_headers_folder(tmp_path, make_image, place):
    """The file it names is there and whole, and SimpleITK would read it."""
    folder = tmp_path / "img"
    (folder / "x").mkdir(parents=True)
    path = stored_scan(folder, make_image, ".mhd")
    (folder / "scan.raw").rename(tmp_path / "other.raw")
    name = place.format(parent=tmp_path)
    path.write_bytes(path.read_bytes().replace(b"scan.raw", name.encode()))
    assert sitk.ReadImage(str(path)).GetSize() == (7, 6, 5)
    assert refusal(path).startswith(f"{path}: ElementDataFile {name} is not in its folder; put")


def test_missing_files(tmp_path, make_image):
    path = stored_scan(tmp_path, make_image, ".mhd")
    (tmp_path / "scan.raw").unlink()
    assert refusal(path) == f"{path}: its data file scan.raw is missing; copy it beside the header"
    assert refusal(tmp_path / "gone.mhd") == f"{tmp_path / 'gone.mhd'}: no such file"
    (tmp_path / "scan.tif").touch()
    assert ".mhd, .mha, .nii.gz, .nii, .nrrd" in refusal(tmp_path / "scan.tif")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", ["2-D", "4-D", "vector"])
def test_what_is_no_scalar_volume(tmp_path, make_image, suffix, kind):
    volume = make_image(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    other = {
        "2-D": lambda: volume[:, :, 0],
        "4-D": lambda: sitk.JoinSeries([volume, volume]),
        "vector": lambda: sitk.Compose([volume] * 3),
    }[kind]()
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(other, str(path))
    size = {"2-D": "(5, 4)", "4-D": "(5, 4, 3, 2)", "vector": "(5, 4, 3) with 3 component"}[kind]
    message = refusal(path)
    assert message.startswith(f"{path}: size {size}") and "expected a 3-D scalar" in message


@pytest.mark.parametrize(
    "value, words",
    [
        (np.nan, "2 voxels are NaN or infinite"),
        (np.inf, "2 voxels are NaN or infinite"),
        (-np.inf, "2 voxels are NaN or infinite"),
    ],
)
def test_images_with_nan(tmp_path, make_image, value, words):
    values = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    values[1, 1, 1:3] = value
    sitk.WriteImage(make_image(values), str(tmp_path / "scan.nrrd"))
    assert words in refusal(tmp_path / "scan.nrrd")


@pytest.mark.parametrize("value", [0, -7])
def test_images_of_one_value(tmp_path, make_image, value):
    sitk.WriteImage(make_image(np.full((3, 4, 5), value, np.int16)), str(tmp_path / "scan.mha"))
    assert refusal(tmp_path / "scan.mha").startswith(
        f"{tmp_path / 'scan.mha'}: every voxel is {value}, expected an MR image"
    )


# Masks ------------------------------------------------------------------------------------------


def written_mask(folder, make_image, values, **geometry):
    path = folder / "scan_segmentation.mha"
    sitk.WriteImage(make_image(values, **geometry), str(path))
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_mask_takes_its_images_exact_geometry(tmp_path, make_image, oblique, dtype):
    """Headers are rounded in many ways; up to a twentieth of a voxel is the same place."""
    geometry = {"spacing_mm": (0.6, 0.6, 3.6), "origin": (10.0, 20.0, 30.0), "direction": oblique}
    image = make_image(np.zeros((3, 4, 5), np.float32), **geometry)
    values = (np.arange(60).reshape(3, 4, 5) % 2).astype(dtype)
    rounded = {
        "spacing_mm": (0.60001, 0.6, 3.6),
        "origin": (10.02, 20.0, 30.0),
        "direction": np.round(oblique, 5),
    }
    mask = read_mask(written_mask(tmp_path, make_image, values, **rounded), image, "scan.mha")
    assert mask.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), values)
    assert geometry_error(image, mask) == 0


def test_an_empty_mask_is_read(tmp_path, make_image):
    image = make_image(np.zeros((3, 4, 5), np.float32))
    path = written_mask(tmp_path, make_image, np.zeros((3, 4, 5), np.uint8))
    assert not sitk.GetArrayFromImage(read_mask(path, image, "scan.mha")).any()


@pytest.mark.parametrize(
    "shape, change, words",
    [
        ((4, 4, 5), {}, "size (5, 4, 4) differs from its image scan.mha (5, 4, 3)"),
        ((3, 5, 4), {}, "size (4, 5, 3) differs"),
        ((3, 4, 5), {"origin": (0.05, 0, 0)}, "0.05 mm apart"),
        ((3, 4, 5), {"origin": (0, 0, 3.0)}, "3.00 mm apart"),
        ((3, 4, 5), {"spacing_mm": (0.6, 0.6, 3.7)}, "0.20 mm apart"),
        ((3, 4, 5), {"direction": np.diag([1, -1, -1])}, "mm apart"),
    ],
)
def test_masks_on_another_grid(tmp_path, make_image, shape, change, words):
    geometry = {"spacing_mm": (0.6, 0.6, 3.6), "origin": (0, 0, 0)}
    image = make_image(np.zeros((3, 4, 5), np.float32), **geometry)
    path = written_mask(tmp_path, make_image, np.zeros(shape, np.uint8), **{**geometry, **change})
    with pytest.raises(DataError) as error:
        read_mask(path, image, "scan.mha")
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "scan.mha" in message and words in message


@pytest.mark.parametrize(
    "labels, dtype, words",
    [
        ([0, 255], np.uint8, "labels 0, 255, expected only 0 and 1"),
        ([0, 1, 2], np.int16, "labels 0, 1, 2,"),
        ([-1, 0], np.int16, "labels -1, 0,"),
        ([0, 0.5, 1], np.float32, "labels 0, 0.5, 1,"),
        (range(20), np.uint8, "labels 0, 1, 2, 3, 4, 5, expected"),
        ([0, np.nan], np.float32, "voxels are NaN"),
    ],
)
def test_masks_with_foreign_labels(tmp_path, make_image, labels, dtype, words):
    image = make_image(np.zeros((3, 4, 5), np.float32))
    values = np.resize(np.array(labels, dtype), (3, 4, 5))
    path = written_mask(tmp_path, make_image, values)
    with pytest.raises(DataError) as error:
        read_mask(path, image, "scan.mha")
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)


def test_check_same_grid_tells_a_twentieth_of_a_voxel(make_image):
    image = make_image(np.zeros((3, 4, 5), np.uint8), (0.5, 1, 2), (0, 0, 0))
    near = make_image(np.zeros((3, 4, 5), np.uint8), (0.5, 1, 2), (0, 0.0249, 0))
    far = make_image(np.zeros((3, 4, 5), np.uint8), (0.5, 1, 2), (0, 0.0251, 0))
    check_same_grid(image, "a.mhd", near, "b.mhd")
    with pytest.raises(DataError, match="b.mhd: geometry differs from its image a.mhd"):
        check_same_grid(image, "a.mhd", far, "b.mhd")


# DICOM ------------------------------------------------------------------------------------------


def write_series(folder, image, series):
    """A DICOM series, slice by slice, as SimpleITK's documentation has it."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    orientation = "\\".join(repr(direction[i]) for i in (0, 3, 6, 1, 4, 7))
    for index in range(image.GetSize()[2]):
        section = image[:, :, index]
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        for tag, value in {
            "0008|0060": "MR",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.{series}.{index + 1}",
            "0020|000e": f"1.2.826.0.1.3680043.2.1125.{series}",
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{value:.10g}" for value in position),
            "0020|0037": orientation,
            "0018|0050": str(image.GetSpacing()[2]),
        }.items():
            section.SetMetaData(tag, value)
        # File names in the opposite order: the position counts.
        writer.SetFileName(str(folder / f"{series}_{99 - index}.dcm"))
        writer.Execute(section)


def test_a_folder_of_one_dicom_series_is_a_volume(tmp_path, make_image, oblique):
    values = np.random.default_rng(0).integers(0, 2000, (5, 8, 6)).astype(np.int16)
    stored = make_image(values, (0.5, 0.625, 3.5), (10.0, -20.0, 30.0), oblique)
    write_series(tmp_path / "series", stored, 1)
    image = read_image(tmp_path / "series")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values)
    assert geometry_error(image, stored) < 1e-5


def test_two_dicom_series_in_a_folder_are_refused(tmp_path, make_image):
    values = np.random.default_rng(0).integers(0, 2000, (3, 8, 6)).astype(np.int16)
    for series in (1, 2):
        write_series(tmp_path / "series", make_image(values), series)
    message = refusal(tmp_path / "series")
    assert message.startswith(f"{tmp_path / 'series'}: 2 DICOM series, expected one")


def test_a_folder_without_any_image(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert refusal(tmp_path).startswith(f"{tmp_path}: neither images (.mhd,")


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


def grid_points(image, config):
    """Physical points (3, X, Y, Z) of the network grid, from its definition."""
    direction = np.reshape(image.GetDirection(), (3, 3))
    half = np.multiply(np.subtract(image.GetSize(), 1), image.GetSpacing()) / 2
    centre = np.array(image.GetOrigin()) + direction @ half
    steps = np.indices(config.VolSize) - (np.reshape(config.VolSize, (3, 1, 1, 1)) - 1) / 2
    return np.einsum(
        "ij,jxyz->ixyz", axes_of(image, config), steps * np.reshape(config.dstRes, (3, 1, 1, 1))
    ) + centre.reshape(3, 1, 1, 1)


def sampled(array, indices):
    """Linear interpolation; half a voxel beyond the outer centres still belongs to the image."""
    sides = np.reshape(array.shape, (3, 1, 1, 1))
    inside = ((indices >= -0.5) & (indices < sides - 0.5)).all(axis=0)
    return np.where(inside, ndimage.map_coordinates(array, indices, order=1, mode="nearest"), 0)


def image_indices(image, points):
    """Continuous voxel indices (x, y, z) of physical points."""
    offset = points - np.reshape(image.GetOrigin(), (3, 1, 1, 1))
    direction = np.reshape(image.GetDirection(), (3, 3))
    along = np.einsum("ji,jxyz->ixyz", direction, offset)
    return along / np.reshape(image.GetSpacing(), (3, 1, 1, 1))


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
    middle = [(side - 1) / 2 for side in image.GetSize()]
    centre = [(side - 1) / 2 for side in config.VolSize]
    np.testing.assert_allclose(
        grid.TransformContinuousIndexToPhysicalPoint(centre),
        image.TransformContinuousIndexToPhysicalPoint(middle),
        atol=1e-9,
    )


def test_image_is_sampled_where_it_lies(gridded):
    image, config = gridded
    array = sitk.GetArrayFromImage(image).T.astype(np.float64)
    unit = (array - array.min()) / np.ptp(array)
    expected = sampled(unit, image_indices(image, grid_points(image, config)))
    positive = expected[expected > 0]
    expected = (expected - positive.mean()) / positive.std()
    volume = image_to_network_grid(image, config)
    assert volume.shape == tuple(config.VolSize) and volume.dtype == np.float32
    np.testing.assert_allclose(volume, expected, atol=2e-4)


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
    values *= np.exp(-np.arange(32) / 8)[:, None]  # a coil
    config = small_config("VolSize=48,32,16", "dstRes=1,1.5,3", "intensity=equalize")
    found = intensity_on_network_grid(make_image(values, spacing_mm), config)
    logarithm = np.log((values - values.min()) / np.ptp(values) + 0.01)
    mean = ndimage.gaussian_filter(logarithm, 20 / spacing_mm[::-1], mode="nearest", truncate=6)
    ranks = stats.rankdata(logarithm - mean).reshape(values.shape) / values.size
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, ranks.T, atol=0.02)
    assert np.abs(found - ranks.T).mean() < 2e-3


def test_an_equalized_image_has_lost_its_coils_field(make_image):
    rng = np.random.default_rng(0)
    anatomy = ndimage.gaussian_filter(rng.normal(size=(16, 64, 64)), 2)
    anatomy = np.exp(anatomy / anatomy.std() / 3)
    field = np.exp(-np.arange(64) / 28)[:, None]  # falls to a tenth over 64 mm
    plain, coil = (equalized(make_image(v.astype("f4"))) for v in (anatomy, anatomy * field))
    plain, coil = (sitk.GetArrayFromImage(image) for image in (plain, coil))
    assert np.corrcoef(plain.ravel(), coil.ravel())[0, 1] > 0.9
    assert np.corrcoef(anatomy.ravel(), (anatomy * field).ravel())[0, 1] < 0.6


@pytest.mark.parametrize("shape", [(8, 16, 20), (1, 16, 20), (2, 3, 20)])
def test_an_equalized_image_keeps_padding_and_geometry(make_image, oblique, shape):
    values = np.random.default_rng(0).uniform(7, 300, shape).astype(np.float32)
    values[..., 10:] = -1
    image = make_image(values, (0.5, 0.6, 3), direction=oblique)
    found = equalized(image)
    for get in GEOMETRY:
        assert getattr(found, get)() == getattr(image, get)()
    array = sitk.GetArrayFromImage(found)
    assert not array[..., 10:].any() and array.max() == 1
    assert array[..., :10].mean() == pytest.approx(0.5, abs=0.01)  # shares of those alone
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values)  # the user's stays


@pytest.mark.parametrize("padding", [((0, 0), (0, 0), (9, 20)), ((1, 0), (0, 0), (0, 0))])
def test_padding_hardly_changes_the_equalized_tissue(make_image, padding):
    values = 100 + np.random.default_rng(0).gamma(9, 30, (12, 40, 40)).astype(np.float32)
    spacing_mm = (1, 1, 3)
    plain = equalized(make_image(values, spacing_mm))
    padded = equalized(make_image(np.pad(values, padding), spacing_mm))
    tissue = sitk.GetArrayFromImage(padded)[np.pad(values, padding) > 0]
    difference = np.abs(tissue - sitk.GetArrayFromImage(plain).ravel())
    assert difference.mean() < 0.01


def test_equalizing_forgets_the_scanners_scale(make_image):
    values = np.random.default_rng(0).gamma(2, 100, (16, 32, 48)).astype(np.float32)
    first, second = (
        sitk.GetArrayFromImage(equalized(make_image(array))) for array in (values, 3 * values - 500)
    )
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_an_image_of_one_value_equalizes_to_zeros(make_image):
    image = make_image(np.full((4, 5, 6), 3, np.float32))
    assert not sitk.GetArrayFromImage(equalized(image)).any()


def test_mask_is_sampled_linearly_and_cut_at_one_half(gridded):
    image, config = gridded
    array = sitk.GetArrayFromImage(image).T > 2**14
    mask = sitk.Cast(image > 2**14, sitk.sitkUInt8)
    expected = sampled(array.astype(np.float64), image_indices(image, grid_points(image, config)))
    found = mask_to_network_grid(mask, config)
    assert found.dtype == bool and found.any() and not found.all()
    clear = np.abs(expected - 0.5) > 1e-5
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found[clear], expected[clear] > 0.5)


def test_probability_comes_back_to_where_it_was(gridded):
    image, config = gridded
    noise = np.random.default_rng(1).random(config.VolSize)
    probability = ndimage.gaussian_filter(noise, 1).astype(np.float32)
    points = np.indices(image.GetSize()) * np.reshape(image.GetSpacing(), (3, 1, 1, 1))
    points = np.einsum("ij,jxyz->ixyz", np.reshape(image.GetDirection(), (3, 3)), points)
    points = points + np.reshape(image.GetOrigin(), (3, 1, 1, 1))
    axes, origin = axes_of(image, config), grid_points(image, config)[:, 0, 0, 0]
    along = np.einsum("ji,jxyz->ixyz", axes, points - origin.reshape(3, 1, 1, 1))
    expected = sampled(probability, along / np.reshape(config.dstRes, (3, 1, 1, 1)))
    found = probability_to_case_grid(probability, image, config)
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


def test_an_image_dark_on_the_whole_grid_gives_zeros(make_image, small_config):
    values = np.zeros((9, 40, 40), np.float32)
    values[0, 0, 0] = 1000  # far from the centre
    volume = image_to_network_grid(make_image(values), small_config("dstRes=0.5,0.5,0.5"))
    assert not volume.any()


@pytest.mark.parametrize(
    ("direction", "axis"),
    [
        (np.eye(3), 0),  # axial: x runs to the left
        (np.diag([-1, -1, 1]), 0),
        ([[0, 0, 1], [1, 0, 0], [0, -1, 0]], 2),  # sagittal
        ([[1, 0, 0], [0, 0, 1], [0, -1, 0]], 0),  # coronal
        ([[0.6, 0.8, 0], [-0.8, 0.6, 0], [0, 0, 1]], 1),
    ],
)
def test_left_right_is_the_patients(make_image, direction, axis):
    image = make_image(np.zeros((3, 4, 5), np.float32), direction=np.array(direction, float))
    assert left_right_axis(image) == axis


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

    def counted(case):
        seen.append(case.case_id)
        return read_case(case)

    monkeypatch.setattr(data_manager, "read_case", counted)
    return seen


def assert_same(volumes, others):
    for volume, other in zip(volumes, others, strict=True):
        for array, other_array in zip(volume, other, strict=True):
            np.testing.assert_array_equal(array, other_array)
        assert (volume.intensity.dtype, volume.mask.dtype) == (np.float32, bool)
        assert type(volume.left_right_axis) is int


@pytest.mark.parametrize("workers", [1, 2])
def test_training_volumes_come_in_the_order_of_the_cases(cases, small_config, workers):
    config = small_config(f"num_workers={workers}")
    volumes = load_training_volumes(cases, config)
    for case, (intensity, mask, axis) in zip(cases, volumes, strict=True):
        image, reference = read_case(case)
        np.testing.assert_array_equal(z_scored(intensity), image_to_network_grid(image, config))
        np.testing.assert_array_equal(mask, mask_to_network_grid(reference, config))
        assert intensity.min() >= 0 and 0.9 < intensity.max() <= 1 and mask.any()
        assert axis == left_right_axis(network_grid(image, config))


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


def test_a_gland_partly_outside_the_network_grid_is_said(
    tmp_path, make_image, small_config, capsys
):
    values = np.random.default_rng(0).integers(0, 900, (12, 60, 60)).astype(np.int16)
    mask = np.zeros((12, 60, 60), np.uint8)
    mask[4:8, 25:35, :34] = 1  # the grid holds x from 14 to 45
    for name, array in (("img/Case0.mha", values), ("gt/Case0_segmentation.mha", mask)):
        write_volume(make_image(array), tmp_path / name)
    load_training_volumes(find_cases(tmp_path, ["Case0"]), small_config())
    said = capsys.readouterr().out
    share = int(re.search(r"only (\d+)% of the prostate", said)[1])
    assert share == pytest.approx(100 * 20 / 34, abs=1)


def test_a_case_without_a_prostate_is_trained_on_with_a_word(
    tmp_path, make_image, small_config, capsys
):
    values = np.random.default_rng(0).integers(0, 900, (12, 20, 20)).astype(np.int16)
    write_volume(make_image(values), tmp_path / "img/Case0.mha")
    write_volume(
        make_image(np.zeros_like(values, np.uint8)), tmp_path / "gt/Case0_segmentation.mha"
    )
    (volume,) = load_training_volumes(find_cases(tmp_path, ["Case0"]), small_config())
    assert not volume.mask.any() and volume.intensity.any()
    assert "Case0_segmentation.mha: empty" in capsys.readouterr().out


# Writing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_written_has_the_images_geometry(tmp_path, make_image, oblique, suffix, dtype):
    values = np.random.default_rng(0).random((5, 6, 7)) * (255 if dtype == np.uint8 else 1)
    geometry = (0.273456789012345, 0.61234567891234, 3.6000000001), (-101.123456789, 1 / 3, 1e-3)
    image = make_image(values.astype(dtype), *geometry, oblique)
    path = tmp_path / "new" / f"scan{suffix}"
    write_volume(image, path)
    written = sitk.ReadImage(str(path))
    assert written.GetPixelID() == image.GetPixelID()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), values.astype(dtype))
    assert geometry_error(image, written) <= TOLERANCE[suffix]
    expected = {"scan.mhd", "scan.zraw"} if suffix == ".mhd" else {f"scan{suffix}"}
    assert {file.name for file in path.parent.iterdir()} == expected
    read_image(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_earlier_file_is_replaced(tmp_path, make_image, suffix):
    path = tmp_path / f"scan{suffix}"
    for value in (1, 2):
        write_volume(make_image(np.full((3, 4, 5), value, np.uint8)), path)
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) == 2).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size_bytes", [0, 300, 20000])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path, make_image, full_disk, suffix, size_bytes
):
    path = tmp_path / f"scan{suffix}"
    write_volume(make_image(np.ones((3, 4, 5), np.uint8)), path)
    before = tree(tmp_path)
    noise = np.random.default_rng(0).random((20, 30, 40)).astype(np.float32)
    with full_disk(size_bytes), pytest.raises(DataError) as error:
        write_volume(make_image(noise), path)
    message = str(error.value)
    assert message.startswith(f"{path}: cannot be written (") and "\n" not in message
    assert tree(tmp_path) == before
    assert [file for file in tmp_path.rglob("*") if file.is_dir()] == []


@pytest.mark.parametrize("place", ["file/scan.mhd", "file/below/scan.nii.gz"])
def test_a_folder_that_cannot_be_written(tmp_path, make_image, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError) as error:
        write_volume(make_image(np.ones((3, 4, 5), np.uint8)), tmp_path / place)
    assert str(error.value).startswith(f"{tmp_path / place}: cannot be written (")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path, make_image):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="Permission denied"):
        write_volume(make_image(np.ones((3, 4, 5), np.uint8)), tmp_path / "scan.mhd")
    assert list(tmp_path.iterdir()) == []
