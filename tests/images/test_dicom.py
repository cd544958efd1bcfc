"""Series are made here, slice by slice, with a known geometry; pydicom's own files are others'."""

import contextlib
import locale
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from src.images.dicom import (
    choose_series,
    dicom_files,
    find_series,
    is_dicom,
    read_dicom,
    read_series,
)
from src.images.reading import read_volume
from src.utils.errors import DataError
from tests.volumes import geometry_error, geometry_of

MR, ENHANCED_MR, LEGACY_MR = (f"1.2.840.10008.5.1.4.1.1.4{end}" for end in ("", ".1", ".4"))
SLICES, ROWS, COLUMNS, STEP_MM = 6, 8, 10, 3.3
ORIGIN_MM = np.array([-40.5, 12.25, -71.0])
ROW_SPACING_MM, COLUMN_SPACING_MM = 0.7, 0.5


def rotation(degrees_x=0.0, degrees_y=0.0, degrees_z=0.0):
    """Columns: where x, y and z go."""
    (cx, cy, cz), (sx, sy, sz) = (
        f(np.radians([degrees_x, degrees_y, degrees_z])) for f in (np.cos, np.sin)
    )
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


AXIAL, OBLIQUE = rotation(), rotation(17.0, -9.0, 5.0)
CORONAL = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
SAGITTAL = np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]])


def pixels(k):
    """Of slice k: all different, so a flip or a swap shows."""
    return (1000 * k + np.arange(ROWS * COLUMNS)).reshape(ROWS, COLUMNS).astype(np.uint16)


def decimal(values):
    return [f"{value:.10g}"[:16] for value in np.ravel(values)]


def base(sop_class, uid, instance):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = instance
    ds.Modality, ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "MR", "p", "1.2.3", uid
    ds.SeriesNumber, ds.SamplesPerPixel, ds.PhotometricInterpretation = 5, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.Rows, ds.Columns = ROWS, COLUMNS
    return ds


def slice_of(k, direction=AXIAL, uid="1.2.3.5", instance=None, **tags):
    """Slice k of a T2 series; a tag of None is left out."""
    ds = base(MR, uid, instance or f"{uid}.{k + 1}")
    position = ORIGIN_MM + STEP_MM * k * direction[:, 2]
    values = {
        "SeriesDescription": "t2_tse_tra",
        "ImageType": ["ORIGINAL", "PRIMARY", "M"],
        "EchoTime": "101",
        "RepetitionTime": "4000",
        "InstanceNumber": 77 - 3 * k,  # neither in order nor without gaps
        "SliceThickness": "9",  # wrong, as is the next
        "SpacingBetweenSlices": "1",
        "ImagePositionPatient": decimal(position),
        "ImageOrientationPatient": decimal(direction[:, :2].T),
        "PixelSpacing": decimal([ROW_SPACING_MM, COLUMN_SPACING_MM]),
        "PixelData": pixels(k).tobytes(),
        **tags,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(ds, keyword, value)
        elif keyword in ds:
            delattr(ds, keyword)
    if "PixelData" in ds:
        ds["PixelData"].VR = "OW"
    return ds


def save(ds, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_series(folder, direction=AXIAL, skip=(), change=None, stem="", **tags):
    """A series of files; `change` {slice: tags} alters some. File order is not slice order."""
    for k in range(SLICES):
        if k not in skip:
            ds = slice_of(k, direction, **{**tags, **(change or {}).get(k, {})})
            save(ds, folder / f"{stem}{(k * 5) % 7}.dcm")
    return folder


def name_of(k):
    """The file of slice k in `write_series`."""
    return f"{(k * 5) % 7}.dcm"


def item(**tags):
    ds = Dataset()
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    return ds


def enhanced(direction=AXIAL, sop_class=ENHANCED_MR, order=range(SLICES), per_frame=None, **tags):
    """A multi-frame file; `per_frame` {frame: {sequence: item}} adds functional groups."""
    ds = base(sop_class, "1.2.3.6", "1.2.3.6.1")
    ds.SeriesDescription, ds.NumberOfFrames = "t2_tse_tra", len(order)
    measures = item(PixelSpacing=decimal([ROW_SPACING_MM, COLUMN_SPACING_MM]), SliceThickness="9")
    orientation = item(ImageOrientationPatient=decimal(direction[:, :2].T))
    ds.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[measures],
            PlaneOrientationSequence=[orientation],
            MREchoSequence=[item(EffectiveEchoTime=101.0)],
            MRTimingAndRelatedParametersSequence=[item(RepetitionTime="4000")],
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = []
    for frame, k in enumerate(order):
        position = decimal(ORIGIN_MM + STEP_MM * k * direction[:, 2])
        groups = {
            "PlanePositionSequence": item(ImagePositionPatient=position),
            "FrameContentSequence": item(StackID="1", InStackPositionNumber=SLICES - k),
            "PixelValueTransformationSequence": item(
                RescaleSlope="0.5", RescaleIntercept=str(10 * k), RescaleType="US"
            ),
            **(per_frame or {}).get(frame, {}),
        }
        ds.PerFrameFunctionalGroupsSequence.append(
            item(**{name: [group] for name, group in groups.items()})
        )
    ds.PixelData = b"".join(pixels(k).tobytes() for k in order)
    ds["PixelData"].VR = "OW"
    for keyword, value in tags.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def assert_geometry(image, direction, step_mm=STEP_MM):
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), direction, atol=1e-8)
    np.testing.assert_allclose(
        image.GetSpacing(), (COLUMN_SPACING_MM, ROW_SPACING_MM, step_mm), atol=1e-8
    )
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN_MM, atol=1e-8)


def refusal(path, series=""):
    """The message, which is one line."""
    with pytest.raises(DataError) as caught:
        read_dicom(path, series)
    message = str(caught.value)
    assert message and "\n" not in message and message.startswith(str(path))
    return message


def assert_says(message, *parts):
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


# --- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_slices_are_sorted_by_position(tmp_path, direction):
    image = read_dicom(write_series(tmp_path, direction))
    assert_geometry(image, direction)
    assert image.GetPixelID() == sitk.sitkFloat32
    expected = np.stack([pixels(k) for k in range(SLICES)])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)


@pytest.mark.parametrize("direction", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_geometry_is_gdcms(tmp_path, direction):
    """The files of an intact series through ITK's reader."""
    write_series(tmp_path, direction)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    theirs, ours = reader.Execute(), read_dicom(tmp_path)
    assert geometry_error(ours, theirs) < 1e-6
    np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (ours, theirs)))


def test_rescale_is_each_slices_own(tmp_path):
    change = {2: {"RescaleSlope": "0.25", "RescaleIntercept": "-7"}}
    values = sitk.GetArrayFromImage(read_dicom(write_series(tmp_path, change=change)))
    np.testing.assert_array_equal(values[2], pixels(2) * 0.25 - 7)
    np.testing.assert_array_equal(values[3], pixels(3))


def test_signed_values_and_padding_stay(tmp_path):
    stored = np.full((ROWS, COLUMNS), -32768, np.int16)
    tags = {"PixelRepresentation": 1, "PixelData": stored.tobytes(), "PixelPaddingValue": -32768}
    image = read_dicom(write_series(tmp_path, **tags))
    assert np.all(sitk.GetArrayFromImage(image) == -32768)


def with_bits(array, stored, signed=0, **tags):
    """The tags of slices with these values."""
    bits = {"BitsStored": stored, "HighBit": stored - 1, "PixelRepresentation": signed}
    return {**bits, "PixelData": array.tobytes(), **tags}


@pytest.mark.parametrize(
    ("value", "signed", "read", "told"),
    [
        (4095, 0, 4095, False),
        (0x1000, 0, 0, True),
        (0xF801, 0, 0x801, True),
        (2047, 1, 2047, False),
        (0xF800, 1, -2048, False),  # as 16-bit signed numbers are
        (0x0800, 1, -2048, False),  # the sign in bit 11 only
        (0xF7FF, 1, 0x7FF, True),
        (0x1800, 1, -2048, True),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_bits_above_bits_stored(tmp_path, capsys, value, signed, read, told, order):
    """Others take them as part of the value; by the standard they do not count."""
    array = pixels(0).astype(f"{order}u2")
    array[3, 4] = value
    ds = slice_of(0, **with_bits(array, 12, signed))
    ds.PixelData += b"\xff\xff"  # padding
    syntax = ExplicitVRLittleEndian if order == "<" else ExplicitVRBigEndian
    ds.file_meta.TransferSyntaxUID = syntax
    write_series(tmp_path, skip=(0,))
    little = order == "<"
    path = tmp_path / name_of(0)
    ds.save_as(path, implicit_vr=False, little_endian=little, enforce_file_format=True)
    assert sitk.GetArrayFromImage(read_dicom(tmp_path))[0, 3, 4] == read
    err = capsys.readouterr().err
    assert (f"bits of pixels above BitsStored 12, such as of {value}, are left" in err) == told


def test_bits_above_bits_stored_are_told_once_a_series(tmp_path, capsys):
    write_series(tmp_path, **with_bits(pixels(0) + np.uint16(0x1000), 12))
    read_dicom(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path}: {SLICES} file(s), such as ")


def test_an_overlay_in_the_unused_bits_is_no_intensity(tmp_path):
    array = pixels(0)
    array[3, 4] += 0x8000
    tags = with_bits(array, 12)
    ds = slice_of(0, **tags)
    ds.add_new((0x6000, 0x0100), "US", 16)
    ds.add_new((0x6000, 0x0102), "US", 15)
    write_series(tmp_path, skip=(0,))
    save(ds, tmp_path / name_of(0))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_dicom(tmp_path))[0], pixels(0))


@pytest.mark.parametrize("keyword", ["ImagesInAcquisition", "NumberOfSeriesRelatedInstances"])
def test_a_copy_without_its_last_slices_is_told(tmp_path, capsys, keyword):
    write_series(tmp_path / "whole", **{keyword: SLICES})
    read_dicom(tmp_path / "whole")
    assert capsys.readouterr().err == ""
    write_series(tmp_path / "cut", skip=(SLICES - 2, SLICES - 1), **{keyword: SLICES})
    read_dicom(tmp_path / "cut")
    assert capsys.readouterr().err == (
        f'warning: {tmp_path / "cut"}: series 5 "t2_tse_tra": {keyword} is {SLICES}, but '
        f"{SLICES - 2} slices are there; if some are missing, get them\n"
    )
    save(enhanced(**{keyword: SLICES + 1}), tmp_path / "frames.dcm")
    read_dicom(tmp_path / "frames.dcm")
    assert capsys.readouterr().err == ""


def test_every_second_slice_is_told(tmp_path, capsys):
    """Where both say so: SpacingBetweenSlices is another one in some files, too."""
    tags = {"SpacingBetweenSlices": "3.3"}
    numbers = {k: {"InstanceNumber": k + 1} for k in range(SLICES)}
    for skip, change, is_told in (((1, 3, 5), numbers, True), ((1, 3, 5), {}, False), ((), {}, 0)):
        folder = tmp_path / f"{len(skip)}{is_told}"
        read_dicom(write_series(folder, skip=skip, change=change, **tags))
        told = "steps of 6.6 mm, but SpacingBetweenSlices is 3.3 and InstanceNumber goes in steps"
        assert (told in capsys.readouterr().err) == is_told


def two_acquisitions(folder, thickness_mm="6.6", numbers=(0, 3, 1, 4, 2, 5)):
    """Slices of two acquisitions in turn, which InstanceNumber counts one after the other."""
    tags = {k: {"AcquisitionNumber": k % 2 + 1, "InstanceNumber": numbers[k]} for k in range(6)}
    return write_series(folder, change=tags, SliceThickness=thickness_mm)


@pytest.mark.parametrize(
    "tags", [{"thickness_mm": "3.3"}, {"thickness_mm": None}, {"numbers": range(6)}]
)
def test_one_volume_acquired_in_turns_is_read(tmp_path, tags):
    assert_geometry(read_dicom(two_acquisitions(tmp_path, **tags)), AXIAL)


def test_slices_that_lack_a_frame_of_reference_are_of_the_others(tmp_path):
    change = {k: {"FrameOfReferenceUID": "1.2"} for k in (0, 2)}
    assert_geometry(read_dicom(write_series(tmp_path, change=change)), AXIAL)


def test_series_of_several_patients_are_not_taken_for_one(tmp_path):
    """One of them alone could be an axial T2, the other one a diffusion series."""
    write_series(tmp_path, stem="a", uid="1.2.3.5")
    tags = {"SeriesDescription": "ep2d_diff", "PatientID": "q", "SeriesNumber": 6}
    write_series(tmp_path, stem="b", uid="1.2.3.6", **tags)
    listed = ['5 "t2_tse_tra"', '6 "ep2d_diff"', "a folder of their own", "--series"]
    assert_says(refusal(tmp_path), "series of 2 patients (PatientID)", *listed)
    assert_geometry(read_dicom(tmp_path, "5"), AXIAL)
    for path in tmp_path.glob("b*"):
        path.unlink()
    write_series(tmp_path, stem="b", uid="1.2.3.6", **{**tags, "PatientID": ""})
    assert_geometry(read_dicom(tmp_path), AXIAL)  # removed from some series only


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
    ],
    ids=lambda uid: uid.name,
)
def test_transfer_syntaxes(tmp_path, syntax):
    for k in range(SLICES):
        ds = slice_of(k, OBLIQUE)
        if syntax == RLELossless:
            ds.compress(syntax)
            save(ds, tmp_path / f"{k}.dcm")
            continue
        if syntax == ExplicitVRBigEndian:
            ds.PixelData = pixels(k).byteswap().tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(
            tmp_path / f"{k}.dcm",
            ds,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=syntax != ExplicitVRBigEndian,
        )
    image = read_dicom(tmp_path)
    assert_geometry(image, OBLIQUE)
    assert sitk.GetArrayFromImage(image)[4, 3, 2] == pixels(4)[3, 2]


MR_SMALL = (
    "MR_small",
    "MR_small_RLE",
    "MR_small_bigendian",
    "MR_small_expb",
    "MR_small_implicit",
    "MR_small_jp2klossless",
    "MR_small_jpeg_ls_lossless",
    "MR_small_padded",
)


def moved_copies(folder, source):
    """A series of three, from a file of someone else's."""
    for k in range(3):
        ds = pydicom.dcmread(source)
        ds.ImagePositionPatient = ["-83.9063", "-91.2", f"{6.6406 + 1.5 * k:.4f}"]
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.{k + 1}"
        ds.save_as(folder / f"{k}.dcm")
    return folder


@pytest.mark.parametrize("name", MR_SMALL)
def test_files_of_pydicom(tmp_path, name):
    """One picture, stored in eight ways; 0.3125 mm pixels by its header."""
    image = read_dicom(moved_copies(tmp_path, get_testdata_file(f"{name}.dcm", download=False)))
    np.testing.assert_allclose(image.GetSpacing(), (0.3125, 0.3125, 1.5), atol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), (-83.9063, -91.2, 6.6406), atol=1e-6)
    plain = sitk.ReadImage(str(get_testdata_file("MR_small.dcm", download=False)))
    expected = sitk.GetArrayFromImage(plain)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), np.repeat(expected, 3, axis=0))


def compress(path, kind):
    """By GDCM: pydicom itself encodes RLE alone. The header stays."""
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    ds = pydicom.dcmread(path)
    writer.SetFileName(str(path))
    assert writer.Write()
    compressed = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = compressed.file_meta.TransferSyntaxUID
    assert ds.file_meta.TransferSyntaxUID.is_compressed
    ds["PixelData"] = compressed["PixelData"]
    save(ds, path)


CODECS = ("JPEGLosslessProcess14_1", "JPEG2000Lossless", "JPEGLSLossless", "RLELossless")


@pytest.mark.parametrize("kind", CODECS)
def test_compressed(tmp_path, kind):
    write_series(tmp_path / "series")
    save(enhanced(), tmp_path / "enhanced" / "mf.dcm")
    for path in tmp_path.rglob("*.dcm"):
        compress(path, kind)
    stored = np.stack([pixels(k) for k in range(SLICES)])
    values = sitk.GetArrayFromImage(read_dicom(tmp_path / "series"))
    np.testing.assert_array_equal(values, stored)
    values = sitk.GetArrayFromImage(read_dicom(tmp_path / "enhanced"))
    offset = 10 * np.arange(SLICES)[:, None, None]
    np.testing.assert_array_equal(values, stored * 0.5 + offset)


@pytest.mark.parametrize(
    ("kind", "rows", "columns"),
    [*((kind, 16, 10) for kind in CODECS), ("JPEGLSLossless", 4, 10)],
)
def test_compressed_frames_of_another_size(tmp_path, capfd, kind, rows, columns):
    """GDCM's JPEG-LS decoder aborts the process on some, and reads others awry."""
    path = save(enhanced(), tmp_path / "mf.dcm")
    compress(path, kind)
    ds = pydicom.dcmread(path)
    ds.Rows, ds.Columns = rows, columns
    save(ds, path)
    assert_says(refusal(path), "mf.dcm, frame 1", "get the file again")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", CODECS)
def test_damaged_compressed_data(tmp_path, capfd, kind):
    """The libraries complain on standard error; one of them goes on with what it has."""
    path = save(enhanced(), tmp_path / "mf.dcm")
    compress(path, kind)
    content = path.read_bytes()
    start = len(content) - 100
    path.write_bytes(content[:start] + bytes(40) + content[start + 40 :])
    assert_says(refusal(path), "mf.dcm", "get the file again")
    assert capfd.readouterr() == ("", "")


HTJ2K, JPEG_EXTENDED, MPEG2, PRIVATE = (
    f"1.2.840.{end}"
    for end in ("10008.1.2.4.201", "10008.1.2.4.51", "10008.1.2.4.100", "113619.5.2")
)


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        (HTJ2K, "High-Throughput JPEG 2000 Image Compression (Lossless Only)"),
        (JPEG_EXTENDED, "JPEG Extended (Process 2 and 4) of 12 bits"),
        (MPEG2, "MPEG2 Main Profile / Main Level"),
        (PRIVATE, PRIVATE),
    ],
)
def test_transfer_syntaxes_that_are_not_read(tmp_path, syntax, name):
    """They are not damaged, so the same file again is no help."""
    for k in range(SLICES):
        ds = slice_of(k, BitsStored=12, HighBit=11)
        ds.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(tmp_path / f"{k}.dcm", ds, implicit_vr=False, little_endian=True)
    assert_says(
        refusal(tmp_path),
        f"compressed as {name}, which is not read; export it uncompressed or as JPEG 2000 Lossless",
    )


@pytest.mark.parametrize("sop_class", [ENHANCED_MR, LEGACY_MR], ids=["enhanced", "legacy"])
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "folder"])
def test_enhanced(tmp_path, sop_class, as_file):
    order = [3, 0, 5, 1, 4, 2]  # frames in no order
    path = save(enhanced(OBLIQUE, sop_class, order), tmp_path / "mf.dcm")
    image = read_dicom(path if as_file else tmp_path)
    assert_geometry(image, OBLIQUE)
    expected = np.stack([pixels(k) * 0.5 + 10 * k for k in range(SLICES)])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)


def test_enhanced_geometry_is_gdcms(tmp_path):
    path = save(enhanced(OBLIQUE), tmp_path / "mf.dcm")
    theirs, ours = sitk.ReadImage(str(path)), read_dicom(path)
    assert geometry_error(ours, theirs) < 1e-6


def test_enhanced_in_two_files(tmp_path):
    """A concatenation: frames of one series in several files."""
    for number, order in enumerate(([0, 1, 2], [3, 4, 5])):
        ds = enhanced(order=order)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.6.{number + 1}"
        save(ds, tmp_path / f"{number}.dcm")
    assert_geometry(read_dicom(tmp_path), AXIAL)


@pytest.fixture
def locale_kept():
    """GDCM sets the process's locale to "C" when it writes."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.mark.usefixtures("locale_kept")
def test_written_by_simpleitk(tmp_path):
    """Each slice with a study and a frame of reference of its own, nothing said of the contrast."""
    for k in range(4):
        image = sitk.GetImageFromArray(np.full((4, 4), k, np.int16))
        for tag, value in {
            "0008|0060": "MR",
            "0008|0018": f"1.2.9.{k + 1}",
            "0020|000e": "1.2.9",
            "0020|0032": rf"0\0\{2.5 * k}",
            "0020|0037": r"1\0\0\0\1\0",
        }.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(tmp_path / f"{k}.dcm"))
        writer.Execute(image)
    assert read_dicom(tmp_path).GetSpacing()[2] == 2.5


def test_without_preamble(tmp_path):
    for k in range(SLICES):
        whole = save(slice_of(k), tmp_path / f"IM{k}").read_bytes()
        start = 132 + 12 + int.from_bytes(whole[140:144], "little")  # past the file meta group
        (tmp_path / f"IM{k}").write_bytes(whole[start:])
    assert is_dicom(tmp_path / "IM0")
    assert_geometry(read_dicom(tmp_path), AXIAL)


def test_odd_file_names(tmp_path):
    """In Latin-1, and with a line feed: messages stay one line."""
    write_series(tmp_path)
    paths = [tmp_path / os.fsdecode(b"M\xfcller\n%d" % k) for k in range(SLICES)]
    for k, path in enumerate(paths):
        (tmp_path / name_of(k)).rename(path)
    assert_geometry(read_dicom(tmp_path), AXIAL)
    path = paths[3]
    path.write_bytes(path.read_bytes()[:-30])
    assert_says(refusal(tmp_path), "truncated")
    path.unlink()
    assert_says(refusal(tmp_path), "1 slice(s) missing")


def test_odd_texts(tmp_path, capfd):
    """An unknown character set, bytes outside it, a number that is none: still an image."""
    write_series(tmp_path, SpecificCharacterSet="ISO_IR 999", SeriesNumber=None)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        path.write_bytes(content.replace(b"t2_tse_tra", b"t2_\xff\xfe\r\n\x00ra"))
    assert_geometry(read_dicom(tmp_path), AXIAL)
    (series,) = find_series(tmp_path)
    assert series.number is None and series.description.isprintable()
    assert capfd.readouterr() == ("", "")


def test_nothing_of_the_libraries_reaches_the_terminal(tmp_path):
    """pydicom warns of such values; the filters of a fresh process would show it."""
    write_series(tmp_path, SpecificCharacterSet="ISO_IR 999", change={1: {"EchoTime": "101"}})
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.3.5\0", b"1.02.35\0"))
    code = "import sys; from src.images.dicom import read_dicom; read_dicom(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-W", "always::UserWarning", "-c", code, tmp_path],
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# --- where it lies -----------------------------------------------------------------------------


def test_is_dicom(tmp_path):
    series = write_series(tmp_path / "series")
    names = {
        "a.mhd": b"ObjectType = Image\nNDims = 3\n",
        "a.nii": (348).to_bytes(4, "little") + bytes(400),
        "a.txt": b"text" * 100,
        "a.dcm": b"",
        "zeros": bytes(500),
        "group8": b"\x08\x00\x05\x00" + bytes(500),
    }
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
    assert [is_dicom(tmp_path / name) for name in names] == [False] * len(names)
    assert is_dicom(series / name_of(0))
    assert not is_dicom(series) and not is_dicom(tmp_path / "nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.dcm")
        assert not is_dicom(tmp_path / "pipe.dcm")


def test_dicom_files(tmp_path):
    write_series(tmp_path / "a" / "b")
    for name in ("DICOMDIR", ".hidden.dcm", "a/.git/1.dcm"):
        save(slice_of(0), tmp_path / name)
    (tmp_path / "a" / "image.mhd").write_text("ObjectType = Image")
    found = dicom_files(tmp_path)
    assert sorted(path.name for path in found) == sorted(name_of(k) for k in range(SLICES))
    assert dicom_files(tmp_path / "nowhere") == dicom_files(found[0]) == []


def zipped(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def test_zip_is_read_in_place(tmp_path):
    study = tmp_path / "study"
    write_series(study / "5")
    write_series(study / "6", SAGITTAL, uid="1.2.3.7", SeriesNumber=6)
    (study / "__MACOSX").mkdir()
    (study / "__MACOSX" / "1.dcm").write_bytes(b"resource fork")
    path = zipped(study, tmp_path / "study.zip")
    before = sorted(tmp_path.rglob("*"))
    assert_geometry(read_dicom(path), AXIAL)
    assert_geometry(read_dicom(path, "6"), SAGITTAL)
    assert sorted(tmp_path.rglob("*")) == before


def test_defective_zips(tmp_path):
    path = zipped(write_series(tmp_path / "study"), tmp_path / "study.zip")
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    assert_says(refusal(path), "cannot be opened as a zip", "get it again")
    path.write_bytes(whole[:60] + b"\xff\x00\xff" * 10 + whole[90:])
    assert_says(refusal(path), name_of(0), "header cannot be read")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    assert_says(refusal(path), "no DICOM images")
    flags = bytearray(whole)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        flags[whole.index(signature) + offset] |= 1
    path.write_bytes(flags)
    assert_says(refusal(path), "encrypted")


def test_a_zip_that_python_cannot_unpack(tmp_path):
    path = zipped(write_series(tmp_path / "study"), tmp_path / "study.zip")
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 10] = 9
    path.write_bytes(content)
    assert_says(refusal(path), ".dcm has compression method 9 (9 is Deflate64)", "give the folder")


def header_cut(content):
    return content[: content.index(b"t2_tse_tra") - 30]


PIXEL_DATA, SERIES_UID = b"\xe0\x7f\x10\0OW", b"\x20\0\x0e\0UI"
LOST = {
    "no pixel data": (
        lambda content: content[: content.index(PIXEL_DATA)],
        "no pixel data after its header",
    ),
    "cut in the header": (header_cut, "no pixel data after its header"),
    "cut in the preamble": (lambda content: content[:100], "not readable as DICOM (damaged file)"),
    "empty": (lambda content: b"", "not readable as DICOM (empty file)"),
    "zeros": (lambda content: bytes(len(content)), "not readable as DICOM (damaged file)"),
    "no SeriesInstanceUID": (
        lambda content: content.replace(SERIES_UID + b"\x08\0" + b"1.2.3.4\0", b"", 1),
        "no SeriesInstanceUID in its header, others have one",
    ),
}


@pytest.mark.parametrize("defect", LOST)
@pytest.mark.parametrize("suffix", [".dcm", ""])
@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
def test_a_series_of_damaged_files_is_not_replaced_by_another(
    tmp_path, capsys, defect, suffix, as_zip
):
    """The pelvis is an axial T2, too, but not the one that is meant."""
    study = tmp_path / "study"
    write_series(study / "S1", uid="1.2.3.4", SeriesNumber=1)
    write_series(study / "S2", OBLIQUE, uid="1.2.3.5", SeriesDescription="t2_haste_tra_pelvis")
    change, says = LOST[defect]
    for path in sorted(study.rglob("*.dcm")):
        if path.parent.name == "S1":
            path.write_bytes(change(path.read_bytes()))
        path.rename(path.with_name(f"IM{path.stem}{suffix}"))
    path = zipped(study, tmp_path / "study.zip") if as_zip else study
    remedy = "; get the file again, or choose the series to read with --series (6 such files)"
    assert_says(refusal(path), f"{path}: S1/IM", says, remedy)
    assert_geometry(read_dicom(path, "5"), OBLIQUE)
    (line,) = capsys.readouterr().err.splitlines()
    assert_says(line, f"warning: {path}: left out: S1/IM", says)


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, "inverted grey values"),
        ({"RescaleSlope": "0"}, "RescaleSlope 0"),
        ({"Rows": None}, "no Rows in its header"),
        ({"ImageOrientationPatient": None}, "no ImageOrientationPatient; export it again"),
    ],
    ids=str,
)
def test_a_t2_series_that_does_not_tell_its_plane_is_not_replaced_by_another(
    tmp_path, tags, problem
):
    write_series(tmp_path / "S1", uid="1.2.3.4", SeriesNumber=1, **tags)
    write_series(tmp_path / "S2", OBLIQUE, SeriesDescription="t2_haste_tra_pelvis")
    assert_says(refusal(tmp_path), 'series 1 "t2_tse_tra"', problem, "or choose the series to read")
    assert_geometry(read_dicom(tmp_path, "5"), OBLIQUE)
    other = {"SeriesDescription": "ep2d_diff"}
    write_series(tmp_path / "S3", uid="1.2.3.6", SeriesNumber=3, **tags, **other)
    shutil.rmtree(tmp_path / "S1")
    assert_geometry(read_dicom(tmp_path), OBLIQUE)


CSA_NON_IMAGE = "1.3.12.2.1107.5.9.1"  # Siemens' report of the protocol, in most of its studies


def test_what_else_is_in_a_study_is_no_damage(tmp_path, capfd):
    """Reports, a vendor's own objects, a viewer: in folders of their own, and beside the slices."""
    write_series(tmp_path / "study" / "S5")
    without_pixels = {"PixelData": None, "Rows": None, "Columns": None, "uid": "1.2.3.9"}
    objects = {
        "private": {"SOPClassUID": CSA_NON_IMAGE},
        "raw": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66"},
        "PR": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1", "Modality": "PR"},
        "KO": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.59", "Modality": "KO"},
    }
    for number, (name, tags) in enumerate(objects.items(), 10):
        ds = slice_of(0, **{**without_pixels, "uid": f"1.2.3.{number}", **tags})
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        for folder in ("S5", name):
            save(ds, tmp_path / "study" / folder / f"{name}.dcm")
    capture = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImageOrientationPatient": None}
    write_series(tmp_path / "study" / "SC", uid="1.2.3.20", SeriesNumber=20, **capture)
    pydicom_files = Path(get_testdata_file("MR_small.dcm", download=False)).parent
    for name in ("reportsi.dcm", "rtstruct.dcm", "dicomdirtests/DICOMDIR"):
        place = tmp_path / "study" / Path(name).stem / "1.dcm"
        place.parent.mkdir()
        place.write_bytes((pydicom_files / name).read_bytes())
    (tmp_path / "study" / "viewer").mkdir()
    for name, content in {"run.exe": b"MZ" * 99, "README": b"text", "viewer": b"\x7fELF\0"}.items():
        (tmp_path / "study" / "viewer" / name).write_bytes(content)
    assert_geometry(read_dicom(tmp_path / "study"), AXIAL)
    assert_geometry(read_dicom(zipped(tmp_path / "study", tmp_path / "study.zip")), AXIAL)
    assert capfd.readouterr() == ("", "")


def test_other_files_that_are_named_like_slices_are_no_damage(tmp_path):
    """A viewer's, of another pattern; and a vendor's object that names no series."""
    for number, path in enumerate(sorted(write_series(tmp_path / "S5").iterdir())):
        path.rename(path.with_name(f"IM{number:04}"))
    (tmp_path / "VIEWER").mkdir()
    for name in ("imface", "1.cab", "im.dll"):
        (tmp_path / "VIEWER" / name).write_bytes(b"MZ" * 99)
    ds = slice_of(0, PixelData=None, Rows=None, Columns=None, SOPClassUID=CSA_NON_IMAGE)
    ds.file_meta.MediaStorageSOPClassUID = CSA_NON_IMAGE
    del ds.SeriesInstanceUID
    save(ds, tmp_path / "private" / "object")
    assert_geometry(read_dicom(tmp_path), AXIAL)


def test_study_tree(tmp_path):
    """T2 in three planes, T1, diffusion, a localizer, a report: the axial T2 is meant."""
    kinds = {
        1: (AXIAL, {"SeriesDescription": "localizer"}),
        2: (SAGITTAL, {"SeriesDescription": "t2_tse_sag"}),
        3: (CORONAL, {"SeriesDescription": "t2_tse_cor"}),
        4: (AXIAL, {"SeriesDescription": "t1_tse_tra", "EchoTime": "12", "RepetitionTime": "600"}),
        5: (OBLIQUE, {"SeriesDescription": "t2_tse_tra"}),
        6: (AXIAL, {"SeriesDescription": "ep2d_diff_b50_800", "EchoTime": "70"}),
        7: (AXIAL, {"SeriesDescription": "t2 flair", "EchoTime": "120"}),
        8: (AXIAL, {"SeriesDescription": "t2*_gre", "EchoTime": "90"}),
        9: (AXIAL, {"SeriesDescription": "ADC", "ImageType": ["DERIVED", "PRIMARY", "ADC"]}),
        10: (AXIAL, {"SeriesDescription": "DCE dyn", "EchoTime": "1.5"}),
    }
    for number, (direction, tags) in kinds.items():
        write_series(
            tmp_path / str(number), direction, uid=f"1.2.3.{number}", SeriesNumber=number, **tags
        )
    report = get_testdata_file("reportsi.dcm", download=False)
    (tmp_path / "SR").write_bytes(Path(report).read_bytes())
    series = find_series(tmp_path)
    assert [s.number for s in series if s.may_be_t2] == [5]
    assert [s.plane for s in series if s.number in (2, 3, 5)] == ["sagittal", "coronal", "axial"]
    assert_geometry(read_dicom(tmp_path), OBLIQUE)
    assert choose_series(series, "", tmp_path).uid == "1.2.3.5"


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        ("1.2.3.2", 2),
        ("3", 3),
        ("t2_tse_sag", 2),
        ("T2*COR*", 3),
        ("Sag", 2),
        ("*tra", 5),
    ],
)
def test_series_is_chosen(tmp_path, wanted, number):
    for n, (direction, name) in {
        2: (SAGITTAL, "t2_tse_sag"),
        3: (CORONAL, "t2_tse_cor"),
        5: (AXIAL, "t2_tse_tra"),
    }.items():
        write_series(
            tmp_path / str(n), direction, uid=f"1.2.3.{n}", SeriesNumber=n, SeriesDescription=name
        )
    found = choose_series(find_series(tmp_path), wanted, tmp_path)
    assert found.number == number
    assert_geometry(read_series(found), {2: SAGITTAL, 3: CORONAL, 5: AXIAL}[number])


def test_a_number_is_no_part_of_a_description(tmp_path):
    write_series(tmp_path, SeriesDescription="t2_tse_tra_fov3")
    assert_says(refusal(tmp_path, "3"), "--series 3 matches none of 1 series")


def test_series_without_uids_are_told_apart_by_number_and_description(tmp_path):
    """Else two stacks would become one volume."""
    write_series(tmp_path, stem="a", SeriesInstanceUID=None)
    moved = dict.fromkeys(range(SLICES), {"SeriesNumber": 6, "SeriesDescription": "adc"})
    write_series(tmp_path, stem="b", SeriesInstanceUID=None, change=moved)
    assert [s.name for s in find_series(tmp_path)] == ['5 "t2_tse_tra"', '6 "adc"']
    assert read_dicom(tmp_path).GetSize()[2] == SLICES


def test_no_single_series_is_meant(tmp_path):
    write_series(tmp_path, stem="a", uid="1.2.3.5")
    write_series(tmp_path, OBLIQUE, stem="b", uid="1.2.3.6", SeriesDescription="T2 small FOV")
    listed = ('5 "t2_tse_tra" (axial, 6 slice(s), T2)', '5 "T2 small FOV" (axial, 6', "--series")
    assert_says(refusal(tmp_path), "several axial T2 series among 2 series", *listed)
    assert_says(refusal(tmp_path, "5"), "--series 5 matches 2 series", *listed)
    assert_says(refusal(tmp_path, "dwi"), "--series dwi matches none of 2 series", *listed)
    write_series(tmp_path / "c", stem="c", uid="1.2.3.7")
    assert_says(refusal(tmp_path, "*tra"), "UID 1.2.3.5", "UID 1.2.3.7")
    for wanted in ("1.2.3.5", "small fov"):
        read_dicom(tmp_path, wanted)


BARE = {
    "SeriesDescription": None,
    "EchoTime": None,
    "RepetitionTime": None,
    "ImageType": None,
    "SeriesNumber": None,
}


@pytest.mark.parametrize(
    ("tags", "direction"),
    [
        ({}, AXIAL),
        ({"Modality": None}, AXIAL),
        ({"SeriesDescription": "Ax Prostate"}, AXIAL),
        ({"SeriesDescription": "Ax Prostate", "EchoTime": "100", "RepetitionTime": "5000"}, AXIAL),
        ({"SeriesInstanceUID": None}, AXIAL),
        ({"DiffusionBValue": 0.0}, AXIAL),  # Philips writes it for any series
        ({"ProtocolName": "T2_TSE_TRA"}, AXIAL),
        ({"SeriesDescription": "t2_tse_tra headcoil"}, AXIAL),  # no ADC
        ({"EchoTime": "0", "RepetitionTime": "0"}, AXIAL),  # an anonymizer's
        ({"SeriesDescription": "Ax T2", "ProtocolName": "PROSTATE T1 DWI DCE"}, AXIAL),  # as GE's
    ],
    ids=str,
)
def test_plausible_only_series(tmp_path, tags, direction):
    write_series(tmp_path, direction, **{**BARE, **tags})
    (tmp_path / "README").write_text("no image")
    assert_geometry(read_dicom(tmp_path), direction)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "direction", "parts"),
    [
        ({"SeriesDescription": "t1_tse_tra"}, AXIAL, ['not T2: description "t1"', "--series"]),
        ({"SeriesDescription": "Ax", "EchoTime": "12"}, AXIAL, ["EchoTime 12 ms", "--series"]),
        ({"RepetitionTime": "500"}, AXIAL, ["RepetitionTime 500 ms"]),
        ({"ScanningSequence": "GR"}, AXIAL, ["gradient echo"]),
        ({"EchoPulseSequence": "GRADIENT"}, AXIAL, ["gradient echo"]),
        ({"AcquisitionContrast": "T1"}, AXIAL, ["AcquisitionContrast T1"]),
        ({}, SAGITTAL, ["sagittal, not axial", "--series"]),
        ({}, CORONAL, ["coronal, not axial"]),
        ({"DiffusionBValue": 800.0}, AXIAL, ["diffusion", "DiffusionBValue 800"]),
        ({"ImageType": ["DERIVED", "PRIMARY", "ADC"]}, AXIAL, ["diffusion", "ImageType ADC"]),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "DIFFUSION"]}, AXIAL, ["diffusion"]),
        ({"SequenceName": "*ep_b800t"}, AXIAL, ["diffusion", "ep b800"]),
        ({"SeriesDescription": "Ax DWI"}, AXIAL, ["diffusion", "dwi"]),
        ({"SeriesDescription": "dADC_map"}, AXIAL, ["diffusion", "adc"]),
        ({"SeriesDescription": "b-value 1000"}, AXIAL, ["diffusion", "b val"]),
        ({"SeriesDescription": "K-trans"}, AXIAL, ["k trans", "--series"]),
        ({"SeriesDescription": "Ax FIESTA"}, AXIAL, ["fiesta"]),
        ({"SeriesDescription": "STIR tra"}, AXIAL, ["stir"]),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, AXIAL, ["a localizer"]),
        ({"SeriesDescription": "3-pl loc T2"}, AXIAL, ["a localizer", "loc"]),
    ],
    ids=str,
)
def test_only_series_is_no_axial_t2(tmp_path, tags, direction, parts, capfd):
    write_series(tmp_path, direction, **tags)
    assert_says(refusal(tmp_path), "expected an axial T2 series", *parts)
    assert_geometry(read_dicom(tmp_path, "5"), direction)  # chosen, it is one volume
    said = capfd.readouterr().err  # what it is; of the plane the caller tells
    assert said.startswith(f"note: {tmp_path}: series 5 ") == (direction is AXIAL)
    assert said == "" or said.endswith("--series chose it\n") and parts[0] in said


def test_a_mosaic_is_no_slice(tmp_path):
    write_series(tmp_path, ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
    assert_says(refusal(tmp_path), "a mosaic of slices")


def test_spacing_of_referenced_images_is_not_the_frames(tmp_path):
    other = item(ReferencedSOPInstanceUID="1.2.9", PixelSpacing=["9", "9"])
    frames = {k: {"ReferencedImageSequence": other} for k in range(SLICES)}
    save(enhanced(per_frame=frames), tmp_path / "a.dcm")
    assert_geometry(read_dicom(tmp_path), AXIAL)


def private_b_value(ds):
    block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", "1400")


def test_private_b_values(tmp_path):
    for k in range(SLICES):
        ds = slice_of(k)
        private_b_value(ds)
        save(ds, tmp_path / f"{k}.dcm")
    assert_says(refusal(tmp_path), "diffusion", "1400")


def doubled(tags, k=None, instance="1.2.3.99"):
    """The series and slices of it, all or the k-th, again with other tags."""

    def make(folder):
        write_series(folder)
        for i in range(SLICES) if k is None else [k]:
            save(slice_of(i, instance=f"{instance}.{i + 1}", **tags), folder / f"twice{i}.dcm")

    return make


def changed(k, **tags):
    return lambda folder: write_series(folder, change={k: tags})


def bytes_of(k, change):
    def make(folder):
        path = write_series(folder) / name_of(k)
        path.write_bytes(change(path.read_bytes()))

    return make


def position(k, along=0.0, beside=0.0, direction=AXIAL):
    offset = (STEP_MM * k + along) * direction[:, 2] + beside * direction[:, 0]
    return decimal(ORIGIN_MM + offset)


def sheared(folder):
    write_series(
        folder,
        change={k: {"ImagePositionPatient": position(k, beside=0.3 * k)} for k in range(SLICES)},
    )


def planes(folder):
    for number, direction in enumerate((AXIAL, SAGITTAL, CORONAL)):
        save(slice_of(0, direction, instance=f"1.2.{number + 1}"), folder / f"{number}.dcm")


def copy_of_slice_4(folder):
    write_series(folder)
    (folder / "4 (copy).dcm").write_bytes((folder / name_of(4)).read_bytes())


def with_file(name, content):
    def make(folder):
        write_series(folder)
        (folder / name).write_bytes(content)

    return make


LAST = SLICES - 1
# What is in the folder, and what the message says of it.
DEFECTS = {
    "left-aligned pixels": (
        lambda folder: write_series(folder, BitsStored=12),
        [f"{name_of(LAST)}: HighBit 15 with BitsStored 12, expected HighBit 11"],
    ),
    "slices missing": (
        lambda folder: write_series(folder, skip=(2, 3)),
        ["2 slice(s) missing", "-67.70 mm", name_of(1), "-57.80 mm", name_of(4), "steps are 3.30"],
    ),
    "every other at the end missing": (
        lambda folder: write_series(folder, skip=(4,)),
        ["1 slice(s) missing", name_of(3), name_of(5)],
    ),
    "cut off in the pixels": (bytes_of(3, lambda c: c[:-50]), [name_of(3), "truncated"]),
    "last slice cut off in the header": (
        bytes_of(LAST, header_cut),
        [name_of(LAST), "no pixel data after its header"],
    ),
    "last slice cut off in the preamble": (
        bytes_of(LAST, lambda c: c[:100]),
        [name_of(LAST), "not readable as DICOM"],
    ),
    "an empty file": (bytes_of(LAST, lambda c: b""), [name_of(LAST), "empty file"]),
    "zeros": (bytes_of(LAST, lambda c: bytes(len(c))), [name_of(LAST), "not readable as DICOM"]),
    "a stray text called .dcm": (with_file("x.dcm", b"text" * 99), ["x.dcm", "not readable"]),
    "copied twice": (copy_of_slice_4, ["-57.80 mm", "4 (copy).dcm", "same SOPInstanceUID"]),
    "two echoes": (doubled({"EchoTime": "25"}), ["EchoTime (101, 25)", "6 such pair(s)"]),
    "two echo numbers": (doubled({"EchoNumbers": 2}), ["EchoNumbers (none, 2)"]),
    "two time points": (
        doubled({"TemporalPositionIdentifier": 2}),
        ["TemporalPositionIdentifier (none, 2)"],
    ),
    "two acquisition times": (
        doubled({"AcquisitionTime": "120000", "InstanceNumber": 3}, k=2),
        ["-64.40 mm", "AcquisitionTime (none, 120000)"],
    ),
    "magnitude and phase": (
        doubled({"ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
        [r"ImageType (ORIGINAL\PRIMARY\M, ORIGINAL\PRIMARY\P)"],
    ),
    "two of another name": (
        doubled({"InstanceNumber": 74}, k=1, instance="9.9"),
        ["differ in no attribute"],
    ),
    "two echoes at alternating positions": (
        lambda folder: write_series(folder, change={k: {"EchoTime": "160"} for k in (1, 3, 5)}),
        ["different EchoTime (101, 160)"],
    ),
    "two acquisitions at alternating positions": (
        two_acquisitions,
        ["2 stacks of overlapping slices", "AcquisitionNumber 1, 2", "keep the slices of one"],
    ),
    "two frames of reference": (
        lambda folder: write_series(
            folder, change={k: {"FrameOfReferenceUID": f"1.2.{k // 3}"} for k in range(SLICES)}
        ),
        ["different FrameOfReferenceUID (1.2.0, 1.2.1)"],
    ),
    "two echoes of nearly one time at alternating positions": (
        lambda folder: write_series(folder, change={k: {"EchoTime": "105"} for k in (1, 3, 5)}),
        ["different EchoTime (101, 105)"],
    ),
    "no position": (
        changed(3, ImagePositionPatient=None),
        [name_of(3), "no ImagePositionPatient (1 of 6"],
    ),
    "no orientation": (
        lambda folder: write_series(folder, ImageOrientationPatient=None),
        ["no ImageOrientationPatient (6 of 6"],
    ),
    "no pixel spacing": (changed(0, PixelSpacing=None), [name_of(0), "no PixelSpacing"]),
    "all at one position": (
        lambda folder: write_series(folder, ImagePositionPatient=["0", "0", "0"]),
        ["all 6 slices lie there"],
    ),
    "another orientation": (
        changed(2, ImageOrientationPatient=decimal(rotation(2.0)[:, :2].T)),
        ["slice at", name_of(2), "ImageOrientationPatient"],
    ),
    "half a degree off": (
        changed(2, ImageOrientationPatient=decimal(rotation(degrees_z=0.5)[:, :2].T)),
        ["slice at", name_of(2), "ImageOrientationPatient"],
    ),
    "skew orientation": (
        lambda folder: write_series(
            folder, ImageOrientationPatient=["1", "0", "0", "0.1", "1", "0"]
        ),
        ["right angle", "0.1"],
    ),
    "zero orientation": (
        lambda folder: write_series(folder, ImageOrientationPatient=["0"] * 6),
        ["ImageOrientationPatient (0, 0", "unit vectors"],
    ),
    "another in-plane spacing": (
        changed(2, PixelSpacing=["0.7", "0.6"]),
        [name_of(2), "PixelSpacing (0.7, 0.6)", "(0.7, 0.5)"],
    ),
    "spacing 0": (
        lambda folder: write_series(folder, PixelSpacing=["0", "0"]),
        ["PixelSpacing (0, 0)"],
    ),
    "another matrix": (
        changed(1, Rows=ROWS - 1, PixelData=pixels(1)[1:].tobytes()),
        [name_of(1), "Rows, Columns (7, 10)", "(8, 10)"],
    ),
    "matrix of another transposition": (
        changed(1, Rows=COLUMNS, Columns=ROWS),
        [name_of(1), "Rows, Columns (10, 8)"],
    ),
    "an uneven step": (
        changed(2, ImagePositionPatient=position(2, along=0.4)),
        ["uneven steps from 2.90 to 3.70 mm", "0.10 mm"],
    ),
    "an uneven step of thin slices": (
        lambda folder: write_series(
            folder,
            change={
                k: {"ImagePositionPatient": position(k, along=(1 - STEP_MM) * k + 0.07 * (k == 2))}
                for k in range(SLICES)
            },
        ),
        ["uneven steps from 0.93 to 1.07 mm", "0.05 mm"],
    ),
    "steps that grow": (
        lambda folder: write_series(
            folder,
            change={
                k: {"ImagePositionPatient": position(k, along=0.05 * k * k)} for k in range(SLICES)
            },
        ),
        ["uneven steps"],
    ),
    "shear": (sheared, ["0.30 mm", "without shear"]),
    "one slice aside": (
        changed(4, ImagePositionPatient=position(4, beside=-2.0)),
        [name_of(4), "2.00 mm", "without shear"],
    ),
    "one slice a little aside": (
        changed(4, ImagePositionPatient=position(4, beside=0.15)),
        [name_of(4), "0.15 mm", "without shear"],
    ),
    "one slice": (
        lambda folder: save(slice_of(0), folder / "0.dcm"),
        ["one slice only (0.dcm)", "folder of all its slices"],
    ),
    "three planes": (planes, ["slices in several planes"]),
    "colour": (
        lambda folder: write_series(
            folder,
            SamplesPerPixel=3,
            PhotometricInterpretation="RGB",
            PlanarConfiguration=0,
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            PixelData=bytes(3 * ROWS * COLUMNS),
        ),
        ["SamplesPerPixel 3, PhotometricInterpretation RGB", "colour"],
    ),
    "inverted grey values": (
        lambda folder: write_series(folder, PhotometricInterpretation="MONOCHROME1"),
        ["inverted grey values (MONOCHROME1); export it as MONOCHROME2"],
    ),
    "CT": (
        lambda folder: write_series(folder, Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2"),
        ["Modality CT, CT Image Storage"],
    ),
    "ultrasound": (
        lambda folder: write_series(
            folder, Modality="US", SOPClassUID="1.2.840.10008.5.1.4.1.1.6.1"
        ),
        ["Modality US, Ultrasound Image Storage"],
    ),
    "a segmentation": (
        lambda folder: write_series(
            folder, Modality="SEG", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"
        ),
        ["Modality SEG, Segmentation Storage"],
    ),
    "a slice of another modality": (changed(3, Modality="CT"), [name_of(3), "Modality differs"]),
    "a slice of another patient": (changed(3, PatientID="q"), [name_of(3), "PatientID differs"]),
    "slope 0": (changed(3, RescaleSlope="0"), [name_of(3), "RescaleSlope 0"]),
    "values that overflow": (changed(3, RescaleSlope="1e300"), [name_of(3), "not finite"]),
    "a position that is no number": (
        bytes_of(3, lambda c: c.replace(b"-40.5\\", b"-4O.5\\", 1)),
        [name_of(3), "ImagePositionPatient is no number"],
    ),
    "a position of nan": (
        bytes_of(3, lambda c: c.replace(b"-40.5\\", b"  nan\\", 1)),
        [name_of(3), "ImagePositionPatient", "nan"],
    ),
    "another series' slice": (
        changed(LAST, SeriesInstanceUID="1.2.3.4"),
        ["several axial T2 series among 2 series", "1 slice(s)"],
    ),
    "b-values in one series": (
        doubled({"DiffusionBValue": 800.0}),
        ["is diffusion (DiffusionBValue none, 800.0)"],
    ),
    "multi-frame without positions": (
        lambda folder: save(enhanced(PerFrameFunctionalGroupsSequence=None), folder / "multi.dcm"),
        ["multi.dcm", "6 frames without PerFrameFunctionalGroupsSequence"],
    ),
    "enhanced, a position missing": (
        lambda folder: save(enhanced(order=[0, 1, 3, 4, 5]), folder / "mf.dcm"),
        ["1 slice(s) missing", "mf.dcm, frame 2", "mf.dcm, frame 3"],
    ),
    "enhanced, a position twice": (
        lambda folder: save(enhanced(order=[0, 1, 1, 2]), folder / "mf.dcm"),
        ["two slices at -67.70 mm (mf.dcm, frame 2; mf.dcm, frame 3)"],
    ),
    "enhanced, two stacks": (
        lambda folder: save(
            enhanced(per_frame={0: {"FrameContentSequence": item(StackID="2")}}), folder / "mf.dcm"
        ),
        ["different StackID (1, 2)"],
    ),
    "enhanced, two time points": (
        lambda folder: save(
            enhanced(
                order=[0, 1, 2, 0, 1, 2],
                per_frame={
                    k: {"FrameContentSequence": item(TemporalPositionIndex=1 + k // 3)}
                    for k in range(6)
                },
            ),
            folder / "mf.dcm",
        ),
        ["TemporalPositionIndex (1, 2)", "3 such pair(s)"],
    ),
    "enhanced, two echoes": (
        lambda folder: save(
            enhanced(
                order=[0, 0, 1, 1, 2, 2],
                per_frame={
                    k: {"MREchoSequence": item(EffectiveEchoTime=100.0 + 60 * (k % 2))}
                    for k in range(6)
                },
            ),
            folder / "mf.dcm",
        ),
        ["EchoTime (100.0, 160.0)"],
    ),
    "enhanced, b-values": (
        lambda folder: save(
            enhanced(
                order=[0, 0, 1, 1],
                per_frame={
                    k: {"MRDiffusionSequence": item(DiffusionBValue=800.0 * (k % 2))}
                    for k in range(4)
                },
            ),
            folder / "mf.dcm",
        ),
        ["is diffusion (DiffusionBValue 0.0, 800.0)"],
    ),
    "enhanced, frames and items differ": (
        lambda folder: save(enhanced(NumberOfFrames=SLICES + 1), folder / "mf.dcm"),
        ["NumberOfFrames 7", "has 6 item(s)"],
    ),
    "enhanced, too few rows": (
        lambda folder: save(enhanced(Rows=ROWS - 1), folder / "mf.dcm"),
        ["960 bytes of pixels", "say 840"],
    ),
    "enhanced, cut off": (
        lambda folder: (
            save(enhanced(), folder / "mf.dcm"),
            (folder / "mf.dcm").write_bytes((folder / "mf.dcm").read_bytes()[:-100]),
        ),
        ["mf.dcm, frame 1: truncated, 860 bytes of pixels of 960"],
    ),
    "nothing": (lambda folder: None, ["no DICOM images"]),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects(tmp_path, capfd, defect):
    make, parts = DEFECTS[defect]
    make(tmp_path)
    assert_says(refusal(tmp_path), *parts)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "tags", [{"EchoTime": "101.5"}, {"ImagePositionPatient": position(4, beside=0.05)}]
)
def test_what_rounding_does_to_a_slice_is_no_defect(tmp_path, tags):
    assert_geometry(read_dicom(write_series(tmp_path, change={4: tags})), AXIAL)


@pytest.mark.parametrize(
    ("defect", "parts"),
    [
        ("b-values in one series", ["two slices", "DiffusionBValue (none, 800.0)", "diffusion"]),
        ("enhanced, b-values", ["two slices", "DiffusionBValue (0.0, 800.0)", "diffusion"]),
        ("three planes", ["several planes, a localizer"]),
        ("CT", ["Modality CT"]),
    ],
)
def test_chosen_but_no_volume(tmp_path, defect, parts):
    DEFECTS[defect][0](tmp_path)
    assert_says(refusal(tmp_path, "t2_tse_tra"), *parts)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("MR_truncated.dcm", "one slice only"),
        ("CT_small.dcm", "Modality CT, CT Image Storage"),
        ("liver_1frame.dcm", "Modality SEG, Segmentation Storage"),
        ("rtstruct.dcm", "Modality RTSTRUCT, RT Structure Set Storage"),  # without preamble
        ("reportsi.dcm", "Modality SR, Basic Text SR Storage"),
        ("examples_ybr_color.dcm", "Modality US"),
        ("rtdose.dcm", "Modality RTDOSE"),
        ("dicomdirtests/DICOMDIR", "a DICOMDIR, which only lists files; give its folder"),
    ],
)
def test_other_objects_of_pydicom(name, says):
    folder = Path(get_testdata_file("MR_small.dcm", download=False)).parent
    assert_says(refusal(folder / name), says)


def test_truncated_file_of_pydicom(tmp_path):
    moved_copies(tmp_path, get_testdata_file("MR_small.dcm", download=False))
    ds = pydicom.dcmread(get_testdata_file("MR_truncated.dcm", download=False))
    ds.ImagePositionPatient = ["-83.9063", "-91.2", "11.1406"]
    save(ds, tmp_path / "3.dcm")
    assert_says(refusal(tmp_path), "3.dcm", "truncated, 8130 bytes of pixels of 8192")


def test_localizers_of_pydicom():
    """A CD of a whole study, someone else's: nothing on it is an axial T2."""
    folder = Path(get_testdata_file("MR_small.dcm", download=False)).parent / "dicomdirtests"
    message = refusal(folder / "98892003")
    assert_says(message, "no axial T2 series among 7 series", '"T/S/C RF FAST PILOT" (mixed, 3')
    assert_says(refusal(folder / "98892003", "700"), "several planes")


def test_no_such_path(tmp_path):
    assert_says(refusal(tmp_path / "nowhere"), "no such file or folder")


# --- by mutation -------------------------------------------------------------------------------

GARBAGE = ["", "0", "-1", "7", "nan", "1e308", "x", "1\\2", "0\\0\\0", "65535", "1\\0\\0\\0\\0\\1"]


def _damage_tag(path, rng):
    """One element, anywhere in the file, deleted or given another value."""
    ds = pydicom.dcmread(path)
    elements = [(parent, element) for parent, element in _elements(ds)]
    parent, element = elements[rng.integers(len(elements))]
    garbage = str(rng.choice(GARBAGE))
    if rng.random() < 0.3:
        del parent[element.tag]
        done = f"{element.keyword} deleted"
    else:
        done = f"{element.keyword} = {garbage!r}"
        if element.VR in ("US", "FD", "OW", "SQ"):
            number = int(rng.choice([0, 1, 7, 9, 16, 65535]))
            values = {"US": number, "FD": float(number), "OW": bytes(number), "SQ": []}
            element.value = values[element.VR]
            done = f"{element.keyword} = {number}"
        else:
            element._value = garbage  # past pydicom's own checks
    try:
        ds.save_as(path)
    except Exception:  # pydicom does not write what it finds impossible
        return None
    return done


def _elements(ds):
    for element in ds:
        yield ds, element
        for child in element.value if element.VR == "SQ" else []:
            yield from _elements(child)


def _damage_bytes(path, rng):
    content = bytearray(path.read_bytes())
    start = int(rng.integers(len(content)))
    kind = rng.choice(["flip", "zero", "cut", "drop", "insert", "noise"])
    length = int(rng.integers(1, 40))
    if kind == "flip":
        content[start] ^= 1 << int(rng.integers(8))
    elif kind == "zero":
        content[start : start + length] = bytes(length)
    elif kind == "cut":
        del content[int(rng.integers(len(content))) :]
    elif kind == "drop":
        del content[start : start + length]
    elif kind == "insert":
        content[start:start] = rng.bytes(length)
    else:
        content[start : start + length] = rng.bytes(length)
    path.write_bytes(content)
    return f"{kind} {length} bytes at {start}"


def mutations(folder: Path, count: int, seed: int = 0) -> Iterator[tuple[str, Path, np.ndarray]]:
    """Damaged series and enhanced files: what was done, where, the geometry before."""
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        place = folder / str(index)
        direction = [AXIAL, OBLIQUE][index % 2]
        if index % 4 < 2:
            target = write_series(place, direction) / name_of(int(rng.integers(SLICES)))
        else:
            target = save(enhanced(direction), place / "mf.dcm")
        if rng.random() < 0.3:
            compress(target, rng.choice(CODECS))
        done = (_damage_tag if rng.random() < 0.5 else _damage_bytes)(target, rng)
        if done:
            yield f"{target.name}: {done}", place, direction


def check_mutations(folder: Path, count: int, seed: int, output) -> int:
    """Each is refused in one line, or has its geometry, or that which GDCM finds. How many read."""
    read = 0
    sitk.ProcessObject.GlobalWarningDisplayOff()
    for done, place, direction in mutations(folder, count, seed):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # none of a library comes out
                image = read_dicom(place)
        except DataError as error:
            assert str(error).startswith(str(place)) and str(error).isprintable(), done
            continue
        finally:
            assert output.readouterr() == ("", ""), done
        read += 1
        size, spacing = (
            (COLUMNS, ROWS, SLICES),
            (COLUMN_SPACING_MM, ROW_SPACING_MM, STEP_MM),
        )
        expected = [np.concatenate([size, spacing, ORIGIN_MM, direction.ravel()])]
        if (place / "mf.dcm").exists():
            with contextlib.suppress(RuntimeError):
                expected.append(geometry_of(sitk.ReadImage(str(place / "mf.dcm"))))
            output.readouterr()
        found = geometry_of(image)
        assert any(np.allclose(found, e, atol=2e-3) for e in expected), f"{done}: {found}"
        assert np.isfinite(sitk.GetArrayFromImage(image)).all(), done
    return read


def test_mutations(tmp_path, capfd):
    read = check_mutations(tmp_path, 20, 0, capfd)
    assert 0 < read < 20


@pytest.mark.full
def test_many_mutations(tmp_path, capfd):
    check_mutations(tmp_path, 1000, 1, capfd)


def test_a_channel_is_one_of_the_volumes_there_are(tmp_path):
    write_series(tmp_path)
    np.testing.assert_array_equal(
        *(sitk.GetArrayFromImage(read_volume(tmp_path, channel)) for channel in (None, 0))
    )
    with pytest.raises(DataError, match=r"channel 3 .*it has 1 volume\(s\); expected 0"):
        read_volume(tmp_path, 3)
