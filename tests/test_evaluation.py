"""Evaluations: every file that they leave, and all that they leave alone."""

import json
import os
from pathlib import Path

import mindspore as ms
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from src import evaluation
from src.acceptance.golden import seeded
from src.checkpoint import save_weights
from src.config import override_config, save_config, vnet_cfg
from src.data_manager import Case, find_cases, read_case
from src.evaluation import evaluate, evaluate_masks, load_network, trained_on
from src.fast_conv3d.network import FastVNet
from src.images.reading import read_volume
from src.predictor import clean, segment
from src.utils.errors import DataError
from src.utils.output_folder import MANIFEST, acquire
from src.vnet import VNet, create_vnet
from tests.helpers import names_in, run_program, tree
from tests.networks import bright, computed_once, in_mode
from tests.rounding import perturb
from tests.volumes import geometry_of, read_array


def dice_of(reference, prediction):
    """Counted, not by the project's own function."""
    both = np.count_nonzero((reference == 1) & (prediction == 1))
    return 2 * both / (np.count_nonzero(reference) + np.count_nonzero(prediction))


# Evaluation -------------------------------------------------------------------------------------


def test_cases_of_the_training_are_told(tmp_path, capsys):
    """A mean over cases that a network knows is no figure of its quality."""
    cases = [Case(name, Path(name), Path("mask")) for name in ("a", "b", "c")]
    checkpoints = [tmp_path / name / "ckpt" / "best.ckpt" for name in ("one", "two")]
    for checkpoint, trained in zip(checkpoints, (["c", "d"], ["a"]), strict=True):
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        save_config(vnet_cfg, checkpoint.parents[1] / "config.json")
        record = {"training_cases": trained, "sessions": []}
        (checkpoint.parents[1] / "training.json").write_text(json.dumps(record))
    assert trained_on(checkpoints[:1], cases[:2]) == [] and capsys.readouterr().out == ""
    assert trained_on(checkpoints, cases) == ["a", "c"]
    assert "2 of 3 cases have names of the network's training cases" in capsys.readouterr().out
    (checkpoints[1].parents[1] / "training.json").unlink()
    assert trained_on(checkpoints, cases) is None  # "a" of the other is not known
    assert "1 of 3 cases have names" in capsys.readouterr().out
    assert trained_on(checkpoints[::-1], cases) is None
    assert "1 of 3 cases have names" in capsys.readouterr().out


def test_an_evaluation_leaves_masks_and_metrics(data, results, config, capsys):
    cases = find_cases(data, ["Case1", "Case0"])
    rows = evaluate(bright, cases, config, {"checkpoint": "best.ckpt"})
    assert names_in(results) == [
        MANIFEST,
        *[f"Case{number}_test.{suffix}" for number in (0, 1) for suffix in ("mhd", "zraw")],
        "metrics.csv",
        "metrics.json",
        "overlays.png",
        "report.html",
        "summary.json",
    ]
    expected = {}
    for case in cases:
        image, reference = read_case(case, config)
        mask = sitk.ReadImage(str(results / f"{case.case_id}_test.mhd"))
        assert mask.GetPixelID() == sitk.sitkUInt8
        assert geometry_of(mask) == geometry_of(image)
        arrays = sitk.GetArrayFromImage(reference), sitk.GetArrayFromImage(mask)
        expected[case.case_id] = dice_of(*arrays)
        assert expected[case.case_id] > 0.9
    assert {row["case"]: row["dice"] for row in rows} == pytest.approx(expected)
    table = pd.read_csv(results / "metrics.csv")
    assert table["case"].tolist() == ["Case1", "Case0"]
    assert table["dice"].tolist() == pytest.approx([expected["Case1"], expected["Case0"]], abs=1e-6)
    report = json.loads((results / "metrics.json").read_text())
    assert report["checkpoint"] == "best.ckpt"
    assert report["configuration"] == config and set(report["configuration"]) == set(vnet_cfg)
    assert report["summary"]["dice"]["mean"] == pytest.approx(np.mean(list(expected.values())))
    assert (results / "overlays.png").read_bytes()[:4] == b"\x89PNG"
    page = (results / "report.html").read_text("utf-8")
    mean, std = np.mean(list(expected.values())), np.std(list(expected.values()))
    assert f"<h1>Dice {mean:.3f} ± {std:.3f}</h1>" in page
    assert page.count("<article") == 2 and "<td>best.ckpt</td>" in page
    assert '<th scope="row">VolSize</th><td>32, 32, 32</td>' in page
    assert f"<td>{ms.__version__}</td>" in page
    printed = capsys.readouterr().out
    assert "save predicted label for test 'Case0'" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("avg_dice: ")]
    assert float(line.split()[1]) == pytest.approx(np.mean(list(expected.values())))
    assert "avg_Hausdorff_distance: " in printed
    assert printed.splitlines()[-1].endswith(f" {results / 'report.html'}")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["Case0_test.mhd", "metrics.csv"])
def test_what_was_edited_since_an_evaluation_stays(data, results, config, name):
    cases = find_cases(data, ["Case0"])
    evaluate(bright, cases, config, {})
    evaluate(bright, cases, config, {})
    with (results / name).open("a") as file:
        file.write("Comment = mine\n")
    before = tree(results)
    with pytest.raises(DataError, match=f"{name}: edited or damaged since this program wrote it"):
        evaluate(bright, cases, config, {})
    assert tree(results) == before


@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_that_has_begun_says_where_its_results_go(
    data, results, config, tmp_path, monkeypatch
):
    status_file = tmp_path / "status.json"
    monkeypatch.setenv("VNET_STATUS_FILE", str(status_file))
    with pytest.raises(DataError, match="Case7"):
        evaluate(bright, [Case("Case7", data / "img/Case7.mhd", data / "gt")], config, {})
    assert not status_file.exists()
    evaluate(bright, find_cases(data, ["Case1"]), config, {})
    assert json.loads(status_file.read_text()) == {
        "state": "running",
        "pid": os.getpid(),
        "results": str(results),
    }


@pytest.mark.usefixtures("undrawn")
def test_earlier_results_are_replaced_with_a_notice(data, results, config, capsys):
    evaluate(bright, find_cases(data, ["Case0", "Case1"]), config, {})
    earlier = (results / "Case1_test.zraw").read_bytes()
    (results / "notes.txt").write_text("mine")
    capsys.readouterr()
    evaluate(bright, find_cases(data, ["Case0", "Case2"]), config, {})
    assert f"{results}: replacing 7 file(s) of an earlier run" in capsys.readouterr().out
    # Case1's mask stays, but the metrics are of the split alone.
    assert (results / "Case1_test.zraw").read_bytes() == earlier
    assert (results / "notes.txt").read_text() == "mine"
    assert pd.read_csv(results / "metrics.csv")["case"].tolist() == ["Case0", "Case2"]
    report = json.loads((results / "metrics.json").read_text())
    assert [row["case"] for row in report["cases"]] == ["Case0", "Case2"]


@pytest.mark.parametrize(
    "name", ["Case1_test.mhd", "Case0_test.zraw", "metrics.json", "overlays.png", "report.html"]
)
def test_foreign_files_stay_and_nothing_is_written(data, results, config, name):
    results.mkdir()
    (results / name).write_text("mine")
    with pytest.raises(DataError, match=f"{name}: there already"):
        evaluate(bright, find_cases(data, ["Case0", "Case1"]), config, {})
    assert names_in(results) == [name] and (results / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["LIST01", "50%", "%03d"])
def test_a_name_that_metaimage_takes_for_several_files(data, write_case, results, config, name):
    write_case(data, name, ".nii.gz")
    with pytest.raises(DataError, match=f"{name}_test.mhd: MetaImage takes .* rename the image"):
        evaluate(None, find_cases(data, ["Case0", name]), config, {})
    assert not results.exists()


@pytest.mark.usefixtures("undrawn")
def test_a_name_that_begins_like_a_list_is_no_list(data, write_case, results, config):
    write_case(data, "List01", ".mhd")
    (row,) = evaluate(bright, find_cases(data, ["List01"]), config, {})
    assert row["dice"] > 0.9 and read_volume(results / "List01_test.mhd").GetSize() == (26, 24, 12)


def test_a_folder_that_cannot_be_written(data, tmp_path, small_config):
    (tmp_path / "file").write_text("mine")
    config = small_config(f"dirPredictionImage={tmp_path / 'file' / 'results'}")
    with pytest.raises(DataError, match="file/results: cannot be written"):
        evaluate(bright, find_cases(data, ["Case0"]), config, {})


@pytest.mark.usefixtures("undrawn")
def test_a_full_disk_leaves_no_half_written_file(data, results, config, full_disk, capsys):
    """`capsys`, since pytest otherwise keeps what is printed in a file, which could not grow."""
    evaluate(bright, find_cases(data, ["Case0"]), config, {})
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    with full_disk(1200), pytest.raises(DataError, match=r"metrics\.\w+: cannot be written"):
        evaluate(lambda batch: bright(-batch), find_cases(data, ["Case0"]), config, {})
    after = {path.name: path.read_bytes() for path in results.iterdir()}
    assert after == before
    assert read_array(results / "Case0_test.mhd").any()


@pytest.mark.usefixtures("undrawn")
def test_a_drawing_that_fails_leaves_the_earlier_results(data, results, config, monkeypatch):
    evaluate(bright, find_cases(data, ["Case0"]), config, {})
    before = tree(results)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("src.evaluation.write_pictures", fail)
    with pytest.raises(MemoryError):
        evaluate(lambda batch: bright(-batch), find_cases(data, ["Case0"]), config, {})
    assert tree(results) == before


@pytest.mark.parametrize("key", ["threshold=0.9", "flip_average=true"])
@pytest.mark.usefixtures("undrawn")
def test_prediction_options_reach_the_masks(data, config, small_config, results, key):
    """A network whose probabilities fall off along x: both options move the mask's border."""

    def sloping(batch):
        x = np.linspace(1, 0.2, batch.shape[2]).reshape(1, -1, 1, 1)
        return ms.Tensor((bright(batch).asnumpy() * x).astype(np.float32))

    cases = find_cases(data, ["Case0"])
    evaluate(sloping, cases, config, {})
    plain = read_array(results / "Case0_test.mhd")
    other = small_config(
        "VolSize=32,32,32", "dstRes=1.25,1.25,1.25", f"dirPredictionImage={results}", key
    )
    evaluate(sloping, cases, other, {})
    changed = read_array(results / "Case0_test.mhd")
    assert (changed.sum() < plain.sum()) if "threshold" in key else (changed.sum() > plain.sum())


def test_masks_from_elsewhere_are_evaluated_alike(data, results, config, capsys):
    """Whatever makes the masks is asked once per case, with the case and its image."""

    def partly(batch):
        probability = bright(batch).asnumpy()
        probability[:, :14] = 0
        return ms.Tensor(probability)

    cases = find_cases(data, ["Case1", "Case0"])
    rows = evaluate(partly, cases, config, {"checkpoint": "best.ckpt"})
    assert all(0.5 < row["dice"] < 0.99 for row in rows)
    printed = capsys.readouterr().out
    asked = []

    def segmented(case, image):
        asked.append(case)
        np.testing.assert_array_equal(
            sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(read_case(case, config)[0])
        )
        return sitk.ReadImage(str(results / f"{case.case_id}_test.mhd"))

    other = results.with_name("other")
    about = {"model": "vnet.mindir", "settings": {"threshold": 0.3}}
    elsewhere = override_config(config, [f"dirPredictionImage={other}"])
    assert evaluate_masks(segmented, cases, elsewhere, about) == rows
    assert asked == cases
    assert names_in(other) == names_in(results)
    report = json.loads((other / "metrics.json").read_text())
    # The caller's own words, and none about a network that it does not have.
    assert list(report) == [*about, "summary", "flagged", "cases"]
    assert {key: report[key] for key in about} == about
    for name in names_in(other):
        if name.endswith((".zraw", ".csv", ".png")):
            assert (other / name).read_bytes() == (results / name).read_bytes()
    assert capsys.readouterr().out == printed.replace(str(results), str(other))


@pytest.mark.usefixtures("undrawn")
def test_a_broken_case_leaves_nothing(data, results, config, monkeypatch):
    """Neither the masks of those before it, which are read once, nor the results' folder."""
    cases = find_cases(data, ["Case1", "Case0"])
    path = data / "img" / "Case0.raw"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"Case0\.raw: truncated"):
        evaluate(bright, cases, config, {})
    assert not results.exists()
    path.write_bytes(whole)
    evaluate(bright, cases, config, {})
    before = tree(results)
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"Case0\.raw: truncated"):
        evaluate(lambda batch: bright(-batch), cases, config, {})
    assert tree(results) == before


def test_every_case_is_read_once(data, results, config, monkeypatch):
    read = []
    monkeypatch.setattr(
        evaluation,
        "read_case",
        lambda case, *words: (read.append(case), read_case(case, *words))[1],
    )
    cases = find_cases(data, ["Case1", "Case0"])
    evaluate(bright, cases, config, {})
    assert read == cases


# Findings ---------------------------------------------------------------------------------------


def test_what_somebody_should_look_at_is_told_everywhere(data, results, config, write_case, capsys):
    """A stack of another plane (its slices run to the left), and an empty mask."""
    sagittal = ((0, 0, 1), (1, 0, 0), (0, 1, 0))
    write_case(data, "Side", ".mha", (26, 24, 14), 3, direction=sagittal)

    def missing_the_second(batch):
        asked.append(batch)
        return bright(batch) * (len(asked) != 2)

    asked = []
    rows = evaluate(missing_the_second, find_cases(data, ["Case0", "Case1", "Side"]), config, {})
    codes = {"Case0": [], "Case1": ["low_dice", "empty_prediction"], "Side": ["plane"]}
    assert {row["case"]: row["findings"] for row in rows} == codes
    table = pd.read_csv(results / "metrics.csv", keep_default_na=False)
    assert table.columns[-1] == "findings"
    assert table["findings"].tolist() == [";".join(found) for found in codes.values()]
    content = json.loads((results / "metrics.json").read_text())
    assert {row["case"]: row["findings"] for row in content["cases"]} == codes
    assert content["cases"][2]["findings_text"] == ["sagittal slices, trained on axial ones"]
    assert content["flagged"] == ["Case1"]
    assert capsys.readouterr().err.splitlines() == [
        "warning: Case1: Dice below 0.8; empty prediction",
        "warning: Side: sagittal slices, trained on axial ones",
    ]
    page = (results / "report.html").read_text("utf-8")
    assert "2 failures" in page and "sagittal slices, trained on axial ones" in page
    evaluate(bright, find_cases(data, ["Side"]), override_config(config, ["plane=sagittal"]), {})
    assert "warning" not in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_nobody_else_may_write_there(data, results, config):
    """Nor is anything lost that lies there."""
    evaluate(bright, find_cases(data, ["Case0"]), config, {})
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    for cases in (None, ["Case7"]):
        with acquire(results, cases), pytest.raises(DataError, match=f"{results}: another evalu"):
            evaluate(bright, find_cases(data, ["Case1"]), config, {})
    assert {path.name: path.read_bytes() for path in results.iterdir()} == before


# The commands, with a real network --------------------------------------------------------------


def test_eval_takes_grid_and_width_from_beside_the_checkpoint(
    tmp_path, monkeypatch, data, results, run_folder
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val.csv").write_text("Case2.mhd\nCase0.mhd\n")
    checkpoint = run_folder / "ckpt" / "best.ckpt"
    arguments = [
        "--ckpt_path",
        checkpoint,
        "--data_path",
        data,
        "--eval_split_file_path",
        "val.csv",
    ]
    run_program("eval", *arguments, "--set", f"dirPredictionImage={results}")
    report = json.loads((results / "metrics.json").read_text())
    assert report["checkpoint"] == str(checkpoint)
    assert (report["configuration"]["width"], report["configuration"]["VolSize"]) == (2, [16] * 3)
    assert [row["case"] for row in report["cases"]] == ["Case2", "Case0"]
    assert_tells_of_the_run(results / "report.html", checkpoint)


def assert_tells_of_the_run(report, checkpoint):
    page = report.read_text("utf-8")
    assert f"<td>{checkpoint}</td>" in page
    assert "Training curves over 2 epochs" in page
    assert '<th scope="row">width</th><td>2</td>' in page


def test_load_network_is_ready_to_predict(run_folder, small_config):
    network = load_network(run_folder / "ckpt" / "best.ckpt", small_config(), "CPU")
    assert not network.training
    saved = ms.load_checkpoint(str(run_folder / "ckpt" / "best.ckpt"))
    for parameter in network.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), saved[parameter.name].asnumpy())


@pytest.mark.parametrize("choice", ["auto", "off"])
def test_mixed_precision_predicts_on_a_cpu(run_folder, small_config, choice):
    """The fast path is float32 throughout."""
    volume = ms.Tensor(np.random.default_rng(0).standard_normal((1, 1, 32, 16, 16), np.float32))
    exact, mixed = (
        load_network(
            run_folder / "ckpt" / "best.ckpt",
            small_config(f"precision={precision}", f"fast_conv3d={choice}"),
            "CPU",
        )
        for precision in ("float32", "mixed")
    )
    found, expected = mixed(volume), computed_once(exact, volume)
    assert found.dtype == ms.float32 and expected.dtype == np.float32
    np.testing.assert_allclose(found.asnumpy(), expected, rtol=0, atol=1e-2)


def test_fast_and_plain_convolutions_give_the_same_masks(data, tmp_path, config):
    """But for voxels at the threshold, which may fall either way, and what hangs on by them."""
    network = create_vnet(config)
    for parameter in network.get_parameters():
        parameter.set_data(ms.Tensor(seeded.parameter(parameter.name, parameter.shape)))
    save_weights(network, tmp_path / "seeded.ckpt")
    fast, plain, perturbed = (
        load_network(
            tmp_path / "seeded.ckpt", override_config(config, [f"fast_conv3d={choice}"]), "CPU"
        )
        for choice in ("on", "off", "on")
    )
    assert isinstance(fast, FastVNet) and isinstance(plain, VNet)
    perturb(perturbed)
    for case in find_cases(data, ["Case0", "Case1"]):
        with in_mode(ms.PYNATIVE_MODE):
            results = [
                segment(one, read_case(case, config)[0], config) for one in (fast, plain, perturbed)
            ]
        mask, expected_mask, _ = (sitk.GetArrayFromImage(mask) > 0 for mask, _ in results)
        found, expected, moved = (sitk.GetArrayFromImage(image) for _, image in results)
        spread = np.abs(moved - expected).max()
        assert np.abs(found - expected).max() < spread < 1e-3
        assert 0.05 < expected_mask.mean() < 0.95
        crossed = (found > config.threshold) != (expected > config.threshold)
        assert (np.abs(expected[crossed] - config.threshold) < spread).all()
        spacing_zyx_mm = results[0][0].GetSpacing()[::-1]
        np.testing.assert_array_equal(mask, clean(found > config.threshold, spacing_zyx_mm))


@pytest.mark.parametrize(
    "overrides, damage, words",
    [
        (["width=4"], None, "variant=zoo, width=2, not of this configuration"),
        (
            ["variant=monai"],
            None,
            "copy its run's config.json beside it; if that is lost, --set variant=zoo",
        ),
        ([], lambda content: content[:-100], "copy it again"),
        ([], lambda _: b"PK\x03\x04 of another program", "not a complete MindSpore checkpoint"),
        ([], lambda _: b"", "not a complete MindSpore checkpoint"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(
    tmp_path, run_folder, small_config, overrides, damage, words
):
    content = (run_folder / "ckpt" / "best.ckpt").read_bytes()
    path = tmp_path / "other.ckpt"
    path.write_bytes(damage(content) if damage else content)
    with pytest.raises(DataError) as error:
        load_network(path, small_config(*overrides), "CPU")
    message = str(error.value)
    assert message.startswith(f"{path}: ") and words in message and "\n" not in message
