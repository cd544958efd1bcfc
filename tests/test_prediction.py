"""Predictions of many images: their masks, their rows in the tables, and what an end leaves."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from contextlib import ExitStack
from unittest import mock

import mindspore as ms
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from src import prediction
from src.config import override_config
from src.data_manager import Case
from src.evaluation import compare_masks, evaluate
from src.input_images import InputImage, find_images
from src.prediction import Outputs, predict
from src.predictor import LazyNetwork
from src.report.tables import VolumesTable
from src.utils.errors import DataError
from src.utils.output_folder import MANIFEST, acquire, list_outputs
from tests.dicom_study import write_series, write_study
from tests.helpers import ROOT, names_in, rows_of, run_program, strict_json, tree, wait_until
from tests.networks import bright, counting
from tests.volumes import geometry_error, read_array

# DICOM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tree", "zip"])
def test_a_study_is_segmented_by_the_series_that_is_asked_for(tmp_path, config, results, kind):
    study = write_study(tmp_path / "study.1", ("t2_tse_tra", "t2_tse_tra"))
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "study.1.zip", "w") as archive:
            for path in sorted(study.rglob("IM*")):
                archive.write(path, path.relative_to(tmp_path))
        study = tmp_path / "study.1.zip"
    images = find_images([study])
    assert images == [InputImage("study.1", study)]
    with pytest.raises(DataError, match="several axial T2 series"):
        predict(bright, images, config, {})
    predict(bright, find_images([study], "2"), config, {})
    mask = sitk.ReadImage(str(results / "study.1_test.nii.gz"))
    assert mask.GetSize() == (24, 24, 10)
    np.testing.assert_allclose(mask.GetSpacing(), (1.25, 1.25, 3), atol=1e-6)
    assert sitk.GetArrayFromImage(mask)[4:6, 9:15, 9:15].all()
    (row,) = strict_json(results / "volumes.json")["cases"]
    assert (row["image"], row["series"]) == (str(study), "2")
    assert "<article" in (results / "report.html").read_text("utf-8")


@pytest.mark.parametrize("types", [["image"], ["seg_nrrd"]])
@pytest.mark.usefixtures("undrawn")
def test_a_name_that_metaimage_takes_for_a_list_is_this_images_problem(
    data, write_case, config, results, types
):
    path, _ = write_case(data, "Lister", ".mhd")
    path = path.rename(path.with_name("LIST.mhd"))
    images = [InputImage("Case0", data / "img" / "Case0.mhd"), InputImage("LIST", path)]
    if types == ["seg_nrrd"]:
        rows = predict(bright, images, config, {}, Outputs(types))
        assert [row["problem"] for row in rows] == [None, None]
        return
    with pytest.raises(DataError, match="1 of 2 images could not be segmented"):
        predict(bright, images, config, {}, Outputs(types))
    rows = rows_of(results)
    assert rows["LIST"]["problem"].startswith("LIST_test.mhd: MetaImage takes LIST")
    assert read_array(results / rows["Case0"]["mask"]).any()


@pytest.mark.usefixtures("undrawn")
def test_a_folder_of_dicom_files_may_be_named_like_a_nifti_file(tmp_path, config, results):
    array = np.random.default_rng(0).integers(0, 900, (10, 24, 24))
    write_series(tmp_path / "P1.nii.gz", array)
    (row,) = predict(bright, find_images([tmp_path / "P1.nii.gz"]), config, {})
    assert row["problem"] is None and read_array(results / row["mask"]).shape == (10, 24, 24)


# Prediction -------------------------------------------------------------------------------------


def test_a_prediction_leaves_masks_in_their_own_format_and_volumes(data, results, config, capsys):
    table = pd.DataFrame(predict(bright, find_images([data / "img"]), config, {}))
    assert names_in(results) == [
        MANIFEST,
        "Case0_test.mhd",
        "Case0_test.zraw",
        "Case1_test.nii.gz",
        "Case2_test.nrrd",
        "overlays.png",
        "report.html",
        "volumes.csv",
        "volumes.json",
    ]
    written = pd.read_csv(results / "volumes.csv")
    unchanged = [name for name in written.columns if name not in ("findings", "problem")]
    pd.testing.assert_frame_equal(written[unchanged], table[unchanged])
    assert written.columns.tolist() == [
        *("case", "prostate_ml", "mask", "findings", "problem", "ellipsoid_ml"),
        *("left_right_mm", "front_back_mm", "head_foot_mm", "mean_probability"),
    ]
    for row, name, spacing_mm in zip(
        written.itertuples(),
        ("Case0_test.mhd", "Case1_test.nii.gz", "Case2_test.nrrd"),
        ((1.25, 1.25, 2.5), (1.25, 1.25, 2.5), (1, 1.1, 3)),
        strict=True,
    ):
        assert (row.case, row.mask) == (name[:5], name)
        voxels = np.count_nonzero(read_array(results / name))
        by_hand = voxels * spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / 1000
        assert row.prostate_ml == pytest.approx(by_hand, abs=5.1e-4) and voxels > 100
        image = sitk.ReadImage(str(next((data / "img").glob(f"{row.case}.[mn]*[diz]"))))
        mask = sitk.ReadImage(str(results / name))
        assert geometry_error(mask, image) < 1e-5
    printed = capsys.readouterr().out
    assert "Case1_test.nii.gz" in printed and f"{written.prostate_ml[1]:.3f}"[:4] in printed
    assert printed.splitlines()[-1].endswith(f" {results / 'report.html'}")
    page = (results / "report.html").read_text("utf-8")
    assert (
        f"<h1>{written.prostate_ml.mean():.1f} ± {written.prostate_ml.std(ddof=0):.1f} ml" in page
    )
    assert page.count("<article") == 3


@pytest.mark.usefixtures("undrawn")
def test_probabilities_on_demand(data, results, config):
    def half(batch):
        return ms.Tensor((0.25 + 0.5 * bright(batch).asnumpy()).astype(np.float32))

    predict(
        half, find_images([data / "img" / "Case1.nii.gz"]), config, {}, Outputs(probability=True)
    )
    assert "Case1_probability.nii.gz" in names_in(results)
    probability = read_array(results / "Case1_probability.nii.gz")
    mask = read_array(results / "Case1_test.nii.gz")
    assert probability.dtype == np.float32
    assert probability.min() >= 0 and probability.max() == pytest.approx(0.75)
    assert probability[mask == 1].min() > 0.5
    predict(half, find_images([data / "img" / "Case0.mhd"]), config, {}, Outputs(probability=True))
    assert {"Case0_probability.mhd", "Case0_probability.zraw"} <= set(names_in(results))


@pytest.mark.parametrize(
    "name", ["Case0_probability.zraw", "Case0_test.mhd", "volumes.csv", "volumes.json"]
)
@pytest.mark.usefixtures("undrawn")
def test_a_prediction_leaves_foreign_files_alone(data, results, config, name):
    results.mkdir()
    (results / name).write_text("mine")
    images = find_images([data / "img"])
    with pytest.raises(DataError, match=f"{name}: there already"):
        predict(bright, images, config, {}, Outputs(probability=True))
    assert names_in(results) == [name]
    (results / name).rename(results / "elsewhere")
    predict(bright, images, config, {})
    predict(bright, images, config, {})  # our own may go
    assert (results / "elsewhere").read_text() == "mine"


def test_an_empty_prediction_is_zero_ml(data, results, config):
    empty = predict(
        lambda batch: ms.Tensor(np.zeros(batch.shape[2:], np.float32)[None]),
        find_images([data / "img" / "Case0.mhd"]),
        config,
        {},
    )
    assert [row["prostate_ml"] for row in empty] == [0]
    assert not read_array(results / "Case0_test.mhd").any()
    assert "0.0&nbsp;ml, the mask is empty" in (results / "report.html").read_text("utf-8")


# Bad images among good ones -----------------------------------------------------------------------


def spoil(path, kind, make_image):
    """Of these a reader of any format must say that they are no MR image."""
    if kind == "missing":
        path.unlink()
    elif kind == "constant":
        sitk.WriteImage(make_image(np.zeros((3, 4, 5), np.int16)), str(path))
    elif kind == "label map":
        array = np.zeros((12, 24, 26), np.uint8)
        array[3:8, 8:16, 8:18] = 1
        array[5:8, 12:16, 8:18] = 4
        sitk.WriteImage(make_image(array), str(path))
    elif kind == "no contrast":
        array = np.zeros((90, 12, 90), np.float32)
        array[0] = np.random.default_rng(0).uniform(50, 90, (12, 90))
        sitk.WriteImage(make_image(array), str(path))
    else:
        path.write_bytes(b"rubbish" * 100)


REASONS = {
    "missing": "no such file",
    "constant": "every voxel is 0",
    "label map": "only the values 0, 1, 4: looks like a label map, not an MR image",
    "no contrast": "no contrast within 40 x 40 x 40 mm about its centre",
    "rubbish": "header cannot be read",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_bad_image_does_not_keep_the_others_from_their_masks(
    data, results, config, make_image, capsys, write_case, kind, request
):
    drawn = kind == "label map"
    if not drawn:
        request.getfixturevalue("undrawn")
    path, _ = write_case(data, "Case1b", ".mha", seed=4)
    images = find_images([data / "img"])
    spoil(path, kind, make_image)
    with pytest.raises(DataError) as error:
        predict(bright, images, config, {})
    assert str(error.value) == (
        f"1 of 4 images could not be segmented; {results / 'volumes.csv'} says why"
    )
    rows = rows_of(results)
    assert list(rows) == [image.name for image in images]
    for name, row in rows.items():
        if name != "Case1b":
            assert row["problem"] == "" and read_array(results / row["mask"]).any()
    problem = rows["Case1b"]["problem"]
    assert problem.startswith(f"{path}: ") and REASONS[kind] in problem
    assert {key: text for key, text in rows["Case1b"].items() if text} == {"problem": problem}
    printed = capsys.readouterr()
    assert problem in printed.out and f"error: Case1b: {problem}\n" in printed.err
    content = strict_json(results / "volumes.json")
    assert "Case1b" in content["flagged"]
    (row,) = [row for row in content["cases"] if row["case"] == "Case1b"]
    assert (row["problem"], row["mask"], row["prostate_ml"], row["findings"]) == (
        problem,
        None,
        None,
        [],
    )
    if drawn:
        page = (results / "report.html").read_text("utf-8")
        assert f"Case1b</span> not segmented, {problem}</li>" in page
        assert page.count("<article") == 3
    # The only one: as if nothing had been.
    before = tree(results)
    with pytest.raises(DataError) as error:
        predict(bright, [InputImage("Case1b", path)], config, {})
    assert str(error.value) == problem
    assert tree(results) == before


def failing(batch):
    raise RuntimeError("no kernel")


@pytest.mark.parametrize("earlier", [[], ["Case0.mhd"]])
@pytest.mark.parametrize("fault", ["network", "disk", "Ctrl-C"])
@pytest.mark.usefixtures("undrawn")
def test_what_fails_before_the_first_row_leaves_all_as_it_was(
    data, results, config, monkeypatch, earlier, fault
):
    images = find_images([data / "img" / "Case1.nii.gz"])
    network = failing if fault == "network" else bright
    if earlier:
        predict(bright, find_images([data / "img" / name for name in earlier]), config, {})
    before = tree(results) if earlier else None
    if fault != "network":
        images = find_images([data / "img"])
        error = DataError("disk is full") if fault == "disk" else KeyboardInterrupt()
        monkeypatch.setattr(prediction, "write_volumes", mock.Mock(side_effect=error))
    # Once the image is being segmented; of several only the disk or Ctrl-C ends all.
    with pytest.raises((RuntimeError, DataError, KeyboardInterrupt)):
        predict(network, images, config, {"checkpoint_sha256": "another"})
    assert (tree(results) if results.exists() else None) == before


@pytest.mark.usefixtures("undrawn")
def test_what_fails_later_leaves_the_rows_that_are_complete(data, results, config, monkeypatch):
    whole = prediction.write_volumes
    effects = [whole, DataError("disk is full")]

    def write(*arguments):
        effect = effects.pop(0)
        if isinstance(effect, DataError):
            raise effect
        effect(*arguments)

    monkeypatch.setattr(prediction, "write_volumes", write)
    with pytest.raises(DataError, match="disk is full"):
        predict(bright, find_images([data / "img"]), config, {})
    assert list(rows_of(results)) == ["Case0"] and (results / "Case0_test.mhd").exists()


def test_what_fails_leaves_the_table_to_others(data, results, config):
    """Those that have joined meanwhile write their rows into it."""
    with ExitStack() as other:

        def join_and_fail(batch):
            other.enter_context(acquire(results, ["Other"]))
            failing(batch)

        with pytest.raises(RuntimeError):
            predict(join_and_fail, find_images([data / "img" / "Case1.nii.gz"]), config, {})
        assert rows_of(results) == {} and "volumes.csv" in list_outputs(results)


@pytest.mark.parametrize("joins", ["before", "after"])
@pytest.mark.usefixtures("undrawn")
def test_who_comes_while_a_table_is_put_back_shares_it_or_is_the_first(
    data, results, config, monkeypatch, joins
):
    """Rows of the earlier prediction must not stay among those of the one that comes."""
    images = find_images([data / "img"])
    predict(bright, images[:1], config, {})
    whole = VolumesTable.restore
    with ExitStack() as other:
        alone = []

        def restore(*arguments):
            if joins == "after":
                whole(*arguments)
            alone.append(other.enter_context(acquire(results, ["Other"])))
            if joins == "before":
                whole(*arguments)

        monkeypatch.setattr(VolumesTable, "restore", restore)
        with pytest.raises(RuntimeError):
            predict(failing, images[1:2], config, {})
        assert alone == [joins == "after"]
        assert list(rows_of(results)) == (["Case0"] if joins == "after" else [])
        with pytest.raises(DataError, match="another prediction is writing its Other"):
            acquire(results, ["Other"]).__enter__()


@pytest.mark.parametrize("change", ["image", "mask"])
def test_an_earlier_mask_is_shown_on_its_own_image_only(data, results, config, capsys, change):
    """Not on another scan that has its file's name now, nor one that was edited since."""
    images = find_images([data / "img"])
    predict(bright, images[:2], config, {})
    if change == "image":
        image = sitk.ReadImage(str(images[0].source))
        image[0, 0, 0] = 5
        sitk.WriteImage(image, str(images[0].source))
        reason = "another image than Case0_test.mhd was made of"
    else:
        with (results / "Case0_test.zraw").open("ab") as file:
            file.write(b"edited")
        reason = "edited or damaged since"
    capsys.readouterr()
    predict(bright, images[1:2], config, {}, skip_existing=True)
    assert re.search(
        rf"1 case\(s\) without pictures, such as Case0: .*{reason}", capsys.readouterr().out
    )
    page = (results / "report.html").read_text("utf-8")
    assert 'alt="Case1' in page and 'alt="Case0' not in page


def test_of_bad_images_only_there_is_still_a_report(tmp_path, data, results, config):
    """And no picture of an earlier prediction."""
    predict(bright, find_images([data / "img" / "Case0.mhd"]), config, {})
    assert (results / "overlays.png").is_file()
    images = find_images([tmp_path / "a.mha", tmp_path / "b.mha"])
    with pytest.raises(DataError, match="2 of 2 images could not be segmented"):
        predict(bright, images, config, {})
    assert "No volume" in (results / "report.html").read_text("utf-8")
    assert not (results / "overlays.png").exists()
    assert "overlays.png" not in list_outputs(results)
    assert [row["problem"][-12:] for row in rows_of(results).values()] == ["no such file"] * 2


@pytest.mark.parametrize("error", [RuntimeError("one\ntwo"), ValueError(""), MemoryError()])
@pytest.mark.usefixtures("undrawn")
def test_whatever_an_image_does_to_the_network(data, results, config, error):
    asked = []

    def failing(batch):
        asked.append(batch)
        if len(asked) == 2:
            raise error
        return bright(batch)

    with pytest.raises(DataError, match="1 of 3 images"):
        predict(failing, find_images([data / "img"]), config, {})
    problems = [row["problem"] for row in rows_of(results).values()]
    assert problems == ["", str(error).split("\n")[0] or type(error).__name__, ""]


def test_every_image_is_read_once_for_mask_and_pictures(data, results, config, monkeypatch):
    read = []

    def noted(path, *words):
        read.append(path)
        return read_image(path, *words)

    read_image = prediction.read_image
    monkeypatch.setattr(prediction, "read_image", noted)
    images = find_images([data / "img"])
    predict(bright, images, config, {})
    predict(bright, images[:1], config, {})
    assert read == [*(image.source for image in images), images[0].source]
    assert (results / "report.html").read_text("utf-8").count('alt="Case0, axial slice') > 3


def test_the_first_image_is_read_while_the_network_is_loaded(data, results, config, monkeypatch):
    read = threading.Event()

    def noted(*words):
        read.set()
        return read_image(*words)

    def load():
        assert read.wait(timeout=60)
        return bright

    read_image = prediction.read_image
    monkeypatch.setattr(prediction, "read_image", noted)
    images = find_images([data / "img"])
    rows = predict(LazyNetwork(load), images, config, {}, Outputs(report=False))
    assert [row["case"] for row in rows] == [image.name for image in images]
    assert all(read_array(results / row["mask"]).any() for row in rows)


def test_without_a_report_there_are_masks_and_lists(data, results, config, capsys, monkeypatch):
    """And an earlier report, which would show other masks, is removed."""
    images = find_images([data / "img"])
    predict(bright, images, config, {})
    whole = tree(results)
    capsys.readouterr()
    monkeypatch.setattr(prediction, "Album", lambda *_: pytest.fail("drawn"))
    predict(bright, images, config, {}, Outputs(report=False))
    said = capsys.readouterr().out
    assert said.splitlines()[-1].endswith(f" {results / 'volumes.csv'}")
    assert f"{results}: removing 2 file(s) of an earlier run" in said
    left = {*whole} - {"overlays.png", "report.html"}
    assert {*tree(results)} == left and list_outputs(results) == left - {MANIFEST}
    assert all(tree(results)[name] == whole[name] for name in left if "volumes" in name)


@pytest.mark.usefixtures("undrawn")
def test_a_name_that_is_no_utf8(data, results, config):
    path = data / "img" / os.fsdecode(b"Prost\xe4t.mha")
    (data / "img" / "Case2.nrrd").rename(path)
    with pytest.raises(DataError, match="1 of 3 images"):
        predict(bright, find_images([data / "img"]), config, {})
    row = rows_of(results)["Prost\\xe4t"]
    assert "is not UTF-8" in row["problem"]
    assert "Prost\\xe4t" in strict_json(results / "volumes.json")["flagged"]


# Findings ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_what_somebody_should_look_at_is_told_everywhere(data, results, config, write_case, capsys):
    """An image in another plane, and an empty mask."""
    sagittal = ((0, 0, 1), (1, 0, 0), (0, 1, 0))
    side, _ = write_case(data, "Side", ".mha", (26, 24, 14), 3, direction=sagittal)
    asked = []

    def missing_the_second(batch):
        asked.append(batch)
        return bright(batch) * (len(asked) != 2)

    paths = {"Case0": data / "img" / "Case0.mhd", "none": data / "img" / "Case2.nrrd", "Side": side}
    images = [InputImage(*item) for item in paths.items()]
    predict(missing_the_second, images, config, {"checkpoint": "best.ckpt"})
    # The synthetic gland is a small one.
    codes = {"Case0": ["small"], "none": ["empty"], "Side": ["plane", "small"]}
    words = {
        "Case0": ["less than 10 ml"],
        "none": ["the mask is empty"],
        "Side": ["sagittal slices, trained on axial ones", "less than 10 ml"],
    }
    assert {n: row["findings"] for n, row in rows_of(results).items()} == {
        name: ";".join(found) for name, found in codes.items()
    }
    content = strict_json(results / "volumes.json")
    assert {row["case"]: row["findings"] for row in content["cases"]} == codes
    assert {row["case"]: row["findings_text"] for row in content["cases"]} == words
    assert content["flagged"] == list(codes) and content["checkpoint"] == "best.ckpt"
    assert content["configuration"] == config
    assert {"case", "image", "mask", "prostate_ml", "problem"} <= content["cases"][0].keys()
    assert content["cases"][0]["image"] == str(paths["Case0"])
    assert content["cases"][0]["mask"] == "Case0_test.mhd"
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {name}: {'; '.join(found)}" for name, found in words.items()
    ]
    assert read_array(results / "Side_test.mha").any()
    predict(bright, images[2:], override_config(config, ["plane=sagittal"]), {})
    assert rows_of(results)["Side"]["findings"] == "small"


@pytest.mark.parametrize(("most", "threshold"), [(1, 0.5), (0.3, 0.25)])
@pytest.mark.usefixtures("undrawn")
def test_a_mask_that_lost_a_large_part_is_told(data, results, config, monkeypatch, most, threshold):
    monkeypatch.setattr("src.predictor.CORE_DEPTH_MM", 3.0)
    monkeypatch.setattr("src.predictor.REACH_MM", 0.0)  # only the core stays
    config = override_config(config, [f"threshold={threshold}"])
    images = find_images([data / "img" / "Case0.mhd"])
    predict(lambda batch: most * bright(batch), images, config, {}, Outputs(probability=True))
    (row,) = strict_json(results / "volumes.json")["cases"]
    assert row["findings"] == ["small", "cut"]
    found = np.count_nonzero(read_array(results / "Case0_probability.mhd") > threshold)
    kept = np.count_nonzero(read_array(results / "Case0_test.mhd"))
    assert 0 < kept < found
    percent = round(100 * (1 - kept / found))
    assert row["findings_text"][1].startswith(f"{percent} % of what was found was cut off, far ")


@pytest.mark.parametrize(("recentre", "findings"), [("false", "border;small"), ("true", "small")])
@pytest.mark.usefixtures("undrawn")
def test_a_gland_that_the_moved_grid_holds_is_not_cut_off(
    data, results, config, recentre, findings
):
    path = data / "img" / "Case0.mhd"
    padded = sitk.ConstantPad(sitk.ReadImage(str(path)), [0, 0, 0], [40, 0, 0])  # 25 mm aside
    sitk.WriteImage(padded, str(path))
    grid = ["VolSize=32,32,32", "dstRes=2,2,2", f"recentre={recentre}"]
    predict(bright, find_images([path]), override_config(config, grid), {})
    assert rows_of(results)["Case0"]["findings"] == findings


# Interrupted, and several at once ---------------------------------------------------------------


def interrupted_after(count):
    asked = []

    def network(batch):
        asked.append(batch)
        if len(asked) > count:
            raise KeyboardInterrupt
        return bright(batch)

    return network


def test_what_is_done_stays_and_the_rest_can_be_done_later(data, results, config, capsys):
    images = find_images([data / "img"])
    with pytest.raises(KeyboardInterrupt):
        predict(interrupted_after(2), images, config, {})
    assert names_in(results) == [
        MANIFEST,
        "Case0_test.mhd",
        "Case0_test.zraw",
        "Case1_test.nii.gz",
        "volumes.csv",
        "volumes.json",
    ]
    assert list(rows_of(results)) == ["Case0", "Case1"]
    assert list_outputs(results) == {*names_in(results)} - {MANIFEST}
    before = tree(results)
    network, asked = counting()
    capsys.readouterr()
    table = predict(network, images, config, {}, skip_existing=True)
    assert len(asked) == 1 and [row["case"] for row in table] == [image.name for image in images]
    after = tree(results)
    assert all(after[name] == before[name] for name in before if "_test." in name)
    assert "2 of 3 masks are of an earlier run" in capsys.readouterr().out
    assert (results / "report.html").read_text("utf-8").count("<article") == 3
    whole = results.with_name("whole")
    elsewhere = override_config(config, [f"dirPredictionImage={whole}"])
    predict(bright, images, elsewhere, {}, Outputs(report=False))
    assert rows_of(results) == rows_of(whole)
    # Without the option all is done anew.
    network, asked = counting()
    predict(network, images, config, {}, Outputs(report=False))
    assert len(asked) == 3


@pytest.mark.usefixtures("undrawn")
def test_a_prediction_and_an_evaluation_leave_each_others_folder(data, results, config):
    """The tables of one would tell of the other's masks, and its report replace the other's."""
    case = Case("Case0", data / "img" / "Case0.mhd", data / "gt" / "Case0_segmentation.mhd")
    evaluate(bright, [case], config, {})
    evaluated = tree(results)
    other = find_images([data / "img" / "Case1.nii.gz"])
    for options in ({}, {"skip_existing": True}, {"outputs": Outputs(report=False)}):
        with pytest.raises(DataError, match=r"metrics\.json: of an evaluation; choose"):
            predict(bright, other, config, {}, **options)
    assert tree(results) == evaluated
    shutil.rmtree(results)
    predict(bright, other, config, {})
    predicted = tree(results)
    with pytest.raises(DataError, match=r"volumes\.json: of a prediction; choose"):
        evaluate(bright, [case], config, {})
    with pytest.raises(DataError, match=r"volumes\.json: of a prediction; choose"):
        compare_masks([case], {"Case0": data / "gt" / "Case0.mhd"}, config, {"masks": "results"})
    assert tree(results) == predicted


@pytest.mark.usefixtures("undrawn")
def test_a_name_that_is_too_long_is_this_images_problem(data, config, results):
    long = data / "img" / f"{'n' * 245}.nii.gz"
    shutil.copy(data / "img" / "Case1.nii.gz", long)
    images = find_images([data / "img" / "Case0.mhd", long])
    with pytest.raises(DataError, match="1 of 2 images could not be segmented"):
        predict(bright, images, config, {})
    rows = rows_of(results)
    assert "a name of 257 bytes, expected at most 250" in rows["n" * 245]["problem"]
    assert read_array(results / rows["Case0"]["mask"]).any()


@pytest.mark.usefixtures("undrawn")
def test_a_killed_run_claims_no_more_than_it_wrote(data, results, config):
    """A file that somebody put in the place of one that was never written is theirs."""
    with pytest.raises(KeyboardInterrupt):
        predict(interrupted_after(1), find_images([data / "img"]), config, {})
    (results / "Case2_test.nrrd").write_text("mine")
    with pytest.raises(DataError, match=r"Case2_test\.nrrd: there already, and not written by"):
        predict(bright, find_images([data / "img"]), config, {}, skip_existing=True)
    assert (results / "Case2_test.nrrd").read_text() == "mine"


def test_two_predictions_into_one_folder_lose_nothing(data, results, config):
    """The second runs while the first is at its second image."""
    images = find_images([data / "img"])
    first = images[:2]
    inner = []

    def network(batch):
        inner.append(batch)
        if len(inner) == 2:
            predict(bright, images[2:], config, {})
            assert set(rows_of(results)) == {"Case0", "Case2"}
            # Of one name there may be two images: the second would overwrite the first.
            with pytest.raises(DataError, match="another prediction is writing its Case0"):
                predict(bright, [images[2]._replace(name="Case0")], config, {})
            with pytest.raises(DataError, match="another prediction is writing its Case0"):
                predict(bright, first, config, {}, skip_existing=True)
        return bright(batch)

    predict(network, first, config, {})
    assert set(rows_of(results)) == {image.name for image in images}
    assert [row["case"] for row in strict_json(results / "volumes.json")["cases"]] == [
        "Case0",
        "Case2",
        "Case1",
    ]
    page = (results / "report.html").read_text("utf-8")
    assert page.count("<article") == 3
    assert list_outputs(results) == {*names_in(results)} - {MANIFEST}
    assert {row["mask"] for row in rows_of(results).values()} < list_outputs(results)
    # Later, one after the other: the table is of the last, as ever.
    predict(bright, images[2:], config, {}, Outputs(report=False))
    assert list(rows_of(results)) == ["Case2"]


def test_while_an_evaluation_writes_there_no_prediction_does(data, results, config):
    with acquire(results), pytest.raises(DataError, match="another evaluation or prediction"):
        predict(bright, find_images([data / "img"]), config, {})
    assert not results.exists()


# The command, with a real network ---------------------------------------------------------------


def test_predict_writes_where_it_is_told(tmp_path, monkeypatch, data, run_folder):
    monkeypatch.chdir(tmp_path)
    checkpoint = run_folder / "ckpt" / "best.ckpt"
    arguments = ["--ckpt_path", checkpoint, "--input", data / "img" / "Case1.nii.gz", data / "img"]
    with pytest.raises(DataError, match="also called Case1"):
        run_program("predict", *arguments)
    wanted = [*arguments[:4], "--output_path", "masks", "--save_probability", "--skip_existing"]
    run_program("predict", *wanted)
    assert {"Case1_test.nii.gz", "Case1_probability.nii.gz"} <= set(names_in(tmp_path / "masks"))
    assert not (tmp_path / "results").exists()
    page = (tmp_path / "masks" / "report.html").read_text("utf-8")
    assert f"<td>{checkpoint}</td>" in page and "Training curves over 2 epochs" in page
    probability = read_array(tmp_path / "masks" / "Case1_probability.nii.gz")
    assert 0 <= probability.min() < probability.max() <= 1
    before = (tmp_path / "masks" / "Case1_test.nii.gz").stat()
    run_program("predict", *wanted, "--language", "zh")
    assert (tmp_path / "masks" / "Case1_test.nii.gz").stat().st_ino == before.st_ino
    assert "2 轮的训练曲线" in (tmp_path / "masks" / "report.html").read_text("utf-8")


def test_a_killed_command_leaves_whole_files_and_a_bad_image_exit_code_1(
    tmp_path, data, run_folder, write_case
):
    for number in range(5):
        write_case(data, f"More{number:02d}", ".mha", seed=number)
    bad = data / "img" / "More03.mha"
    bad.write_bytes(b"rubbish")
    arguments = [sys.executable, str(ROOT / "predict.py"), "--device_target", "CPU"]
    arguments += ["--ckpt_path", str(run_folder / "ckpt" / "best.ckpt"), "--output_path", "masks"]
    arguments += ["--input", str(data / "img"), "--skip_existing", "--no_report"]
    killed = subprocess.Popen(
        arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    masks = tmp_path / "masks"
    wait_until((masks / "Case2_test.nrrd").exists)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    for path in masks.glob("*_test.m*"):
        assert read_array(path).shape == (12, 24, 26)
    # Of the two tables, volumes.json is renamed to its place last, and is the one that counts.
    done = [row["case"] for row in strict_json(masks / "volumes.json")["cases"] if row["mask"]]
    assert len(done) >= 2
    ended = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f"{len(done)} of 8 masks are of an earlier run" in ended.stdout
    assert ended.stderr.strip().splitlines()[-1] == (
        "error: 1 of 8 images could not be segmented; masks/volumes.csv says why"
    )
    assert "Traceback" not in ended.stderr
    assert [name for name, row in rows_of(masks).items() if row["problem"]] == ["More03"]
    assert len(rows_of(masks)) == 8
