"""Files in every state: read right, or refused in one line."""

import gzip
import os
import re
import struct
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from src.data_manager import xyz
from src.images.formats import SUFFIXES
from src.images.reading import foreground, read_image, read_label_map, read_mask, read_volume
from src.utils.errors import DataError
from tests.helpers import cut, flip_middle, replaced
from tests.volumes import TOLERANCE, geometry_error


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
BROKEN_VOXELS = [
    (".mhd", False, cut(1), "scan.raw", "truncated, 419 bytes of 420"),
    (".mhd", False, lambda _: b"", "scan.raw", "truncated, 0 bytes of 420"),
    (".mhd", True, cut(1), "scan.zraw", "truncated or damaged"),
    (".mhd", True, flip_middle, "scan.zraw", "truncated or damaged"),
    (".mhd", True, lambda _: zlib.compress(b"1" * 419), "scan.zraw", "data has 14 bytes"),
    (".mha", False, cut(1), "scan.mha", "truncated, 419 bytes of 420"),
    (".mha", False, cut(500), "scan.mha", "header cannot be read"),
    (".mha", True, cut(1), "scan.mha", "truncated or damaged"),
    (".mha", True, flip_middle, "scan.mha", "truncated or damaged"),
    (".nii", False, cut(1), "scan.nii", "truncated, 771 bytes of 772"),
    (".nii", False, cut(352), "scan.nii", "truncated, 420 bytes of 772"),
    (".nii.gz", True, cut(1), "scan.nii.gz", "gzip data is damaged"),
    (".nii.gz", True, flip_middle, "scan.nii.gz", ""),
    (".nii.gz", True, lambda content: gzip.compress(gzip.decompress(content)[:-1]), "scan.nii.gz",
     "truncated, 771 bytes of 772"),
    (".nrrd", False, cut(1), "scan.nrrd", "truncated, 419 bytes of 420"),
    (".nrrd", True, cut(20), "scan.nrrd", "truncated or damaged"),
]  # fmt: skip
BROKEN_HEADERS = [
    *[
        (suffix, lambda _, content=content: content, "header cannot be read|no NIfTI file")
        for suffix in SUFFIXES
        for content in (b"", b"garbage\n" * 99)
    ],
    (".mhd", replaced(b"DimSize = 7", b"DimSize = x"), "expected 3 number(s); repair it"),
    (".mhd", replaced(b"NDims = 3", b"NDims = 2"), "DimSize = 7 6 5; repair its header"),
    (".mhd", replaced(b"DimSize = 7", b"DimSize = 0"), "scalar volume; get the file again"),
    (".mhd", replaced(b"MET_SHORT", b"MET_STRANGE"), "save it again as one of them"),
    (".mhd", replaced(b"ElementDataFile = scan.raw", b""), "header cannot be read|ElementDataFile"),
    (".mhd", replaced(b"scan.raw", b"LIST"), "several files"),
    (".mhd", replaced(b"scan.raw", b"LIST\na.raw\nb.raw\n"), "several files, expected one; save"),
    (".mhd", replaced(b"scan.raw", b"scan%02d.raw 1 5 1"), "several files"),
    (".mhd", replaced(b"ElementSpacing = 1.25", b"ElementSpacing = 0"), "impossible geometry"),
    (".mhd", replaced(b"Matrix = 1 0 0 0 1 0", b"Matrix = 1 0 0 1 0 0"), "impossible geometry"),
    (".nii", lambda content: content[:292] + struct.pack("<f", np.nan) + content[296:],
     "corners at (nan"),
    (".mhd", replaced(b"CompressedData = False", b"CompressedData = True"), "damaged"),
    (".mhd", replaced(b"BinaryData = True", b"BinaryData = False"), "voxels are text"),
    (".mhd", replaced(b"BinaryData = True", b"BinaryData = yes"), "expected True or False; repair"),
    (".mhd", replaced(b"Offset", b"ElementByteOrderMSB = True\nOffset"), "contradict each other"),
    (".mhd", replaced(b"Offset", b"ElementSpacing = 1 1 1\nOffset"), "ElementSpacing twice"),
    (".mhd", lambda content: content + b"Offset = 1 2 3\n", "Offset after ElementDataFile"),
    (".mhd", replaced(b"Offset", b"DistanceUnits = cm\nOffset"), "= cm, expected mm; save"),
    *[
        (".mhd", replaced(key, other), f"expected {key.decode()}; repair it")
        for key in (b"TransformMatrix", b"Offset", b"BinaryDataByteOrderMSB")
        for other in (key.upper(), key.lower(), key[:-1])
    ],
    (".mha", replaced(b"Offset", b"HeaderSize = 6\nOffset"), "HeaderSize = 6, expected none with"),
    (".mhd", replaced(b"Offset", b"HeaderSize = -2\nOffset"), "HeaderSize = -2, expected 0 or"),
    (".mhd", lambda content: replaced(b"= RAI", b"= ASL")(
        replaced(b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b"")(content)
    ), "= ASL, but no TransformMatrix"),
    (".mhd", replaced(b"Offset", b"ImagePosition = 1 2 3\nOffset"), "ImagePosition and Offset in"),
    (".mhd", replaced(b"scan.raw", b"scan." + b"a" * 300), "File name too long"),
    (".mhd", replaced(b"NDims = 3\n", b""), "has no NDims"),
    (".mha", lambda content: b"DimSize = 7 6 5\n" + content.replace(b"DimSize = 7 6 5\n", b""),
     "DimSize before NDims"),
    (".mha", replaced(b"ElementSpacing = 1.25", b"ElementSpacing = 1e-4"), "voxels of 0.0001"),
    (".mha", replaced(b"ElementSpacing = 1.25", b"ElementSpacing = 125"), "voxels of 125"),
    (".mha", replaced(b"Offset = ", b"Offset = 1e6 0 0\nName = "), "origin at"),
    (".nrrd", replaced(b"encoding: raw", b"encoding: bzip2"), "encoding bzip2, expected gzip"),
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
    assert refusal(path).startswith(f"{path}: ElementDataFile {name} is not in the header's folder")


HARMLESS = [
    (".mhd", lambda content: content.replace(b"True", b"true").replace(b"False", b"FALSE")),
    (".mhd", lambda content: content.replace(b"True", b"1").replace(b"False", b"0")),
    (".mhd", lambda content: content.replace(b"\n", b"\r\n") + b"\r\n"),
    # MetaIO's own, though they look like misspelt ones
    (
        ".mhd",
        replaced(
            b"Offset", b"comment = Off\nElementMin = 0\nElementMax = 9\nObjectSubType = x\nOffset"
        ),
    ),
    (".mhd", replaced(b"Offset", b"DistanceUnits = mm\nTransformType = Rigid\nOffset")),
    (".nrrd", replaced(b"encoding: ", b"byte skip: 0\nline skip: 0\nencoding: ")),
    (".nrrd", replaced(b"encoding: ", b"Segment0_Tags:=A: b~C^D|\nencoding: ")),
]


@pytest.mark.parametrize("suffix, change", HARMLESS)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_as_others_write_them(tmp_path, make_image, suffix, change, packed):
    path = stored_scan(tmp_path, make_image, suffix, packed)
    stored = read_image(path)
    path.write_bytes(change(path.read_bytes()))
    found = read_image(path)
    assert geometry_error(found, stored) == 0
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(stored))


def with_axis_of(kind, content, components):
    """An NRRD of axes x, y, z with one for components before them."""
    content = content.replace(b"dimension: 3", b"dimension: 4")
    content = content.replace(b"sizes: ", f"sizes: {components} ".encode())
    content = content.replace(b"space directions: ", b"space directions: none ")
    head, _, voxels = content.replace(b"kinds: ", f"kinds: {kind} ".encode()).partition(b"\n\n")
    values = np.repeat(np.frombuffer(voxels, np.int16), components)
    return head + b"\n\n" + values.tobytes()


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("kind", ["list", "vector"])
def test_components_of_an_nrrd(tmp_path, make_image, kind, components):
    """3D Slicer writes segmentations so; of one component they are scalar."""
    path = stored_scan(tmp_path, make_image, ".nrrd")
    stored = read_image(path)
    path.write_bytes(with_axis_of(kind, path.read_bytes(), components))
    found = read_image(path, components - 1 or None)
    assert geometry_error(found, stored) == 0
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(stored))


@pytest.mark.parametrize("encoding, joint", [("ascii", " "), ("text", "\n"), ("hex", "")])
def test_text_of_an_nrrd(tmp_path, make_image, encoding, joint):
    """As long as the header says; SimpleITK passes over more, and takes memory before it looks."""
    path = stored_scan(tmp_path, make_image, ".nrrd")
    stored = read_image(path)
    head, _, voxels = path.read_bytes().partition(b"\n\n")
    head = head.replace(b"encoding: raw", f"encoding: {encoding}".encode()) + b"\n\n"
    values = np.frombuffer(voxels, np.int16)
    texts = [v.tobytes().hex() if encoding == "hex" else str(v) for v in values]
    path.write_bytes(head + joint.join(texts).encode() + b"\n")
    found = read_image(path)
    assert geometry_error(found, stored) == 0
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(stored))
    for some, words in ((texts[:-1], "418 bytes of 420"), ([*texts, texts[0]], "header says 420")):
        path.write_bytes(head + joint.join(some).encode() + b"\n")
        assert words in refusal(path)


def test_an_nrrd_over_time(tmp_path, make_image):
    path = stored_scan(tmp_path, make_image, ".nrrd")
    path.write_bytes(with_axis_of("time", path.read_bytes(), 2))
    assert "is of kind time, expected list or vector" in refusal(path)


def test_missing_files(tmp_path, make_image):
    path = stored_scan(tmp_path, make_image, ".mhd")
    (tmp_path / "scan.raw").unlink()
    assert refusal(path) == f"{path}: its data file scan.raw is missing; copy it beside the header"
    assert refusal(tmp_path / "gone.mhd") == f"{tmp_path / 'gone.mhd'}: no such file"
    (tmp_path / "scan.tif").touch()
    os.mkfifo(tmp_path / "pipe.mha")
    assert "neither a file nor a folder" in refusal(tmp_path / "pipe.mha")
    assert ".mhd, .mha, .nii.gz, .nii, .nrrd" in refusal(tmp_path / "scan.tif")


@pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nrrd"])  # NIfTI: test_nifti.py
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
    if suffix == ".nrrd" and kind != "vector":  # ITK writes these without the patient's axes
        size, expected = "", "no patient directions"
    else:
        remedy = "; stack its slices" if kind == "2-D" else "; choose one of its"
        size, expected = f"size {size}", f"expected a 3-D scalar volume{remedy}"
    assert message.startswith(f"{path}: {size}") and expected in message


@pytest.mark.parametrize("suffix", (".mha", ".mhd", ".nrrd"))
@pytest.mark.parametrize("kind", ["4-D", "vector"])
def test_a_channel_of_several_volumes(tmp_path, make_image, oblique, suffix, kind):
    volumes = [
        make_image(np.random.default_rng(i).random((3, 4, 5)).astype(np.float32), direction=oblique)
        for i in range(2)
    ]
    path = tmp_path / f"scan{suffix}"
    join = sitk.JoinSeries if kind == "4-D" else sitk.Compose
    sitk.WriteImage(join(volumes), str(path))
    if (suffix, kind) == (".nrrd", "4-D"):  # ITK gives a 4-D NRRD no patient space
        with pytest.raises(DataError, match="no patient directions"):
            read_volume(path, 0)
        return
    for channel, volume in enumerate(volumes):
        found = read_volume(path, channel)
        assert geometry_error(found, volume) <= TOLERANCE[suffix]
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(volume))
    for channel in (None, 2, -1):
        with pytest.raises(DataError, match="2 volumes.*--channel 0 to 1"):
            read_volume(path, channel)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_one_volume_has_no_other_channel_nor_a_series(tmp_path, make_image, suffix):
    path = stored_scan(tmp_path, make_image, suffix)
    for channel in (None, 0):
        assert read_volume(path, channel).GetSize() == (7, 6, 5)
    with pytest.raises(DataError, match="channel 1 .*, but it has 1 volume"):
        read_volume(path, 1)
    with pytest.raises(DataError, match="not DICOM, so it has no series 5"):
        read_volume(path, series="5")


# Header entry of a good NRRD, what stands there instead, and how x, y, z then run in LPS.
SPACES = [
    ("left-posterior-superior", (1, 1, 1)),
    ("right-anterior-superior", (-1, -1, 1)),
    ("left-anterior-superior", (1, -1, 1)),
    ("LPS", (1, 1, 1)),
    ("RAS", (-1, -1, 1)),
    ("scanner-xyz", None),
    ("3D-right-handed", None),
]


@pytest.mark.parametrize("space, signs", SPACES)
def test_the_patients_axes_of_an_nrrd(tmp_path, make_image, space, signs):
    path = stored_scan(tmp_path, make_image, ".nrrd")
    stored = read_volume(path)
    name = b"space: left-posterior-superior"
    path.write_bytes(replaced(name, f"space: {space}".encode())(path.read_bytes()))
    if signs is None:
        assert f"no patient directions in its header (space: {space})" in refusal(path)
        return
    found = read_volume(path)
    np.testing.assert_allclose(found.GetOrigin(), np.multiply(stored.GetOrigin(), signs))
    np.testing.assert_allclose(found.GetDirection(), np.diag(signs).ravel())


def test_an_nrrd_in_other_units(tmp_path, make_image):
    path = stored_scan(tmp_path, make_image, ".nrrd")
    for units, fine in ((b'"mm" "mm" "mm"', True), (b'"cm" "cm" "cm"', False)):
        content = path.read_bytes()
        line = b"kinds: domain"
        path.write_bytes(replaced(line, b"space units: " + units + b"\n" + line)(content))
        if fine:
            read_image(path)
        else:
            assert "space units cm, expected mm; save it again in mm" in refusal(path)
        path.write_bytes(content)


@pytest.mark.parametrize("suffix", (".mha", ".mhd"))
def test_the_size_of_compressed_data(tmp_path, make_image, suffix):
    """Where it is wrong SimpleITK gives voxels that nobody has written, and says nothing."""
    path = stored_scan(tmp_path, make_image, suffix, True)
    stored = sitk.GetArrayFromImage(read_image(path))
    content = path.read_bytes()
    line = re.search(rb"CompressedDataSize = (\d+)\n", content)
    size = int(line[1])
    for other in (size // 2, size - 1, size + 1, -1):
        wrong = b"CompressedDataSize = %d\n" % other
        path.write_bytes(content.replace(line[0], wrong))
        assert f"CompressedDataSize {other}, its compressed data has {size}" in refusal(path)
    for unknown in (b"", b"CompressedDataSize = 0\n"):
        path.write_bytes(content.replace(line[0], unknown))
        if suffix == ".mhd":  # all of the file
            np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(path)), stored)
        else:
            assert "CompressedDataSize missing" in refusal(path)


@pytest.mark.parametrize("suffix", (".mha", ".nrrd", ".mhd"))
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_of_fewer_slices_than_there_are(tmp_path, make_image, suffix, packed):
    """As of another file; SimpleITK reads the first slices and says nothing."""
    path = stored_scan(tmp_path, make_image, suffix, packed)
    content = path.read_bytes()
    for old, new in ((b"DimSize = 7 6 5", b"DimSize = 7 6 4"), (b"sizes: 7 6 5", b"sizes: 7 6 4")):
        content = content.replace(old, new)
    path.write_bytes(content)
    message = refusal(path)
    assert "420 bytes" in message and "336" in message


# A direction matrix, row by row, of a .mha, and whether it is one.
MATRICES = [
    ("0.8 0.6 0 -0.6 0.8 0 0 0 1", True),
    ("0.801 0.599 0 -0.599 0.801 0 0 0 1", True),  # rounded
    ("1 0 0 0 1 0 0 0.005 1", True),
    ("1 0 0 0 1 0 0 0.05 1", False),  # sheared by 3 degrees
    ("2 0 0 0 2 0 0 0 2", False),
]


@pytest.mark.parametrize("matrix, fine", MATRICES)
def test_sheared_axes_are_refused(tmp_path, make_image, matrix, fine):
    path = stored_scan(tmp_path, make_image, ".mha")
    unit = b"TransformMatrix = 1 0 0 0 1 0 0 0 1"
    path.write_bytes(replaced(unit, f"TransformMatrix = {matrix}".encode())(path.read_bytes()))
    if fine:
        read_image(path)
    else:
        assert "not perpendicular unit vectors" in refusal(path)


def test_compressed_voxels_behind_a_header_need_their_size(tmp_path, make_image):
    """MetaIO would decompress from the wrong place and return the memory of another image."""
    path = stored_scan(tmp_path, make_image, ".mhd", packed=True)
    voxels = path.with_suffix(".zraw")
    voxels.write_bytes(b"4321" + voxels.read_bytes())
    text = path.read_text()
    (size,) = re.findall("CompressedDataSize = .*\n", text)
    path.write_text(text.replace(size, "HeaderSize = 4\n"))
    assert "CompressedDataSize missing" in refusal(path)
    path.write_text(text.replace(size, "HeaderSize = -1\n"))
    assert "HeaderSize = -1, expected 0 or more" in refusal(path)


@pytest.mark.parametrize("suffix", [".MHA", ".MHD", ".NRRD"])
def test_a_header_of_many_lines_and_a_suffix_in_capitals_are_read(tmp_path, make_image, suffix):
    """ITK writes the attributes of a DICOM file so."""
    image = make_image(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    path = tmp_path / f"a{suffix.lower()}"
    sitk.WriteImage(image, str(path))
    if suffix != ".NRRD":
        further = b"".join(b"0008|%04x = x\n" % number for number in range(300))
        further += b"ImageOrientation = 1\nPatientOrientation = L\nOffset"
        path.write_bytes(replaced(b"Offset", further)(path.read_bytes()))
    path = path.rename(path.with_name(f"A{suffix}"))
    found = read_image(path)
    assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(image))
    assert geometry_error(found, image) == 0


def test_a_4th_axis_in_space_is_refused(tmp_path, make_image):
    image = sitk.JoinSeries([make_image(np.ones((3, 4, 5), np.int16))] * 2)
    image.SetDirection(np.eye(4)[[0, 1, 3, 2]].ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    with pytest.raises(DataError, match=r"a\.mha: its 4th axis lies in space"):
        read_image(tmp_path / "a.mha", channel=0)


def test_a_metaimage_without_directions_is_read_with_a_note(tmp_path, make_image, capsys):
    path = stored_scan(tmp_path, make_image, ".mhd")
    expected = read_image(path)
    assert capsys.readouterr().err == ""
    unit = b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    path.write_bytes(replaced(unit, b"")(path.read_bytes()))
    found = read_image(path)
    assert geometry_error(found, expected) == 0
    assert capsys.readouterr().err.startswith(f"note: {path}: no TransformMatrix in its header")


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


@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 1, 5), (3, 4, 1)])
def test_a_single_slice_is_no_volume(tmp_path, make_image, shape):
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    sitk.WriteImage(make_image(values), str(tmp_path / "scan.nii.gz"))
    assert "one slice only; expected a volume, give all of its" in refusal(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("value", [0, -7])
def test_images_of_one_value(tmp_path, make_image, value):
    sitk.WriteImage(make_image(np.full((3, 4, 5), value, np.int16)), str(tmp_path / "scan.mha"))
    assert refusal(tmp_path / "scan.mha").startswith(
        f"{tmp_path / 'scan.mha'}: every voxel is {value}, expected an MR image; get or"
    )


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz"])
@pytest.mark.parametrize(
    ("values", "is_label_map"),
    [
        ([0, 1], True),
        ([0, 255], True),
        ([1, 2, 7], True),
        ([0, 1 - 2**-24], True),  # as resampled masks are
        (range(16), True),
        (range(17), False),
        ([-1, 1], True),
        ([0, 0.5, 1], True),
    ],
)
def test_a_label_map_is_no_image(tmp_path, make_image, suffix, values, is_label_map):
    dtype = np.float32 if any(value % 1 for value in values) else np.int16
    array = np.resize(np.array(values, dtype), 6 * 8 * 9).reshape(6, 8, 9)
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(make_image(array), str(path))
    if is_label_map:
        with pytest.raises(DataError, match=r"only the values .*: looks like a label map, not an"):
            read_image(path)
    else:
        assert read_image(path).GetSize() == (9, 8, 6)


def test_a_small_structure_on_an_empty_ground_is_a_label_map(tmp_path, make_image):
    """Of which a sample of voxels may see nothing; and one bright voxel makes no image of it."""
    array = np.zeros((30, 40, 50), np.uint8)
    array[15, 20, 20:24] = 3
    sitk.WriteImage(make_image(array), str(tmp_path / "a.nrrd"))
    with pytest.raises(DataError, match=r"only the values 0, 3: looks like a label map"):
        read_image(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("kind", "is_label_map"),
    [
        ("organs", True),
        ("8 bits", False),
        ("repeated in the plane", False),
        ("repeated along all axes", False),
        ("padded", False),
        ("saturated", False),
        ("few grey values", False),
    ],
)
def test_a_label_map_of_many_organs_is_no_image(tmp_path, make_image, kind, is_label_map):
    organs = np.arange(27).reshape(3, 3, 3).repeat(6, 0).repeat(8, 1).repeat(8, 2)
    scan = (organs * 6 + np.random.default_rng(0).normal(0, 20, organs.shape)).clip(0, 255)
    small = scan[::3, ::4, ::4]
    array = {
        "organs": organs,
        "8 bits": scan,
        "repeated in the plane": scan.repeat(8, 1).repeat(8, 2),
        "repeated along all axes": small.repeat(4, 0).repeat(4, 1).repeat(4, 2),
        "padded": np.pad(scan, 20, constant_values=7),
        "saturated": scan.clip(60, 90),
        "few grey values": scan // 12,
    }[kind]
    sitk.WriteImage(make_image(array.astype(np.uint8)), str(tmp_path / "a.mha"))
    if is_label_map:
        assert "only the values 0, 1, 2, 3" in refusal(tmp_path / "a.mha")
    else:
        read_image(tmp_path / "a.mha")


# Masks -------------------------------------------------------------------------------------------


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
        (
            (4, 4, 5),
            {},
            "not on the grid of its image scan.mha: size (5, 4, 4), expected (5, 4, 3)",
        ),
        ((3, 5, 4), {}, "size (4, 5, 3), expected (5, 4, 3)"),
        ((3, 4, 5), {"origin": (0.05, 0, 0)}, "0.05 mm away: origin"),
        ((3, 4, 5), {"origin": (0, 0, 3.0)}, "3.00 mm away: origin"),
        ((3, 4, 5), {"spacing_mm": (0.6, 0.6, 3.7)}, "0.20 mm away: spacing"),
        ((3, 4, 5), {"direction": np.diag([1, -1, -1])}, "mm away"),
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
        ([0, 255], np.uint8, "such as --labels 255"),
        ([0, 1, 2], np.int16, "labels 0, 1, 2,"),
        ([-1, 0], np.int16, "labels -1, 0,"),
        ([0, 0.5, 1], np.float32, "values 0.5, expected whole numbers"),
        ([0, 1.0011, 1], np.float32, "values 1.00109994, expected whole numbers"),
        (range(30), np.uint8, "18, 19 and 10 more, expected only 0 and 1"),
        ([-1, 0], np.int16, "; write a mask with 1 for the prostate"),
        ([0, np.nan], np.float32, "voxels are NaN"),
        ([0, 1e30], np.float32, "values of 0 to 1e+30, expected labels; write a mask"),
        ([0, -(2**62)], np.int64, "values of -4.61169e+18 to 0, expected labels"),
    ],
)
def test_masks_with_foreign_labels(tmp_path, make_image, labels, dtype, words):
    image = make_image(np.zeros((3, 4, 5), np.float32))
    values = np.resize(np.array(labels, dtype), (3, 4, 5))
    path = written_mask(tmp_path, make_image, values)
    with pytest.raises(DataError) as error:
        read_mask(path, image, "scan.mha")
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)


@pytest.mark.parametrize(
    ("found", "labels", "proposed"),
    [
        ([0, 2], (), (2,)),
        ([0, 2, 3], (), (2, 3)),
        ([0, 1, 2], (), (1, 2)),
        ([0, 1, 7], (), (1, 7)),
        ([-1, 0, 1], (), (1,)),
        (range(30), (), (1, 2)),
        ([0, 2, 3], (1, 4), (2, 3)),
        ([5], (1,), (5,)),
    ],
)
def test_the_labels_that_a_message_proposes_can_be_used(
    tmp_path, make_image, found, labels, proposed
):
    image = make_image(np.zeros((3, 4, 5), np.float32))
    path = written_mask(tmp_path, make_image, np.resize(np.array(found, np.int16), (3, 4, 5)))
    with pytest.raises(DataError) as error:
        read_mask(path, image, "scan.mha", labels)
    assert str(error.value).endswith(f"such as --labels {','.join(map(str, proposed))}")
    assert sitk.GetArrayFromImage(read_mask(path, image, "scan.mha", proposed)).any()


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz"])
def test_a_mask_of_several_volumes(tmp_path, make_image, suffix):
    """--channel is for images, so the message does not name it."""
    image = make_image(np.zeros((3, 4, 5), np.float32))
    segments = [make_image(np.full((3, 4, 5), k, np.uint8)) for k in (0, 1)]
    path = tmp_path / f"mask{suffix}"
    sitk.WriteImage(sitk.JoinSeries(segments), str(path))
    with pytest.raises(DataError, match="several volumes, expected a mask of one") as error:
        read_mask(path, image, "scan.mha")
    assert str(error.value).startswith(f"{path}: ") and "--channel" not in str(error.value)


@pytest.mark.parametrize("order", ["LPS", "RAS", "LAI", "PIR", "SLA", "ASR"])
@pytest.mark.parametrize("of_image", ["LPS", "RAS", "IPL"])
def test_a_mask_stored_in_another_order(tmp_path, make_image, oblique, of_image, order):
    """ITK's own reordering is the oracle; the mask comes back in the image's order, unchanged."""
    values = np.random.default_rng(0).integers(0, 2, (3, 4, 5)).astype(np.uint8)
    kept = make_image(values, (0.5, 0.6, 3.6), (-20, 30, 9), oblique)
    image = sitk.DICOMOrient(kept, of_image)
    path = tmp_path / "mask.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(kept, order), str(path))
    found = read_mask(path, image, "scan.mha")
    assert geometry_error(found, image) == 0
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("above", [1 - 2**-24, 1.0009, 0.9991])
@pytest.mark.parametrize("below", [0, 0.0009, -0.0009])
def test_a_mask_of_nearly_0_and_1_is_one_of_0_and_1(tmp_path, make_image, above, below):
    image = make_image(np.zeros((3, 4, 5), np.float32))
    gland = np.zeros((3, 4, 5), bool)
    gland[1, 1:3, 2:4] = True
    path = written_mask(tmp_path, make_image, np.where(gland, above, below).astype(np.float32))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_mask(path, image, "a.mha")), gland)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, np.uint32])
@pytest.mark.parametrize("labels", [(1,), (2,), (1, 2), [3, 1], (1, 2, 3)])
def test_labels_become_the_foreground(tmp_path, make_image, dtype, labels):
    image = make_image(np.zeros((3, 4, 5), np.float32))
    values = np.random.default_rng(0).integers(0, 4, (3, 4, 5))
    path = written_mask(tmp_path, make_image, values.astype(dtype))
    expected = sum(values == label for label in labels)
    found = sitk.GetArrayFromImage(read_mask(path, image, "scan.mha", labels))
    np.testing.assert_array_equal(found, expected)


def test_labels_that_a_mask_has_none_of_are_refused(tmp_path, make_image):
    image = make_image(np.zeros((3, 4, 5), np.float32))
    path = written_mask(tmp_path, make_image, np.full((3, 4, 5), 4, np.uint8))
    with pytest.raises(
        DataError, match="labels 4, none of them among --labels 1,2; .* --labels 4$"
    ):
        read_mask(path, image, "scan.mha", (1, 2))
    lacking = foreground(read_label_map(path), path, (1, 2), may_lack=True)
    assert not sitk.GetArrayFromImage(lacking).any()
    empty = written_mask(tmp_path, make_image, np.zeros((3, 4, 5), np.uint8))
    assert not sitk.GetArrayFromImage(read_mask(empty, image, "scan.mha", (1, 2))).any()
