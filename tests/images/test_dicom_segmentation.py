"""DICOM Segmentations, read back by pydicom, by SimpleITK, and checked by dciodvfy."""

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

import src
from src.images.dicom import choose_series, find_series, read_series
from src.images.dicom.segmentation import (
    make_segmentation,
    read_segmentation,
    read_source,
    save_segmentation,
)
from src.utils.errors import DataError
from tests.dicom_study import PIXEL_MM, position, write_enhanced, write_series
from tests.volumes import geometry_error

pytest.importorskip("highdicom")  # an optional package, among those of scripts/run_tests.sh

# 99 voxels of a bit each: frames do not start at whole bytes. In all a multiple of 8, since
# SimpleITK 2.5 reads the bits of a last byte that is not full as arbitrary values.
SHAPE = (8, 9, 11)
OBLIQUE = np.array([[0.96, -0.28, 0], [0.2688, 0.9216, -0.28], [0.0784, 0.2688, 0.96]])
VOXELS = np.random.default_rng(0).random(SHAPE) > 0.6
VOXELS[0] = VOXELS[6:] = False  # slices without the prostate
# Dates are not empty, so that dciodvfy has nothing to warn of.
STUDY = {"StudyDate": "20240229", "StudyTime": "101500", "StudyID": "7", "PatientSex": "M"}


def write_source(folder, kind):
    """A series of noise, and its direction."""
    noise = np.random.default_rng(1).integers(0, 900, SHAPE)
    if kind.startswith("enhanced"):
        order = [3, 0, 5, 1, 7, 6, 2, 4] if "shuffled" in kind else range(len(noise))
        write_enhanced(folder / "image.dcm", noise, order, OBLIQUE, **STUDY)
        return OBLIQUE
    direction = np.eye(3) if kind == "axial" else OBLIQUE
    write_series(folder, noise, direction=direction, **STUDY)
    return direction


def chosen(folder):
    return choose_series(find_series(folder), "", folder)


def segmented(folder, path, voxels=VOXELS):
    """Segments a series by a mask of these voxels; returns the mask."""
    series = chosen(folder)
    mask = sitk.GetImageFromArray(voxels.astype(np.uint8))
    mask.CopyInformation(read_series(series))
    save_segmentation(make_segmentation(mask, read_source(series)), mask, path)
    return mask


def sorted_points(points):
    return np.array(sorted(np.round(points, 4).tolist()))


def expected_points(direction, voxels=VOXELS):
    """Where the voxels of the mask lie in the patient, in mm."""
    return sorted_points(
        [
            position(k, direction) + PIXEL_MM * (direction[:, 0] * x + direction[:, 1] * y)
            for k, y, x in np.argwhere(voxels)
        ]
    )


def points_by_pydicom(path):
    ds = pydicom.dcmread(path)
    cosines = ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    row, column = np.reshape(np.array(cosines.ImageOrientationPatient, float), (2, 3))
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    down_mm, across_mm = map(float, measures.PixelSpacing)
    return sorted_points(
        [
            np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
            + across_mm * row * x
            + down_mm * column * y
            for plane, groups in zip(
                ds.pixel_array, ds.PerFrameFunctionalGroupsSequence, strict=True
            )
            for y, x in np.argwhere(plane)
        ]
    )


def points_by_simpleitk(path):
    image = sitk.ReadImage(str(path))
    foreground = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1].tolist()
    return sorted_points([image.TransformIndexToPhysicalPoint(index) for index in foreground])


KINDS = ["axial", "oblique", "enhanced", "enhanced, shuffled"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_voxel_lies_where_it_lay_in_the_patient(tmp_path, kind):
    direction = write_source(tmp_path / "series", kind)
    path = tmp_path / "mask.dcm"
    mask = segmented(tmp_path / "series", path)
    expected = expected_points(direction)
    np.testing.assert_allclose(points_by_pydicom(path), expected, atol=1e-3)
    np.testing.assert_allclose(points_by_simpleitk(path), expected, atol=1e-3)
    again = read_segmentation(path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), VOXELS)
    assert geometry_error(again, mask) < 1e-6
    # A program that is not ITK places the slices by the spacing that is written.
    measures = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == measures.SliceThickness == 3


@pytest.mark.parametrize("kind", ["oblique", "enhanced, shuffled"])
def test_each_frame_refers_to_the_slice_at_its_place(tmp_path, kind):
    write_source(tmp_path / "series", kind)
    segmented(tmp_path / "series", tmp_path / "mask.dcm")
    places = {}
    for file in (tmp_path / "series").iterdir():
        image = pydicom.dcmread(file)
        frames = image.get("PerFrameFunctionalGroupsSequence")
        for number, frame in enumerate(frames or [None], 1):
            where = frame.PlanePositionSequence[0] if frame else image
            key = image.SOPInstanceUID, number if frame else None
            places[key] = list(where.ImagePositionPatient)
    ds = pydicom.dcmread(tmp_path / "mask.dcm")
    seen = set()
    for frame in ds.PerFrameFunctionalGroupsSequence:
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        key = reference.ReferencedSOPInstanceUID, reference.get("ReferencedFrameNumber")
        assert list(frame.PlanePositionSequence[0].ImagePositionPatient) == places[key]
        seen.add(key)
    assert seen == set(places) and len(seen) == len(VOXELS)
    (series,) = ds.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == image.SeriesInstanceUID
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "StudyDate"):
        assert ds[keyword].value == image[keyword].value
    assert ds.SeriesInstanceUID != image.SeriesInstanceUID and ds.Modality == "SEG"


def test_the_segment_is_coded_coloured_and_says_what_made_it(tmp_path):
    write_source(tmp_path / "series", "axial")
    segmented(tmp_path / "series", tmp_path / "mask.dcm")
    ds = pydicom.dcmread(tmp_path / "mask.dcm")
    (segment,) = ds.SegmentSequence

    def code(keyword):
        (item,) = segment[keyword].value
        return item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning

    category = code("SegmentedPropertyCategoryCodeSequence")
    assert category == ("91723000", "SCT", "Anatomical Structure")
    assert code("SegmentedPropertyTypeCodeSequence") == ("41216001", "SCT", "Prostate")
    assert (ds.SegmentationType, segment.SegmentLabel) == ("BINARY", "Prostate")
    # scikit-image's L*, a*, b* of RGB (230, 158, 140), in DICOM's units.
    color = segment.RecommendedDisplayCIELabValue
    np.testing.assert_allclose(color, [46971, 39227, 38104], atol=10)
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == segment.SegmentAlgorithmName == "vnet-mindspore"
    assert algorithm.AlgorithmVersion == ds.SoftwareVersions == src.__version__
    assert segment.SegmentAlgorithmType == "AUTOMATIC"


def test_the_last_byte_need_not_be_full(tmp_path):
    voxels = np.ones((3, 9, 11), bool)
    write_series(tmp_path / "series", np.random.default_rng(1).integers(0, 900, voxels.shape))
    segmented(tmp_path / "series", tmp_path / "mask.dcm", voxels)
    expected = expected_points(np.eye(3), voxels)
    np.testing.assert_allclose(points_by_pydicom(tmp_path / "mask.dcm"), expected, atol=1e-3)


def test_an_empty_mask_still_has_the_series_geometry(tmp_path):
    write_source(tmp_path / "series", "oblique")
    mask = segmented(tmp_path / "series", tmp_path / "mask.dcm", np.zeros(SHAPE, bool))
    again = read_segmentation(tmp_path / "mask.dcm")
    assert not sitk.GetArrayFromImage(again).any() and geometry_error(again, mask) < 1e-6


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dciodvfy of dicom3tools")
@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_fault(tmp_path, kind):
    write_source(tmp_path / "series", kind)
    segmented(tmp_path / "series", tmp_path / "mask.dcm")
    command = ["dciodvfy", "-new", str(tmp_path / "mask.dcm")]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    assert said.splitlines() == ["Segmentation"]


def escaped(escape, encoding, *parts):
    """Components of a name by ISO 2022, as in annexes I and K of PS3.5."""
    return b"=" + b"^".join(escape + part.encode(encoding) for part in parts)


@pytest.mark.parametrize(
    ("character_set", "encoded", "name"),
    [
        ("GB18030", "=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
        (
            ["", "ISO 2022 IR 58"],
            escaped(b"\x1b$)A", "gb2312", "王", "小东"),
            "Wang^XiaoDong=王^小东",
        ),
        (
            ["", "ISO 2022 IR 149"],
            escaped(b"\x1b$)C", "euc_kr", "김", "희중"),
            "Wang^XiaoDong=김^희중",
        ),
        (["", "ISO 2022 IR 87"], "=山田^太郎".encode("iso2022_jp"), "Wang^XiaoDong=山田^太郎"),
        ("ISO_IR 100", "=Müller".encode("latin-1"), "Wang^XiaoDong=Müller"),
    ],
)
def test_a_name_in_another_character_set(tmp_path, character_set, encoded, name):
    noise = np.random.default_rng(1).integers(0, 900, SHAPE)
    blank = b"Wang^XiaoDong" + b"X" * len(encoded)
    tags = {"SpecificCharacterSet": character_set, "PatientName": blank.decode()}
    for file in write_series(tmp_path / "series", noise, **tags).iterdir():
        file.write_bytes(file.read_bytes().replace(blank, blank[:13] + encoded))
    segmented(tmp_path / "series", tmp_path / "mask.dcm")
    ds = pydicom.dcmread(tmp_path / "mask.dcm")
    assert str(ds.PatientName) == name and ds.SpecificCharacterSet == "ISO_IR 192"


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"FrameOfReferenceUID": None}, "no FrameOfReferenceUID"),
        ({"PatientSex": "X"}, "PatientSex"),
        ({"SpecificCharacterSet": "ISO_IR 999"}, "ISO_IR 999"),
    ],
)
def test_headers_that_no_segmentation_may_have(tmp_path, tags, says):
    noise = np.random.default_rng(1).integers(0, 900, SHAPE)
    write_series(tmp_path / "series", noise, **tags)
    with pytest.raises(DataError) as error:
        segmented(tmp_path / "series", tmp_path / "mask.dcm")
    message = str(error.value)
    assert message.startswith(f'{tmp_path / "series"}: series 1 "t2_tse_tra": ')
    assert says in message and "leave out --output_type dicom_seg" in message
    assert "\n" not in message and not (tmp_path / "mask.dcm").exists()


@pytest.mark.parametrize("parts", [[[0, 1, 2], [3, 4, 5, 6, 7]], [[k] for k in range(8)]])
def test_several_multi_frame_files(tmp_path, parts):
    noise = np.random.default_rng(1).integers(0, 900, SHAPE)
    uid = pydicom.uid.generate_uid()
    tags = {"SeriesInstanceUID": uid, "StudyInstanceUID": uid, "FrameOfReferenceUID": uid}
    for part in parts:
        write_enhanced(tmp_path / "series" / f"{part[0]}" / "image.dcm", noise, part, **tags)
    with pytest.raises(DataError, match=f"8 slices in {len(parts)} file.* Enhanced MR"):
        read_source(chosen(tmp_path / "series"))


@pytest.mark.parametrize("kind", ["text", "image", "truncated"])
def test_what_is_no_segmentation_of_ours(tmp_path, kind):
    write_source(tmp_path / "series", "enhanced")
    path = tmp_path / "series" / "image.dcm"
    if kind == "text":
        path.write_text("no DICOM")
    if kind == "truncated":
        segmented(tmp_path / "series", tmp_path / "mask.dcm")
        path.write_bytes((tmp_path / "mask.dcm").read_bytes()[:-30])
    with pytest.raises(DataError) as error:
        read_segmentation(path)
    assert str(error.value).startswith(f"{path}: not a segmentation")
