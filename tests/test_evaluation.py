"""Evaluation and prediction: every file that they leave, and all that they leave alone."""

import json
import sys

import mindspore as ms
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from golden import seeded
from rounding import perturb

import eval as eval_entry
import predict as predict_entry
from src.checkpoint import save_weights
from src.config import overridden, save_config, vnet_cfg
from src.data_manager import find_cases, read_case, write_volume
from src.errors import DataError
from src.evaluation import (
    evaluate,
    evaluate_masks,
    find_images,
    load_network,
    mean_dice,
    predict,
    training_history,
)
from src.fast_conv3d.network import FastVNet
from src.output_folder import MANIFEST, claim
from src.predictor import largest_component, segment
from src.vnet import VNet, create_vnet

GEOMETRY = ("GetSize", "GetSpacing", "GetOrigin", "GetDirection")


def bright(batch):
    """A network that knows the synthetic cases: their gland is brighter than all else."""
    return ms.Tensor((batch.asnumpy()[:, 0] > 0.8).astype(np.float32))


def array_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def dice_of(reference, prediction):
    """Counted, not by the project's own function."""
    both = np.count_nonzero((reference == 1) & (prediction == 1))
    return 2 * both / (np.count_nonzero(reference) + np.count_nonzero(prediction))


@pytest.fixture
def data(tmp_path, write_case, oblique):
    """Three cases of different formats and geometries."""
    write_case(tmp_path / "data", "Case0", ".mhd")
    write_case(tmp_path / "data", "Case1", ".nii.gz", seed=1, direction=oblique)
    write_case(tmp_path / "data", "Case2", ".nrrd", (30, 22, 10), 2, spacing_mm=(1, 1.1, 3))
    return tmp_path / "data"


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def config(small_config, results):
    return small_config(
        "VolSize=32,32,32", "dstRes=1.25,1.25,1.25", f"dirPredictionImage={results}"
    )


# Evaluation -------------------------------------------------------------------------------------


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
    ]
    expected = {}
    for case in cases:
        image, reference = read_case(case)
        mask = sitk.ReadImage(str(results / f"{case.case_id}_test.mhd"))
        assert mask.GetPixelID() == sitk.sitkUInt8
        for name in GEOMETRY:
            assert getattr(mask, name)() == getattr(image, name)()
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
    assert mean_dice(bright, cases, config) == pytest.approx(np.mean(list(expected.values())))


def test_earlier_results_are_replaced_with_a_notice(data, results, config, capsys):
    evaluate(bright, find_cases(data, ["Case0", "Case1"]), config, {})
    earlier = (results / "Case1_test.zraw").read_bytes()
    (results / "notes.txt").write_text("mine")
    capsys.readouterr()
    evaluate(bright, find_cases(data, ["Case0", "Case2"]), config, {})
    assert f"{results}: replacing 6 file(s) of an earlier run" in capsys.readouterr().out
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


def test_a_broken_second_case_leaves_nothing_behind(data, results, config):
    cases = find_cases(data, ["Case1", "Case0", "Case2"])
    path = data / "gt" / "Case0_segmentation.raw"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"Case0_segmentation\.raw: truncated"):
        evaluate(bright, cases, config, {})
    assert not results.exists()


def test_a_folder_that_cannot_be_written(data, tmp_path, small_config):
    (tmp_path / "file").write_text("mine")
    config = small_config(f"dirPredictionImage={tmp_path / 'file' / 'results'}")
    with pytest.raises(DataError, match="file/results/.*: cannot be written"):
        evaluate(bright, find_cases(data, ["Case0"]), config, {})


def test_a_full_disk_leaves_no_half_written_file(data, results, config, full_disk, capsys):
    """`capsys`, since pytest otherwise keeps what is printed in a file, which could not grow."""
    evaluate(bright, find_cases(data, ["Case0"]), config, {})
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    with full_disk(400), pytest.raises(DataError, match=r"metrics\.\w+: cannot be written"):
        evaluate(lambda batch: bright(-batch), find_cases(data, ["Case0"]), config, {})
    after = {path.name: path.read_bytes() for path in results.iterdir()}
    changed = {name for name in before if before[name] != after[name]}
    assert after.keys() == before.keys()
    assert changed == {"Case0_test.mhd", "Case0_test.zraw"}  # small enough, and whole
    assert not array_of(results / "Case0_test.mhd").any()


@pytest.mark.parametrize("key", ["threshold=0.9", "flip_average=true"])
def test_prediction_options_reach_the_masks(data, config, small_config, results, key):
    """A network whose probabilities fall off along x: both options move the mask's border."""

    def sloping(batch):
        x = np.linspace(1, 0.2, batch.shape[2]).reshape(1, -1, 1, 1)
        return ms.Tensor((bright(batch).asnumpy() * x).astype(np.float32))

    cases = find_cases(data, ["Case0"])
    evaluate(sloping, cases, config, {})
    plain = array_of(results / "Case0_test.mhd")
    other = small_config(
        "VolSize=32,32,32", "dstRes=1.25,1.25,1.25", f"dirPredictionImage={results}", key
    )
    evaluate(sloping, cases, other, {})
    changed = array_of(results / "Case0_test.mhd")
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
            sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(read_case(case)[0])
        )
        return sitk.ReadImage(str(results / f"{case.case_id}_test.mhd"))

    other = results.with_name("other")
    about = {"model": "vnet.mindir", "settings": {"threshold": 0.3}}
    assert evaluate_masks(segmented, cases, str(other), about) == rows
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


def test_nobody_is_asked_for_masks_where_a_case_is_broken(data, results, config):
    cases = find_cases(data, ["Case1", "Case0"])
    path = data / "img" / "Case0.raw"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"Case0\.raw: truncated"):
        evaluate_masks(lambda case, image: pytest.fail("asked"), cases, results, {})
    assert not results.exists()


# Which images -----------------------------------------------------------------------------------


def test_images_of_files_and_folders(data, tmp_path, monkeypatch):
    img, gt = data / "img", data / "gt"
    assert find_images([str(img)]) == {
        "Case0": img / "Case0.mhd",
        "Case1": img / "Case1.nii.gz",
        "Case2": img / "Case2.nrrd",
    }
    assert list(find_images([img / "Case2.nrrd", img / "Case0.mhd"])) == ["Case2", "Case0"]
    both = tmp_path / "flat"
    both.mkdir()
    for path in (*img.iterdir(), *gt.iterdir()):
        (both / path.name).write_bytes(path.read_bytes())
    assert list(find_images([both])) == ["Case0", "Case1", "Case2"]  # masks are no scans
    assert list(find_images([gt / "Case0_segmentation.mhd"])) == ["Case0_segmentation"]
    (tmp_path / "series").mkdir()
    assert find_images([tmp_path / "series"]) == {"series": tmp_path / "series"}
    monkeypatch.chdir(tmp_path / "series")
    assert list(find_images(["."])) == ["series"]
    monkeypatch.chdir(img)
    assert list(find_images(["."])) == ["Case0", "Case1", "Case2"]


def test_our_own_results_are_no_images(tmp_path, write_case):
    """A prediction beside its image is not segmented in its turn."""
    image, _ = write_case(tmp_path, "Case0")
    mask = image.with_name("Case0_test.mhd")
    write_volume(sitk.ReadImage(str(image)), mask)
    assert list(find_images([image.parent])) == ["Case0", "Case0_test"]
    mask.unlink()
    claim(image.parent, [mask.name])
    write_volume(sitk.ReadImage(str(image)), mask)
    assert list(find_images([image.parent])) == ["Case0"]


def test_a_link_is_called_by_its_own_name(tmp_path, data):
    """Data stores keep files under their checksum and link to them."""
    link = tmp_path / "patient.nrrd"
    link.symlink_to(data / "img" / "Case2.nrrd")
    assert list(find_images([link])) == ["patient"]


def test_two_images_of_one_name_are_refused(data):
    other = data / "Case0.nii.gz"
    other.touch()
    with pytest.raises(DataError) as error:
        find_images([data / "img", other])
    assert str(error.value) == (
        f"{other}: also called Case0, like {data / 'img' / 'Case0.mhd'}; rename one"
    )
    with pytest.raises(DataError, match="also called Case1"):
        find_images([data / "img" / "Case1.nii.gz", data / "img"])


# Prediction -------------------------------------------------------------------------------------


def test_a_prediction_leaves_masks_in_their_own_format_and_volumes(data, results, config, capsys):
    table = predict(bright, find_images([data / "img"]), config, {})
    assert names_in(results) == [
        MANIFEST,
        "Case0_test.mhd",
        "Case0_test.zraw",
        "Case1_test.nii.gz",
        "Case2_test.nrrd",
        "overlays.png",
        "report.html",
        "volumes.csv",
    ]
    written = pd.read_csv(results / "volumes.csv")
    pd.testing.assert_frame_equal(written, table)
    assert written.columns.tolist() == ["case", "prostate_ml", "mask"]
    for row, name, spacing_mm in zip(
        written.itertuples(),
        ("Case0_test.mhd", "Case1_test.nii.gz", "Case2_test.nrrd"),
        ((1.25, 1.25, 2.5), (1.25, 1.25, 2.5), (1, 1.1, 3)),
        strict=True,
    ):
        assert (row.case, row.mask) == (name[:5], name)
        voxels = np.count_nonzero(array_of(results / name))
        by_hand = voxels * spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / 1000
        assert row.prostate_ml == pytest.approx(by_hand, abs=5.1e-4) and voxels > 100
        image = sitk.ReadImage(str(next((data / "img").glob(f"{row.case}.[mn]*[diz]"))))
        mask = sitk.ReadImage(str(results / name))
        for part in GEOMETRY:
            np.testing.assert_allclose(getattr(mask, part)(), getattr(image, part)(), atol=1e-5)
    printed = capsys.readouterr().out
    assert "Case1_test.nii.gz" in printed and f"{written.prostate_ml[1]:.3f}"[:4] in printed
    assert printed.splitlines()[-1].endswith(f" {results / 'report.html'}")
    page = (results / "report.html").read_text("utf-8")
    assert (
        f"<h1>{written.prostate_ml.mean():.1f} ± {written.prostate_ml.std(ddof=0):.1f} ml" in page
    )
    assert page.count("<article") == 3


def test_probabilities_on_demand(data, results, config):
    def half(batch):
        return ms.Tensor((0.25 + 0.5 * bright(batch).asnumpy()).astype(np.float32))

    predict(half, find_images([data / "img" / "Case1.nii.gz"]), config, {}, save_probability=True)
    assert "Case1_probability.nii.gz" in names_in(results)
    probability = array_of(results / "Case1_probability.nii.gz")
    mask = array_of(results / "Case1_test.nii.gz")
    assert probability.dtype == np.float32
    assert probability.min() >= 0 and probability.max() == pytest.approx(0.75)
    assert probability[mask == 1].min() > 0.5
    predict(half, find_images([data / "img" / "Case0.mhd"]), config, {}, save_probability=True)
    assert {"Case0_probability.mhd", "Case0_probability.zraw"} <= set(names_in(results))


@pytest.mark.parametrize("name", ["Case0_probability.zraw", "Case0_test.mhd", "volumes.csv"])
def test_a_prediction_leaves_foreign_files_alone(data, results, config, name):
    results.mkdir()
    (results / name).write_text("mine")
    images = find_images([data / "img"])
    with pytest.raises(DataError, match=f"{name}: there already"):
        predict(bright, images, config, {}, save_probability=True)
    assert names_in(results) == [name]
    (results / name).rename(results / "elsewhere")
    predict(bright, images, config, {})
    predict(bright, images, config, {})  # our own may go
    assert (results / "elsewhere").read_text() == "mine"


@pytest.mark.parametrize("kind", ["truncated", "missing", "constant"])
def test_a_broken_image_among_good_ones_leaves_nothing_behind(
    data, results, config, make_image, kind
):
    path = data / "img" / "Case1.nii.gz"
    images = find_images([data / "img"])
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    elif kind == "missing":
        path.unlink()
    else:
        sitk.WriteImage(make_image(np.zeros((3, 4, 5), np.int16)), str(path))
    with pytest.raises(DataError, match=r"Case1\.nii\.gz: "):
        predict(bright, images, config, {})
    assert not results.exists()


@pytest.mark.parametrize("grid", [(), ("VolSize=16,32,32",), ("VolSize=32,32,16",)])
def test_a_mask_at_the_border_is_reported(data, results, config, grid, monkeypatch):
    """On each of the six faces of the image; away from all of them only that of a smaller grid."""
    marked = []

    def segmented(network, image, config):
        array = np.zeros(image.GetSize()[::-1], np.uint8)
        array[1:-1, 1:-1, 1:-1] = 1
        marked.append(len(marked))
        if marked[-1] < 6:
            np.moveaxis(array, marked[-1] // 2, 0)[-(marked[-1] % 2), 4, 5] = 1
        mask = sitk.GetImageFromArray(array)
        mask.CopyInformation(image)
        return mask, None

    monkeypatch.setattr("src.evaluation.segment", segmented)
    images = {f"face{number}": data / "img" / "Case2.nrrd" for number in range(7)}
    predict(None, images, overridden(config, list(grid)), {})
    page = (results / "report.html").read_text("utf-8")
    failures = page[page.index('id="failures"') : page.index('id="summary"')].split("<li>")[1:]
    listed = [item.split("</a>")[0].split(">")[1] for item in failures]
    assert listed == list(images)[: 7 if grid else 6]
    assert all("touches the border" in item for item in failures)


def test_an_empty_prediction_is_zero_ml(data, results, config):
    empty = predict(
        lambda batch: ms.Tensor(np.zeros(batch.shape[2:], np.float32)[None]),
        find_images([data / "img" / "Case0.mhd"]),
        config,
        {},
    )
    assert empty.prostate_ml.tolist() == [0]
    assert not array_of(results / "Case0_test.mhd").any()
    assert "0.0&nbsp;ml, the mask is empty" in (results / "report.html").read_text("utf-8")


# The training that a checkpoint comes from ------------------------------------------------------

HISTORY = "epoch,step,learning_rate,train_loss,epoch_time_s,val_dice,later\n"


@pytest.mark.parametrize("folder", ["", "ckpt"])
def test_the_training_is_found_from_its_checkpoint(tmp_path, folder):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "history.csv").write_text(
        HISTORY + "1,9,0.01,0.5,1.0,,x\n2,18,0.02,0.25,1.0,0.8,y\n"
    )
    history = training_history(tmp_path / folder / "best.ckpt")
    assert history["epoch"].tolist() == [1, 2]
    assert history["train_loss"].tolist() == [0.5, 0.25]
    assert history["learning_rate"].tolist() == [0.01, 0.02]
    assert np.isnan(history["val_dice"][0]) and history["val_dice"][1] == 0.8


@pytest.mark.parametrize(
    "content",
    [None, b"", b"epoch,loss\n1,2\n", HISTORY.encode() + b"1,9,a,b,c,d,e\n", b"\xff\xfe\0"],
)
def test_results_need_no_history(tmp_path, content):
    assert training_history(tmp_path / "best.ckpt") is None  # nor a run
    (tmp_path / "config.json").write_text("{}")
    if content is not None:
        (tmp_path / "history.csv").write_bytes(content)
    assert training_history(tmp_path / "best.ckpt") is None


# The commands, with a real network --------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """An untrained run of width 2 with its checkpoint, configuration and history."""
    folder = tmp_path_factory.mktemp("run")
    config = overridden(vnet_cfg, ["width=2", "VolSize=16,16,16", "dstRes=2.5,2.5,2.5"])
    save_config(config, folder / "config.json")
    (folder / "history.csv").write_text(HISTORY + "1,9,0.01,0.5,1.0,,x\n2,18,0.02,0.25,1.0,0.8,y\n")
    (folder / "ckpt").mkdir()
    ms.set_seed(1)
    save_weights(create_vnet(config), folder / "ckpt" / "best.ckpt")
    return folder


def command(monkeypatch, entry, *arguments):
    monkeypatch.setattr(sys, "argv", ["entry.py", "--device_target", "CPU", *map(str, arguments)])
    entry.main()


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
    command(monkeypatch, eval_entry, *arguments, "--set", f"dirPredictionImage={results}")
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


def test_predict_writes_where_it_is_told(tmp_path, monkeypatch, data, run_folder, write_case):
    monkeypatch.chdir(tmp_path)
    checkpoint = run_folder / "ckpt" / "best.ckpt"
    arguments = ["--ckpt_path", checkpoint, "--input", data / "img" / "Case1.nii.gz", data / "img"]
    with pytest.raises(DataError, match="also called Case1"):
        command(monkeypatch, predict_entry, *arguments)
    command(
        monkeypatch, predict_entry, *arguments[:4], "--output_path", "masks", "--save_probability"
    )
    assert {"Case1_test.nii.gz", "Case1_probability.nii.gz"} <= set(names_in(tmp_path / "masks"))
    assert not (tmp_path / "results").exists()
    assert_tells_of_the_run(tmp_path / "masks" / "report.html", checkpoint)
    probability = array_of(tmp_path / "masks" / "Case1_probability.nii.gz")
    assert 0 <= probability.min() < probability.max() <= 1


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
        )(volume)
        for precision in ("float32", "mixed")
    )
    assert exact.dtype == mixed.dtype == ms.float32
    np.testing.assert_allclose(mixed.asnumpy(), exact.asnumpy(), rtol=0, atol=1e-2)


def test_fast_and_plain_convolutions_give_the_same_masks(data, tmp_path, config):
    """But for voxels at the threshold, which may fall either way, and what hangs on by them."""
    network = create_vnet(config)
    for parameter in network.get_parameters():
        parameter.set_data(ms.Tensor(seeded.parameter(parameter.name, parameter.shape)))
    save_weights(network, tmp_path / "seeded.ckpt")
    fast, plain, perturbed = (
        load_network(tmp_path / "seeded.ckpt", overridden(config, [f"fast_conv3d={choice}"]), "CPU")
        for choice in ("on", "off", "on")
    )
    assert isinstance(fast, FastVNet) and isinstance(plain, VNet)
    perturb(perturbed)
    for case in find_cases(data, ["Case0", "Case1"]):
        results = [segment(one, read_case(case)[0], config) for one in (fast, plain, perturbed)]
        mask, expected_mask, _ = (sitk.GetArrayFromImage(mask) > 0 for mask, _ in results)
        found, expected, moved = (sitk.GetArrayFromImage(image) for _, image in results)
        spread = np.abs(moved - expected).max()
        assert np.abs(found - expected).max() < spread < 1e-3
        assert 0.05 < expected_mask.mean() < 0.95
        crossed = (found > config.threshold) != (expected > config.threshold)
        assert (np.abs(expected[crossed] - config.threshold) < spread).all()
        np.testing.assert_array_equal(mask, largest_component(found > config.threshold))


@pytest.mark.parametrize(
    "overrides, damage, words",
    [
        (["width=4"], None, "variant=zoo, width=2, not of this configuration"),
        (["variant=monai"], None, "use --set variant=zoo --set width=2"),
        ([], lambda content: content[:-100], "copy it again"),
        ([], lambda _: b"PK\x03\x04 of another program", "not a whole MindSpore checkpoint"),
        ([], lambda _: b"", "not a whole MindSpore checkpoint"),
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
