"""Trees of DICOM files, one folder per patient, with and without masks."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from src.promise12.checking import check
from src.promise12.layouts import Options
from src.promise12.placing import lay_out
from src.utils.errors import DataError
from tests.helpers import tree

SPACING_MM = (0.625, 0.625, 3.3)
ORIGIN = (-31.1, 17.3, -40.123456789)
ROWS, COLUMNS, SLICES = 9, 8, 5


def write_series(
    folder, study, seed=0, description="t2_tse_tra", number=5, modality="MR", brightest=900
):
    """A stack of slices, as files in no order; returns its voxels (z, y, x)."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (SLICES, ROWS, COLUMNS)
    values = np.random.default_rng(seed).integers(0, brightest, shape).astype("<u2")
    uid = generate_uid()
    for index, pixels in enumerate(values):
        ds = pydicom.Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, uid
        ds.Modality, ds.SeriesDescription, ds.SeriesNumber = modality, description, number
        ds.PatientID, ds.InstanceNumber = "anonymous", SLICES - index
        ds.EchoTime, ds.RepetitionTime, ds.ScanningSequence = 100, 4000, "SE"
        ds.Rows, ds.Columns = ROWS, COLUMNS
        ds.PixelSpacing, ds.SliceThickness = list(SPACING_MM[:2]), SPACING_MM[2]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [*ORIGIN[:2], round(ORIGIN[2] + index * SPACING_MM[2], 9)]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelData = pixels.tobytes()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.save_as(folder / f"{7 * index % SLICES}.dcm", enforce_file_format=True)
    return values


def write_mask(path, label=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    values[1:3, 2:5, 2:6] = label
    mask = sitk.GetImageFromArray(values)
    mask.SetSpacing(SPACING_MM)
    mask.SetOrigin(ORIGIN)
    sitk.WriteImage(mask, str(path))


@pytest.mark.parametrize(
    "places, names",
    [
        (("P1", "P2"), ("P1", "P2")),
        (("P1/study/5", "P2/study/5"), ("P1", "P2")),
        (("train/P1/5", "train/P2/5"), ("P1", "P2")),
        (("export/a/5", "export/b/5"), ("a", "b")),
        (("only/study/5",), ("only",)),
        (("",), ("scans",)),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_patients(tmp_path, capsys, places, names, zipped):
    values = {
        name: write_series(tmp_path / "scans" / place, generate_uid(), seed)
        for seed, (place, name) in enumerate(zip(places, names, strict=True))
    }
    source = tmp_path / "scans"
    if zipped:
        source = Path(shutil.make_archive(str(source), "zip", tmp_path, "scans"))
        if len(places) == 1:  # the outermost folder is the patient's
            names, values = ("scans",), {"scans": values[names[0]]}
    lay_out([source], tmp_path / "out")
    assert "taken for DICOM, one folder per patient" in capsys.readouterr().out
    folder = "TrainData/img" if places[0].startswith("train") else "TestData/img"
    assert set(tree(tmp_path / "out")) == {f"{folder}/{name}.mha" for name in names}
    for name in names:
        image = sitk.ReadImage(str(tmp_path / "out" / folder / f"{name}.mha"))
        assert np.array_equal(sitk.GetArrayFromImage(image), values[name])
        assert image.GetSpacing() == pytest.approx(SPACING_MM, abs=1e-9)
        assert image.GetOrigin() == pytest.approx(ORIGIN, abs=1e-9)
        assert image.GetDirection() == pytest.approx((1, 0, 0, 0, 1, 0, 0, 0, 1))


def cut_preambles(folder):
    """Leaves of each file its data set only."""
    for path in folder.rglob("*.dcm"):
        content = path.read_bytes()
        (length,) = struct.unpack("<I", content[140:144])  # of the group of the file's own elements
        path.write_bytes(content[144 + length :])


@pytest.mark.parametrize("has_preamble", [True, False])
def test_series_of_a_study(tmp_path, has_preamble):
    """Two series of one study in two folders are one patient; --series says which is meant."""
    study = generate_uid()
    write_series(tmp_path / "P1/a", study, 1, "t2_tse_tra", 4)
    values = write_series(tmp_path / "P1/b", study, 2, "t2_tse_tra_2", 6)
    if not has_preamble:
        cut_preambles(tmp_path / "P1")
    with pytest.raises(DataError, match="several axial T2 series.*--series"):
        lay_out([tmp_path / "P1"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    lay_out([tmp_path / "P1"], tmp_path / "out", Options(series="6"))
    image = sitk.ReadImage(str(tmp_path / "out/TestData/img/P1.mha"))
    assert np.array_equal(sitk.GetArrayFromImage(image), values)


@pytest.mark.parametrize(
    "mask", ["{}/mask.nrrd", "{}/5/gland_segmentation.nrrd", "masks/{}.nrrd", "{}_seg.nrrd"]
)
def test_masks_beside_dicom(tmp_path, mask):
    for name in ("P1", "P2"):
        write_series(tmp_path / "scans" / name / "5", generate_uid(), len(name))
        write_mask(tmp_path / "scans" / mask.format(name))
    lay_out([tmp_path / "scans"], tmp_path / "out")
    frame = check(tmp_path / "out")
    assert frame["case"].tolist() == ["TrainData/P1", "TrainData/P2"]
    assert frame["problems"].tolist() == ["", ""]
    assert frame["prostate_ml"].tolist() == pytest.approx([24 * 0.625 * 0.625 * 3.3 / 1000] * 2)


def test_what_cannot_be_read_is_told(tmp_path, capsys):
    """A patient whose files are all empty, an image of another format; deep folders are read."""
    for name in ("P1", "P3"):
        write_series(tmp_path / "scans" / name / "/".join("abcdefgh"), generate_uid())
    (tmp_path / "scans" / "P2").mkdir()
    (tmp_path / "scans" / "P2" / "1.dcm").touch()
    (tmp_path / "scans" / "P3" / "vol.mgz").touch()
    lay_out([tmp_path / "scans"], tmp_path / "out")
    out = capsys.readouterr().out
    assert "1 damaged or empty DICOM file(s) left out: P2/1.dcm" in out
    assert "1 image(s) of formats that are not read: P3/vol.mgz" in out
    assert set(tree(tmp_path / "out")) == {f"TestData/img/{name}.mha" for name in ("P1", "P3")}


def test_files_without_a_preamble_in_a_zip(tmp_path):
    for name in ("P1", "P2"):
        write_series(tmp_path / "scans" / name, generate_uid())
    cut_preambles(tmp_path / "scans" / "P2")
    source = Path(shutil.make_archive(str(tmp_path / "scans"), "zip", tmp_path, "scans"))
    lay_out([source], tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {f"TestData/img/{name}.mha" for name in ("P1", "P2")}


def test_second_run_keeps_what_was_converted(tmp_path, capsys):
    write_series(tmp_path / "P1", generate_uid())
    for _ in range(2):
        lay_out([tmp_path / "P1"], tmp_path / "out")
    assert "0 files written, 1 there already" in capsys.readouterr().out


def test_dicom_and_other_images(tmp_path):
    write_series(tmp_path / "scans/P1/5", generate_uid())
    write_mask(tmp_path / "scans/P1/t2.nrrd")
    with pytest.raises(DataError, match=r"holds DICOM \(.*\) and other images \(P1/t2.nrrd\)"):
        lay_out([tmp_path / "scans"], tmp_path / "out")
    lay_out([tmp_path / "scans"], tmp_path / "out", Options(image_pattern="{case}/?"))
    assert set(tree(tmp_path / "out")) == {"TestData/img/P1.mha"}


def test_segmentation_objects_are_named(tmp_path, capsys):
    study = generate_uid()
    write_series(tmp_path / "scans/P1/5", study)
    write_series(tmp_path / "scans/P1/9", study, 3, "gland", 9, modality="RTSTRUCT")
    lay_out([tmp_path / "scans"], tmp_path / "out", Options(series="5"))
    assert "not read: scans/P1/9 (RTSTRUCT)" in capsys.readouterr().out


def test_label_map_as_an_mr_series(tmp_path):
    write_series(tmp_path / "scans/P1", generate_uid(), brightest=3)
    with pytest.raises(DataError, match=r"P1: only the values 0, 1, 2: looks like a label map"):
        lay_out([tmp_path / "scans"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_disc_with_a_dicomdir(tmp_path):
    for name in ("A", "B"):
        write_series(tmp_path / "disc/DICOM" / name, generate_uid(), ord(name))
    shutil.copy(tmp_path / "disc/DICOM/A/0.dcm", tmp_path / "disc/DICOMDIR")
    lay_out([tmp_path / "disc"], tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {"TestData/img/A.mha", "TestData/img/B.mha"}


@pytest.mark.parametrize("damage", ["missing", "no DICOM any more"])
@pytest.mark.parametrize("zipped", [False, True])
def test_bad_series_leaves_nothing(tmp_path, damage, zipped):
    source = tmp_path / "scans"
    for name in ("P1", "P2"):
        write_series(source / name, generate_uid())
    if damage == "missing":
        (source / "P2/2.dcm").unlink()
    else:
        (source / "P2/2.dcm").write_bytes(b"damaged" * 99)
    if zipped:
        source = Path(shutil.make_archive(str(source), "zip", tmp_path, "scans"))
    with pytest.raises(DataError, match=r"scans(.zip: scans)?/P2"):
        lay_out([source], tmp_path / "out")
    assert not (tmp_path / "out").exists()
