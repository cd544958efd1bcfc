"""Masks of any program against references: names, grids, and the report they get."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from src import evaluation
from src.api import compare_masks
from src.commands import command_parser
from src.commands import eval as eval_command
from src.data_manager import Case
from src.mask_folders import case_name, masks_for, reference_cases
from src.metrics import case_metrics
from src.utils.errors import DataError, UsageError
from tests.helpers import names_in, run_program, touch
from tests.volumes import image_of


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Case03_segmentation.mhd", "Case03"),
        ("Case03_test.mhd", "Case03"),
        ("Case03_test.seg.nrrd", "Case03"),
        ("Case03_mask_test.mhd", "Case03"),
        ("Case03.nii.gz", "Case03"),
        ("p1_seg.nrrd", "p1"),
        ("p1-label.nii", "p1"),
        ("prostate_03.nii.gz", "prostate_03"),
        ("_test.mha", "_test"),
        ("a_test_b.mha", "a_test_b"),
    ],
)
def test_the_name_of_a_case(file, name):
    assert case_name(file) == name


def refusal(references, masks, tmp_path):
    touch(tmp_path / "gt", *references)
    touch(tmp_path / "masks", *masks)
    with pytest.raises(DataError) as error:
        masks_for(reference_cases(tmp_path / "gt"), tmp_path / "masks")
    message = str(error.value)
    assert "\n" not in message
    return message


def test_masks_that_are_missing_or_too_many(tmp_path, capsys):
    names = [f"Case{number:02d}" for number in range(8)]
    references = [f"{name}_segmentation.mhd" for name in names]
    message = refusal(references, ["Case00.nii.gz", "Case99.nii.gz"], tmp_path)
    assert "no mask of Case01, Case02, Case03, Case04, Case05 and 2 more" in message
    assert "without a reference: Case99.nii.gz" in message
    touch(tmp_path / "masks", *(f"{name}.nii.gz" for name in names))
    cases = reference_cases(tmp_path / "gt")
    masks = masks_for(cases, tmp_path / "masks")
    assert masks == {name: tmp_path / "masks" / f"{name}.nii.gz" for name in names}
    assert "1 mask(s) left out, without a reference: Case99.nii.gz" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reference", "mask"),
    [
        ("P01_test_segmentation.mhd", "P01_test_test.mhd"),
        ("P01_test_segmentation.mhd", "P01_test_test.seg.nrrd"),
        ("P01_test_segmentation.mhd", "P01_test_segmentation.nii.gz"),
        ("P01_test_segmentation.mhd", "P01_test.nii.gz"),
        ("P01_test_segmentation.mhd", "P01.nii.gz"),
        ("P01_test_segmentation.mhd", "P01_test_0000_test.nii.gz"),
        ("P01_seg_segmentation.mhd", "P01_seg_test.mhd"),
        ("P01_test.mhd", "P01.nii.gz"),  # another prediction of P01
        ("P01.mhd", "P01_test.mhd"),
    ],
)
def test_a_case_may_be_named_as_a_prediction(reference, mask, tmp_path):
    touch(tmp_path / "gt", reference)
    touch(tmp_path / "masks", mask)
    (case,) = reference_cases(tmp_path / "gt")
    assert case.case_id == reference.split(".")[0].removesuffix("_segmentation").removesuffix(
        "" if "segmentation" in reference else "_test"
    )
    assert masks_for([case], tmp_path / "masks") == {case.case_id: tmp_path / "masks" / mask}


def test_a_case_of_a_split_may_be_named_as_a_prediction(tmp_path):
    names = ["P01_test", "P02_mask", "P03"]
    touch(tmp_path / "gt", *(f"{name}_segmentation.mhd" for name in names))
    touch(tmp_path / "masks", *(f"{name}_test.mhd" for name in names))
    cases = [Case(name, Path(), tmp_path / f"gt/{name}_segmentation.mhd") for name in names]
    masks = masks_for(cases, tmp_path / "masks")
    assert masks == {name: tmp_path / f"masks/{name}_test.mhd" for name in names}
    touch(tmp_path / "masks", "P01_test.mhd")
    with pytest.raises(DataError, match="P01_test.mhd and P01_test_test.mhd would both be"):
        masks_for(cases, tmp_path / "masks")
    touch(tmp_path / "gt", "P01_segmentation.mhd")
    with pytest.raises(DataError, match="P01 could be of P01 or P01_test; rename one"):
        masks_for(reference_cases(tmp_path / "gt"), tmp_path / "masks")


def test_predictions_of_nnunets_images(tmp_path):
    touch(tmp_path / "gt", "a.nii.gz", "b.nii.gz", "b_0000.nii.gz")
    touch(tmp_path / "masks", "a_0000_test.nii.gz", "b_0000_test.nii.gz", "b_test.nii.gz")
    masks = masks_for(reference_cases(tmp_path / "gt"), tmp_path / "masks")
    assert {name: path.name for name, path in masks.items()} == {
        "a": "a_0000_test.nii.gz",
        "b": "b_test.nii.gz",
        "b_0000": "b_0000_test.nii.gz",
    }
    touch(tmp_path / "masks", "a.nii.gz")
    with pytest.raises(DataError, match="a.nii.gz and a_0000_test.nii.gz would both be the mask"):
        masks_for(reference_cases(tmp_path / "gt"), tmp_path / "masks")
    (tmp_path / "masks" / "a.nii.gz").unlink()
    (tmp_path / "masks" / "b_test.nii.gz").unlink()
    with pytest.raises(DataError, match="no mask of b;"):
        masks_for(reference_cases(tmp_path / "gt"), tmp_path / "masks")


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ([], "no masks there"),
        (["a.nii.gz", "a_test.mhd"], "a.nii.gz and a_test.mhd would both be the mask of a"),
        (["a.nii.gz", "a.nrrd"], "keep one of them"),
    ],
)
def test_folders_that_are_no_set_of_masks(masks, words, tmp_path):
    assert words in refusal(["a.mhd"], masks, tmp_path)


def test_the_references_themselves_are_no_masks(tmp_path):
    touch(tmp_path / "gt", "a.mhd")
    with pytest.raises(DataError, match="gt/a.mhd: the reference itself, expected another"):
        masks_for(reference_cases(tmp_path / "gt"), tmp_path / "gt")


def test_two_cases_that_one_mask_could_be_of(tmp_path):
    touch(tmp_path / "masks", "a.mhd")
    cases = [Case(name, Path(name), None) for name in ("a", "a_seg")]
    with pytest.raises(DataError, match="mask a could be of a or a_seg; rename one"):
        masks_for(cases, tmp_path / "masks")


@pytest.fixture
def folders(tmp_path):
    """Two references and another program's masks, one stored in another order; the masks."""
    generator = np.random.default_rng(3)
    for folder in ("gt", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("Case00", "Case01"):
        reference = np.zeros((8, 16, 16), np.uint8)
        reference[2:7, 4:12, 5:13] = 1
        mask = reference.copy()
        mask[generator.random(mask.shape) < 0.03] ^= 1
        images = image_of(reference), image_of(mask)
        sitk.WriteImage(images[0], str(tmp_path / "gt" / f"{name}_segmentation.mhd"))
        stored = sitk.DICOMOrient(images[1], "RAS") if name == "Case01" else images[1]
        sitk.WriteImage(stored, str(tmp_path / "masks" / f"{name}.nii.gz"))
    return tmp_path


def evaluated(folder, *arguments):
    words = ["--masks", folder / "masks", "--set", f"dirPredictionImage={folder / 'out'}"]
    run_program("eval", *words, *arguments)
    return pd.read_csv(folder / "out" / "metrics.csv").set_index("case")


def test_another_programs_masks_get_the_same_numbers_and_report(folders, capsys):
    table = evaluated(folders, "--reference", str(folders / "gt"), "--language", "zh")
    page = (folders / "out" / "report.html").read_text("utf-8")
    assert "<h2>来源</h2>" in page and f'<th scope="row">掩码</th><td>{folders / "masks"}<' in page
    written = {"metrics.csv", "metrics.json", "summary.json", "overlays.png", "report.html"}
    assert {name for name in names_in(folders / "out") if name[0] != "."} == written
    summary = json.loads((folders / "out" / "summary.json").read_text())
    for case in summary["metric_per_case"]:
        name = "Case00" if "Case00" in case["prediction_file"] else "Case01"
        assert case["prediction_file"] == str(folders / "masks" / f"{name}.nii.gz")
        assert case["reference_file"] == str(folders / "gt" / f"{name}_segmentation.mhd")
        reference = sitk.ReadImage(case["reference_file"])
        mask = sitk.DICOMOrient(sitk.ReadImage(case["prediction_file"]), "LPS")
        arrays = [sitk.GetArrayFromImage(image) == 1 for image in (reference, mask)]
        both = np.count_nonzero(arrays[0] & arrays[1])
        assert case["metrics"]["1"]["TP"] == both
        dice = 2 * both / sum(map(np.count_nonzero, arrays))
        assert table.loc[name, "dice"] == pytest.approx(dice, abs=1e-6)
        assert case["metrics"]["1"]["Dice"] == pytest.approx(dice)
        mask.CopyInformation(reference)
        expected = case_metrics(reference, mask)["hausdorff_mm"]
        assert table.loc[name, "hausdorff_mm"] == pytest.approx(expected, abs=1e-6)
    out = capsys.readouterr().out
    assert "avg_dice: " in out and "save predicted label" not in out
    report = json.loads((folders / "out" / "metrics.json").read_text())
    assert report["masks"] == str(folders / "masks") and "checkpoint" not in report


def test_a_mask_of_another_organ_only_is_an_empty_prediction(folders, capsys):
    path = str(folders / "masks" / "Case01.nii.gz")
    sitk.WriteImage(sitk.ReadImage(path) * 3, path)
    table = evaluated(folders, "--reference", str(folders / "gt"), "--labels", "1,2")
    assert table["dice"]["Case00"] > 0.7 and table["dice"]["Case01"] == 0
    assert "empty" in table["findings"]["Case01"]
    assert f"{path}: none of the labels 1,2, so an empty mask" in capsys.readouterr().out


def test_masks_of_which_none_has_a_label_are_refused(folders):
    for path in (folders / "masks").iterdir():
        sitk.WriteImage(sitk.ReadImage(str(path)) * 255, str(path))
    with pytest.raises(DataError, match="nor any other has a voxel of --labels 1,2"):
        evaluated(folders, "--reference", str(folders / "gt"), "--labels", "1,2")
    assert not (folders / "out").exists()


def test_with_the_cases_of_a_split_the_images_are_shown(folders, monkeypatch):
    (folders / "img").mkdir()
    grey = np.random.default_rng(0).integers(0, 900, (8, 16, 16)).astype(np.int16)
    for name in ("Case00", "Case01"):
        sitk.WriteImage(image_of(grey), str(folders / "img" / f"{name}.mhd"))
    (folders / "val.csv").write_text("Case01.mhd\n")
    drawn = []
    monkeypatch.setattr(evaluation.Album, "add", lambda album, row, case: drawn.append(case))
    monkeypatch.setattr(evaluation, "write_pictures", lambda *arguments: None)
    table = compare_masks(
        folders / "masks", None, folders, folders / "val.csv", output_path=folders / "out"
    )
    assert table["case"].tolist() == [case.case for case in drawn] == ["Case01"]
    assert (sitk.GetArrayFromImage(drawn[0].image) == grey).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda mask: mask[:, :, 1:], "Case00.nii.gz: not on the grid of its reference"),
        (lambda mask: mask * 2, "expected only 0 and 1"),
        (lambda mask: sitk.Cast(mask, sitk.sitkFloat32) * 0.4, "if these are probabilities"),
        (lambda mask: sitk.JoinSeries([mask, mask]), "several volumes, expected a mask of one"),
    ],
)
@pytest.mark.parametrize("name", ["masks/Case00.nii.gz", "gt/Case00_segmentation.mhd"])
def test_masks_that_do_not_fit_leave_nothing(folders, change, words, name):
    path = str(folders / name)
    sitk.WriteImage(change(sitk.ReadImage(path)), path)
    with pytest.raises(DataError, match=words):
        evaluated(folders, "--reference", str(folders / "gt"))
    assert not (folders / "out").exists()


def test_either_references_or_a_split(folders):
    with pytest.raises(UsageError, match="either"):
        compare_masks(folders / "masks")
    with pytest.raises(UsageError, match="either"):
        compare_masks(folders / "masks", folders / "gt", folders, "val.csv")
    for words in (
        ["--ckpt_path", "RUN", "--reference", "gt"],
        ["--masks", "masks", "--reference", "gt", "--data_path", "data"],
        ["--masks", "masks", "--reference", "gt", "--eval_split_file_path", "val.csv"],
    ):
        with pytest.raises(UsageError, match="--reference"):
            eval_command.execute(command_parser("eval", "eval.py").parse_args(words))


@pytest.mark.parametrize("setting", ["threshold=0.3", "channel=0", "fold=1"])
def test_settings_without_an_effect_are_refused(setting):
    words = ["--masks", "masks", "--reference", "gt", "--set", setting]
    match = f"{setting.split('=')[0]}: has no effect on masks that are there; leave"
    with pytest.raises(UsageError, match=match):
        eval_command.execute(command_parser("eval", "eval.py").parse_args(words))
