"""Files of a prediction's images: of each output type, together, and not of an earlier network."""

import importlib.util
import subprocess
import sys
import warnings

import numpy as np
import pytest
import SimpleITK as sitk

from src import result_files
from src.input_images import find_images
from src.prediction import Outputs, predict
from src.utils.errors import DataError, UsageError
from src.utils.output_folder import MANIFEST, list_outputs
from tests.dicom_study import write_series, write_study
from tests.helpers import ROOT, names_in, rows_of, strict_json, touch, tree
from tests.networks import bright, counting

TYPES = ("seg_nrrd", "dicom_seg", "image")


def voxels_of(path):
    """The foreground (z, y, x) of a mask, in the order of the patient's z."""
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")) > 0


@pytest.mark.usefixtures("undrawn")
def test_all_output_types_hold_the_same_mask(tmp_path, config, results):
    pytest.importorskip("highdicom")  # among the packages of scripts/run_tests.sh
    images = find_images([write_study(tmp_path / "study")])
    (row,) = predict(bright, images, config, {}, Outputs(TYPES))
    names = {
        "image": "study_test.nii.gz",
        "dicom_seg": "study_test.dcm",
        "seg_nrrd": "study_test.seg.nrrd",
    }
    (written,) = strict_json(results / "volumes.json")["cases"]
    assert written == row and row["outputs"] == names and row["mask"] == names["image"]
    assert set(names.values()) < list_outputs(results) == {*names_in(results)} - {MANIFEST}
    masks = [voxels_of(results / name) for name in names.values()]
    assert masks[0].shape == (10, 24, 24) and masks[0][4:6, 9:15, 9:15].all()
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    # The gland of 8 x 8 x 4 voxels of 1.25 x 1.25 x 3 mm: 10 x 10 x 12 mm.
    assert [row[key] for key in ("left_right_mm", "front_back_mm", "head_foot_mm")] == (
        pytest.approx([10, 10, 12], abs=3)
    )
    assert 0.5 < row["mean_probability"] <= 1
    assert row["findings"] == ["small"]

    # The same again is kept; another type is not there yet.
    network, asked = counting()
    predict(network, images, config, {}, Outputs(TYPES), skip_existing=True)
    assert not asked
    (results / names["dicom_seg"]).unlink()
    predict(network, images, config, {}, Outputs(TYPES[:1]), skip_existing=True)
    assert not asked
    (row,) = predict(network, images, config, {}, Outputs(TYPES), skip_existing=True)
    assert len(asked) == 1 and (results / names["dicom_seg"]).exists()


def test_a_report_and_a_later_run_read_a_mask_that_is_dicom_only(tmp_path, config, results):
    """The report of a later prediction shows the masks of an earlier one again."""
    pytest.importorskip("highdicom")
    images = find_images([write_study(tmp_path / "study")])
    wanted = Outputs(["dicom_seg"])
    predict(bright, images, config, {}, wanted._replace(report=False))
    network, asked = counting()
    (row,) = predict(network, images, config, {}, wanted, skip_existing=True)
    assert not asked and row["outputs"] == {"dicom_seg": "study_test.dcm"}
    assert "<article" in (results / "report.html").read_text("utf-8")


@pytest.mark.parametrize("failing", ["save_seg_nrrd", "save_volume"])
@pytest.mark.usefixtures("undrawn")
def test_of_an_image_whose_files_cannot_all_be_written_there_is_none(
    data, results, config, monkeypatch, failing
):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    images = find_images([data / "img" / "Case0.mhd"])
    monkeypatch.setattr(result_files, failing, fail)
    with pytest.raises(DataError, match="Case0_test.*cannot be written .No space left"):
        predict(bright, images, config, {}, Outputs(["image", "seg_nrrd"]))
    assert not results.exists()


@pytest.mark.usefixtures("undrawn")
def test_no_mask_of_another_type_outlives_the_network_that_made_it(data, results, config, capsys):
    images = find_images([data / "img" / "Case0.mhd"])
    kept = {"a.txt", "Case1_test.seg.nrrd"}
    results.mkdir()
    touch(results, *kept)
    predict(bright, images, config, {}, Outputs(["image", "seg_nrrd"], probability=True))
    # The same network: all are still right.
    predict(bright, images, config, {}, Outputs(["image"]), skip_existing=True)
    before = {name for name in names_in(results) if "Case0" in name}
    assert {"Case0_test.seg.nrrd", "Case0_probability.zraw"} < before
    predict(lambda batch: 1 - bright(batch), images, config, {}, Outputs(["image"]))
    left = {name for name in names_in(results) if "Case" in name or name in kept}
    assert left == {*kept, "Case0_test.mhd", "Case0_test.zraw"}
    assert "removing 3 file(s) of an earlier run" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_studies_get_a_folder_each(tmp_path, config, results):
    for patient in ("A", "B"):
        write_study(tmp_path / "all" / patient, patient=patient)
    images, wanted = find_images([tmp_path / "all"]), Outputs(["image", "seg_nrrd"])
    for run in range(2):
        rows = predict(bright, images, config, {}, wanted, skip_existing=bool(run))
    assert [row["mask"] for row in rows] == ["A/A_test.nii.gz", "B/B_test.nii.gz"]
    files = set(tree(results))
    assert {f"{name}/{name}_test{end}" for name in "AB" for end in (".nii.gz", ".seg.nrrd")} < files
    assert list_outputs(results) == files - {MANIFEST}


@pytest.mark.usefixtures("undrawn")
def test_a_series_without_what_a_segmentation_needs_is_one_problem(tmp_path, config, results):
    pytest.importorskip("highdicom")
    for name, tags in (("good", {}), ("bad", {"FrameOfReferenceUID": None})):
        noise = np.random.default_rng(1).integers(0, 90, (10, 24, 24))
        noise[3:7, 8:16, 8:16] += 500
        write_series(tmp_path / name, noise, **tags)
    images = find_images([tmp_path / "bad", tmp_path / "good"])
    with pytest.raises(DataError, match="1 of 2 images"):
        predict(bright, images, config, {}, Outputs(["image", "dicom_seg"]))
    assert "no FrameOfReferenceUID" in rows_of(results)["bad"]["problem"]
    assert [name for name in names_in(results) if "_test" in name] == [
        "good_test.dcm",
        "good_test.nii.gz",
    ]


@pytest.mark.parametrize("tags", [{"FrameOfReferenceUID": None}, {"PatientBirthDate": "1950?"}])
def test_headers_that_no_segmentation_may_have_are_told_before_the_network_runs(
    tmp_path, config, results, tags
):
    pytest.importorskip("highdicom")
    noise = np.random.default_rng(1).integers(0, 90, (10, 24, 24))
    with warnings.catch_warnings(action="ignore"):
        write_series(tmp_path / "bad", noise, **tags)
    images = find_images([tmp_path / "bad"])
    network, asked = counting()
    with pytest.raises(DataError, match="leave out --output_type dicom_seg"):
        predict(network, images, config, {}, Outputs(["image", "dicom_seg"]))
    assert not asked and not results.exists()


@pytest.mark.parametrize(
    ("types", "absent", "says"),
    [
        (["dicom_seg"], [], "Case1.nii.gz is no DICOM series"),
        (["image", "dicom_seg"], ["highdicom"], "pip install -r requirements-dicom.txt"),
        (["stl"], [], "--output_type stl: expected one or several of image, dicom_seg, seg_nrrd"),
    ],
)
def test_output_types_that_cannot_be_are_refused_at_once(
    data, results, config, monkeypatch, types, absent, says
):
    if not absent:
        pytest.importorskip("highdicom")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else real(name)
    )
    images = find_images([data / "img" / "Case1.nii.gz"])
    with pytest.raises(UsageError) as error:
        predict(lambda _: pytest.fail("segmented"), images, config, {}, Outputs(types))
    assert says in str(error.value) and "\n" not in str(error.value)
    assert not results.exists()


def test_highdicom_is_imported_only_where_it_is_needed():
    """It is optional, and takes a second."""
    program = "import sys, src.prediction, src.images.dicom.segmentation; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    modules = process.stdout.split()
    assert "pydicom" in modules and "highdicom" not in modules
