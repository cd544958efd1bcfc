"""Volumes for the C++ program and what becomes of its outputs: the same as in Python."""

import json
import shutil
import struct
import sys

import mindspore as ms
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from src.commands import run_script
from src.data_manager import Case, find_cases
from src.earlier_masks import image_hash
from src.evaluation import evaluate
from src.export.description import describe
from src.export.infer_310 import (
    INPUT_FOLDER,
    MODEL_RECORD,
    RECENTRED_FOLDER,
    Attempt,
    Results,
    evaluate_outputs,
    postprocess,
    preprocess,
    write_attempts,
)
from src.images.orientation import to_patient_order
from src.images.reading import read_image
from src.predictor import network_inputs, segment_inputs, segment_outputs
from src.utils.errors import DataError, UsageError
from src.utils.files import hash_file
from src.utils.output_folder import MANIFEST
from tests.networks import bright
from tests.volumes import STORAGE_ORDERS, stored_in_order

SIDES = (32, 48, 16)
# All that is known of a model whose training is far away.
KNOWN = (
    *("variant", "width", "VolSize", "dstRes", "normDir", "intensity"),
    *("plane", "labels", "channel", "recentre", "flip_average", "threshold"),
)
# Slices run to the left.
SAGITTAL = np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]], float)


def sloping(batch):
    """A stand-in for the network, without any symmetry, which knows the synthetic cases."""
    bright = batch.asnumpy()[:, 0] > 0.8
    x, y, z = (np.linspace(0, 1, side) for side in bright.shape[1:])
    ramp = 0.6 * x[:, None, None] + 0.3 * y[:, None] + 0.1 * z
    return ms.Tensor((bright * ramp).astype(np.float32))


@pytest.fixture
def data(tmp_path, write_case, oblique):
    """Three cases of different formats and geometries."""
    write_case(tmp_path / "data", "Case0", ".mhd")
    write_case(tmp_path / "data", "Case1", ".nii.gz", seed=1, direction=oblique)
    write_case(tmp_path / "data", "Case2", ".mha", (12, 30, 22), 2, direction=SAGITTAL)
    return tmp_path / "data"


@pytest.fixture
def cases(data):
    return find_cases(data, ["Case2", "Case0", "Case1"])


@pytest.fixture
def config(small_config, tmp_path):
    """Function `key=value` texts -> configuration."""

    def make(*overrides):
        grid = ("VolSize=32,48,16", "dstRes=1.25,0.9,2.5")
        return small_config(*grid, f"dirPredictionImage={tmp_path / 'masks'}", *overrides)

    return make


def contents(folder):
    """The files of a folder, without the records of them and of the volumes among them."""
    records = {MANIFEST, *(path.with_suffix(".json").name for path in folder.glob("*.bin"))}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in records}


def write_inputs(cases, config, folder=INPUT_FOLDER):
    """The volumes of a first run of the program."""
    write_attempts([Attempt(case) for case in cases], config, folder)


def results_in(folder, config):
    """The results of a single model."""
    return Results([folder], config, models=1)


def stand_in_program(inputs, outputs, network=sloping):
    """What the C++ program does, with another network: NAME.bin and .json -> NAME_0.bin, .json."""
    outputs.mkdir(exist_ok=True)
    for path in inputs.glob("*.bin"):
        volume = np.frombuffer(path.read_bytes(), "<f4").reshape(1, 1, *SIDES)
        output = network(ms.Tensor(volume.copy())).asnumpy()[0]
        (outputs / f"{path.stem}_0.bin").write_bytes(output.astype("<f4").tobytes())
        shutil.copy(path.with_suffix(".json"), outputs / f"{path.stem}_0.json")


# Volumes for the program ------------------------------------------------------------------------


def test_after_an_early_end_there_are_no_volumes_of_two_grids(tmp_path, cases, config, monkeypatch):
    folder = tmp_path / "bin"
    write_inputs(cases, config(), folder)
    before = contents(folder)
    prepared = []

    def broken_second(*arguments):
        prepared.append(arguments)
        if len(prepared) == 2:
            raise DataError("no contrast")
        return network_inputs(*arguments)

    monkeypatch.setattr("src.export.infer_310.network_inputs", broken_second)
    with pytest.raises(DataError, match="no contrast"):
        write_inputs(cases, config("dstRes=3,3,4"), folder)
    ((name, content),) = contents(folder).items()
    assert content != before[name]
    (record,) = folder.glob("Case*.json")
    assert record.name == name.replace(".bin", ".json")
    assert json.loads(record.read_text())["configuration"]["dstRes"] == [3, 3, 4]


@pytest.mark.parametrize(
    "options", [(), ("normDir=true",), ("flip_average=true",), ("intensity=equalize",)]
)
def test_a_file_is_exactly_the_networks_input(tmp_path, cases, config, options, capsys):
    config, folder = config(*options), tmp_path / "new" / "bin"
    write_inputs(cases, config, folder)
    expected = {}
    for case in cases:
        names = [case.case_id, f"{case.case_id}_mirrored"][: 1 + config.flip_average]
        volumes = network_inputs(read_image(case.image_path), config)
        for name, volume in zip(names, volumes, strict=True):
            assert volume.shape == SIDES and volume.std() > 0.5
            expected[f"{name}.bin"] = volume.astype("<f4").tobytes(order="C")
            record = json.loads((folder / f"{name}.json").read_text())
            assert record["image_sha256"] == image_hash(read_image(case.image_path))
            assert record["configuration"]["normDir"] == config.normDir
    assert contents(folder) == expected
    count = len(expected)
    assert capsys.readouterr().out == (
        f"{folder}: {count} volume(s) of [32, 48, 16] voxels, of 3 case(s)\n"
    )


def test_the_program_sees_the_same_volume_in_every_order_of_storage(tmp_path, cases, config):
    """And its outputs become the same mask in the patient."""
    image = read_image(cases[2].image_path)
    settings = config("flip_average=true")
    seen, masks = [], []
    for number, (axes, signs) in enumerate(STORAGE_ORDERS[::5]):
        path = tmp_path / f"scan{number}" / "img" / "Case.mha"
        path.parent.mkdir(parents=True)
        sitk.WriteImage(stored_in_order(image, axes, signs), str(path))
        write_inputs([Case("Case", path, path)], settings, path.parents[1])
        stand_in_program(path.parents[1], path.parents[1])
        files = [path.parents[1] / f"{name}.bin" for name in ("Case", "Case_mirrored")]
        seen.append([np.fromfile(file, "<f4") for file in files])
        outputs = [
            np.fromfile(file.with_name(f"{file.stem}_0.bin"), "<f4").reshape(SIDES)
            for file in files
        ]
        mask, _ = segment_outputs(outputs, read_image(path), settings)
        masks.append(to_patient_order(sitk.GetArrayFromImage(mask).T, mask))
    assert masks[0].any()
    for volumes, mask in zip(seen, masks, strict=True):
        # But for voxels at the image's border, which rounding leaves in or out of it.
        assert np.mean(np.abs(np.subtract(volumes, seen[0])) > 1e-4) < 1e-3
        assert (mask != masks[0]).sum() <= 2


def test_without_a_folder_they_lie_where_the_program_looks(tmp_path, cases, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_inputs(cases[:1], config())
    assert INPUT_FOLDER == "results/bin_data"  # the zoo's
    assert list(contents(tmp_path / "results" / "bin_data")) == ["Case2.bin"]


@pytest.mark.parametrize("mirrored", [False, True])
def test_each_voxel_lies_where_a_program_expects_it(
    tmp_path, make_image, small_config, oblique, mirrored
):
    """The image lies on the network grid already, so only its intensities change."""
    values = np.random.default_rng(0).integers(2, 500, (48, 32, 16)).astype(np.float32)
    values[0, 0, 5] = 1  # the only voxel that becomes 0, or almost 0 by the resampling's rounding
    direction = SAGITTAL if mirrored else oblique
    path = tmp_path / "Case0.nrrd"
    sitk.WriteImage(make_image(values, (1.5, 0.8, 3), direction=direction), str(path))
    # The sagittal image's x, y, z run to the patient's back, feet, left: the grid's y, z, x.
    grid = ("48,16,32", "3,1.5,0.8") if mirrored else ("16,32,48", "1.5,0.8,3")
    sides = [int(side) for side in grid[0].split(",")]
    config = small_config(f"VolSize={grid[0]}", f"dstRes={grid[1]}", "flip_average=true")
    write_inputs([Case("Case0", path, path)], config, tmp_path / "bin")
    content = (tmp_path / "bin" / ("Case0_mirrored.bin" if mirrored else "Case0.bin")).read_bytes()
    assert len(content) == 4 * 16 * 32 * 48
    unit = (values - values.min()) / (values.max() - values.min())
    mean, deviation = unit[unit > 0].mean(), unit[unit > 0].std()
    last = tuple(side - 1 for side in sides)
    for x, y, z in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), last, (7, 10, 2)):
        (found,) = struct.unpack_from("<f", content, 4 * ((x * sides[1] + y) * sides[2] + z))
        value = unit[47 - x, 31 - z, y] if mirrored else unit[z, y, x]
        assert found == pytest.approx((value - mean) / deviation, abs=1e-3)


def test_our_own_earlier_volumes_go(tmp_path, cases, config, capsys):
    """The program would segment them too, and its average time count them."""
    folder = tmp_path / "bin"
    write_inputs(cases, config("flip_average=true"), folder)
    assert len(contents(folder)) == 6
    (folder / "notes.txt").write_text("mine")
    first = contents(folder)
    capsys.readouterr()
    write_inputs(cases[1:], config(), folder)
    left = {name: first[name] for name in ("Case0.bin", "Case1.bin", "notes.txt")}
    assert contents(folder) == left
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: replacing 4 file(s) of an earlier run",
        f"{folder}: removing 8 file(s) of an earlier run",
        f"{folder}: 2 volume(s) of [32, 48, 16] voxels, of 2 case(s)",
    ]
    (folder / "Case2.bin").write_bytes(b"mine")  # no longer ours, so that it is safe from us
    with pytest.raises(DataError, match="Case2.bin: not written by this program"):
        write_inputs(cases[1:], config(), folder)
    assert contents(folder) == left | {"Case2.bin": b"mine"}


@pytest.mark.parametrize("name", ["Case9.bin", "Case0.bin", "Case0_mirrored.bin"])
def test_other_peoples_volumes_stay_and_stop_it(tmp_path, cases, config, name):
    folder = tmp_path / "bin"
    write_inputs(cases[:1], config(), folder)
    (folder / name).write_bytes(b"mine")
    before = contents(folder)
    with pytest.raises(DataError) as error:
        write_inputs(cases, config(), folder)
    assert str(error.value).startswith(f"{folder / name}: ")
    assert "not written by this program" in str(error.value) and "\n" not in str(error.value)
    assert contents(folder) == before


def test_what_the_cpp_program_ignores_stays_and_stops_nothing(tmp_path, cases, config):
    folder = tmp_path / "bin"
    (folder / "folder.bin").mkdir(parents=True)
    (folder / "._Case9.bin").write_text("mine")
    write_inputs(cases[:1], config(), folder)
    assert {path.name for path in folder.glob("*.bin")} == {
        *("Case2.bin", "folder.bin", "._Case9.bin")
    }


def test_a_case_named_like_anothers_mirror_image_is_refused(tmp_path, write_case, config):
    for name in ("A", "A_mirrored"):
        write_case(tmp_path / "data", name)
    cases = find_cases(tmp_path / "data", ["A", "A_mirrored"])
    with pytest.raises(DataError, match="A_mirrored.bin: two cases"):
        write_inputs(cases, config("flip_average=true"), tmp_path / "bins")
    assert not (tmp_path / "bins").exists()


def test_a_broken_image_stops_it_before_anything_is_written(tmp_path, data, cases, config):
    path = data / "img" / "Case0.raw"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"Case0\.raw: truncated"):
        write_inputs(cases, config(), tmp_path / "new" / "bin")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made(tmp_path, cases, config):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="file/bin: cannot be written"):
        write_inputs(cases, config(), tmp_path / "file" / "bin")


def test_a_full_disk_leaves_no_half_written_volume(tmp_path, cases, config, full_disk):
    with full_disk(5000), pytest.raises(DataError, match=r"Case2\.bin: cannot be written"):
        write_inputs(cases, config(), tmp_path / "bin")
    assert contents(tmp_path / "bin") == {}


# Its outputs ------------------------------------------------------------------------------------


@pytest.fixture
def run_program(tmp_path, cases, config):
    """Function configuration -> folder of outputs to the cases' volumes."""

    def output(settings):
        write_inputs(cases, settings, tmp_path / "bin")
        stand_in_program(tmp_path / "bin", tmp_path / "outputs")
        return tmp_path / "outputs"

    return output


@pytest.mark.parametrize(
    ("options", "drawn"),
    [(("threshold=0.6",), True), (("flip_average=true", "normDir=true"), False)],
)
def test_the_masks_and_metrics_are_those_of_an_evaluation(
    tmp_path, cases, config, run_program, options, drawn, capsys, request
):
    if not drawn:
        request.getfixturevalue("undrawn")
    python = config(*options)
    expected = evaluate(sloping, cases, python, {"checkpoint": "best.ckpt"})
    printed = capsys.readouterr().out
    assert all(0.01 < row["dice"] < 1 for row in expected)
    outputs = run_program(python)
    capsys.readouterr()
    settings = config(*options, f"dirPredictionImage={tmp_path / 'through files'}")
    rows = evaluate_outputs(cases, results_in(outputs, settings), {"model": "vnet.mindir"})
    assert rows == expected
    assert capsys.readouterr().out == printed.replace("/masks", "/through files")
    masks, through_files = contents(tmp_path / "masks"), contents(tmp_path / "through files")
    for folder in (masks, through_files):
        folder["summary.json"] = json.loads(folder["summary.json"])["mean"]  # without paths
        reports = json.loads(folder.pop("metrics.json"))
        assert [row["case"] for row in reports["cases"]] == ["Case2", "Case0", "Case1"]
        page = folder.pop("report.html").decode()
    assert reports["model"] == "vnet.mindir" and ("<td>vnet.mindir</td>" in page) == drawn
    assert reports["configuration"] == {key: settings[key] for key in KNOWN}
    assert through_files == masks and len(masks) == 9
    table = pd.read_csv(tmp_path / "through files" / "metrics.csv")
    assert table["dice"].tolist() == pytest.approx([row["dice"] for row in rows], abs=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_the_mirrored_output_counts(tmp_path, cases, config, run_program):
    """Otherwise the test above could not tell a mirrored output from the plain one."""
    settings = config("flip_average=true")
    outputs = run_program(settings)
    evaluate_outputs(cases, results_in(outputs, settings), {})
    before = contents(tmp_path / "masks")
    for case in cases:
        output = np.zeros(SIDES, "<f4").tobytes()
        (outputs / f"{case.case_id}_mirrored_0.bin").write_bytes(output)
    evaluate_outputs(cases, results_in(outputs, settings), {})
    after = contents(tmp_path / "masks")
    for case in cases:
        assert before[f"{case.case_id}_test.zraw"] != after[f"{case.case_id}_test.zraw"]


@pytest.mark.usefixtures("undrawn")
def test_outputs_of_other_cases_are_left_alone(tmp_path, cases, config, run_program):
    outputs = run_program(config())
    (outputs / "Case9_0.bin").write_bytes(b"of an earlier run")
    before = contents(outputs)
    rows = evaluate_outputs(cases[:2], results_in(outputs, config()), {})
    assert [row["case"] for row in rows] == ["Case2", "Case0"]
    assert contents(outputs) == before


def with_value(value):
    def change(path):
        output = np.fromfile(path, "<f4")
        output[1000] = value
        output.tofile(path)

    return change


BYTES = 4 * 32 * 48 * 16
SPOILED = {
    "missing": (lambda path: path.unlink(), "no such result; run preprocess.py, then the C++"),
    "cut": (
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        f"{BYTES - 1} bytes, expected {BYTES} for [32, 48, 16] voxels",
    ),
    "two volumes": (
        lambda path: path.write_bytes(2 * path.read_bytes()),
        f"{2 * BYTES} bytes, expected {BYTES}",
    ),
    "empty": (lambda path: path.write_bytes(b""), "0 bytes"),
    "NaN": (with_value(np.nan), "nan"),
    "infinite": (with_value(np.inf), "to inf, expected probabilities"),
    "above 1": (with_value(1.001), "to 1.001, expected probabilities"),
    "below 0": (with_value(-0.001), "from -0.001 to"),
}


@pytest.mark.parametrize("name", ["Case0", "Case0_mirrored"])
@pytest.mark.parametrize("fault", SPOILED)
def test_a_bad_output_is_one_line_and_nothing_is_written(
    tmp_path, cases, config, run_program, fault, name
):
    settings = config("flip_average=true")
    outputs = run_program(settings)
    path = outputs / f"{name}_0.bin"
    spoil, says = SPOILED[fault]
    spoil(path)
    with pytest.raises(DataError) as error:
        evaluate_outputs(cases, results_in(outputs, settings), {})
    message = str(error.value)
    assert message.startswith(f"{path}: ") and says in message and "\n" not in message
    assert not (tmp_path / "masks").exists()


@pytest.mark.usefixtures("undrawn")
def test_outputs_of_exactly_0_and_1_are_probabilities(tmp_path, cases, config, run_program):
    outputs = run_program(config())
    for path in outputs.glob("*.bin"):
        np.repeat([0, 1], 32 * 48 * 8).astype("<f4").tofile(path)
    assert len(evaluate_outputs(cases, results_in(outputs, config()), {})) == 3


@pytest.mark.usefixtures("undrawn")
def test_a_broken_reference_leaves_nothing_behind(tmp_path, data, cases, config, run_program):
    outputs = run_program(config())
    path = data / "gt" / "Case0_segmentation.raw"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"Case0_segmentation\.raw: truncated"):
        evaluate_outputs(cases, results_in(outputs, config()), {})
    assert not (tmp_path / "masks").exists()


def test_other_peoples_masks_stay(tmp_path, cases, config, run_program):
    outputs = run_program(config())
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "Case0_test.mhd").write_text("mine")
    with pytest.raises(DataError, match="Case0_test.mhd: there already"):
        evaluate_outputs(cases, results_in(outputs, config()), {})
    assert contents(tmp_path / "masks") == {"Case0_test.mhd": b"mine"}


@pytest.mark.parametrize("change", ["voxels", "geometry"])
def test_results_of_another_image_of_the_same_name_are_refused(
    tmp_path, data, cases, config, run_program, change
):
    """Such as those of an image that was corrected since, or of another folder."""
    settings = config("flip_average=true")
    outputs = run_program(settings)
    path = data / "img" / "Case0.mhd"
    image = sitk.ReadImage(str(path))
    before = image_hash(read_image(path))
    if change == "voxels":
        image[0, 0, 0] = 5
    else:
        image.SetSpacing([1.001 * side for side in image.GetSpacing()])
        reference = sitk.ReadImage(str(data / "gt" / "Case0_segmentation.mhd"))
        reference.CopyInformation(image)
        sitk.WriteImage(reference, str(data / "gt" / "Case0_segmentation.mhd"))
    sitk.WriteImage(image, str(path))
    with pytest.raises(DataError) as error:
        evaluate_outputs(cases, results_in(outputs, settings), {})
    after = image_hash(read_image(path))
    assert str(error.value) == (
        f"{outputs}/Case0_0.json: Case0_0.bin is of an image with the hash {before}, expected "
        f"{after}, that of {path}; run preprocess.py, then the C++ program on {INPUT_FOLDER}"
    )
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"image_sha256": null}'])
@pytest.mark.parametrize("name", ["Case0", "Case0_mirrored"])
def test_results_of_which_the_image_is_not_known_are_refused(
    tmp_path, cases, config, run_program, name, text
):
    """Such as those of volumes that an earlier version wrote."""
    settings = config("flip_average=true")
    record = run_program(settings) / f"{name}_0.json"
    record.unlink() if text is None else record.write_text(text)
    with pytest.raises(DataError, match=rf"^{record}: missing or damaged.*preprocess\.py, then"):
        evaluate_outputs(cases, results_in(record.parent, settings), {})
    assert not (tmp_path / "masks").exists()


def test_results_of_another_version_of_preprocessing_are_refused(
    tmp_path, cases, config, run_program, monkeypatch
):
    settings = config()
    outputs = run_program(settings)
    monkeypatch.setattr("src.export.infer_310.PREPROCESSING", 0)
    with pytest.raises(
        DataError, match=r"another version of preprocess\.py; run preprocess\.py, th"
    ):
        evaluate_outputs(cases, results_in(outputs, settings), {})
    assert not (tmp_path / "masks").exists()


@pytest.mark.usefixtures("undrawn")
def test_further_cases_can_be_added_to_the_results(tmp_path, cases, config):
    """preprocess.py removes the volumes of the first; their results keep their records."""
    for part in (cases[:2], cases[2:]):
        write_inputs(part, config(), tmp_path / "bin")
        stand_in_program(tmp_path / "bin", tmp_path / "outputs")
    assert len(evaluate_outputs(cases, results_in(tmp_path / "outputs", config()), {})) == 3


# The two commands -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "further", "count"),
    [
        ((), [], 2),
        (("flip_average=true", "normDir=true"), [], 4),
        ((), ["flip_average=true"], 4),
        (("flip_average=true",), ["flip_average=false"], 2),
    ],
)
def test_the_commands_take_all_from_beside_the_model(
    tmp_path, data, cases, config, monkeypatch, capsys, options, further, count, request
):
    """With few words: the zoo's folders, and the model where an export leaves it."""
    drawn = not (options or further)
    if not drawn:
        request.getfixturevalue("undrawn")
    monkeypatch.chdir(tmp_path)
    shutil.move(data, tmp_path / "promise")
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "val.csv").write_text("Case1.mhd\nCase0.mhd\n")
    model = tmp_path / "vnet.mindir"
    model.write_bytes(b"model")
    hashes = {"sha256": hash_file(model), "checkpoint_sha256": "0"}
    files = {model.name: {"format": "MINDIR", **hashes}}
    trained = config("threshold=0.45", *options)
    model.with_suffix(".json").write_text(json.dumps(describe(trained, 1, files)))

    flip = [word for item in further for word in ("--set", item)]
    monkeypatch.setattr(sys, "argv", ["preprocess.py", *flip])
    run_script("preprocess")
    stand_in_program(tmp_path / INPUT_FOLDER, tmp_path / "result_Files")
    assert len(contents(tmp_path / "result_Files")) == count
    shutil.copy(model.with_suffix(".json"), tmp_path / "result_Files" / MODEL_RECORD)
    words = "--result_path result_Files --language zh --set threshold=0.4"
    words += " --set dirPredictionImage=files"
    monkeypatch.setattr(sys, "argv", ["postprocess.py", *words.split(), *flip])
    capsys.readouterr()
    run_script("postprocess")

    printed = capsys.readouterr().out
    cases = find_cases(tmp_path / "promise", ["Case1", "Case0"])
    wanted = config("threshold=0.4", *options, *further)
    evaluate(sloping, cases, wanted, {})
    assert printed == capsys.readouterr().out.replace(str(tmp_path / "masks"), "files")
    report = json.loads((tmp_path / "files" / "metrics.json").read_text())
    assert report["model"] == "./vnet.mindir"
    page = (tmp_path / "files" / "report.html").read_text("utf-8")
    assert ("<h2>来源</h2>" in page) == drawn
    assert report["configuration"] == {key: wanted[key] for key in KNOWN}
    for name, content in contents(tmp_path / "masks").items():
        if name not in ("metrics.json", "summary.json", "report.html"):
            assert (tmp_path / "files" / name).read_bytes() == content


@pytest.mark.parametrize("flip", ["false", "true"])
@pytest.mark.usefixtures("undrawn")
def test_the_program_runs_again_for_a_gland_far_from_the_grids_centre(
    tmp_path, data, cases, config, monkeypatch, capsys, flip
):
    """On a volume about the gland; the masks are those of an evaluation in Python."""
    for path in (cases[0].image_path, cases[0].mask_path):
        # 30 mm more at one end of each axis in the slices: the gland lies off by half of it.
        padded = sitk.ConstantPad(sitk.ReadImage(str(path)), [0, 0, 0], [60, 60, 0])
        sitk.WriteImage(padded, str(path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val.csv").write_text("Case0.mhd\nCase1.nii.gz\nCase2.mha\n")
    model = tmp_path / "vnet.mindir"
    model.write_bytes(b"model")
    hashes = {"sha256": hash_file(model), "checkpoint_sha256": "0"}
    trained = config("recentre=true", "dstRes=2,2,4", f"flip_average={flip}")
    content = describe(trained, 1, {model.name: {"format": "MINDIR", **hashes}})
    model.with_suffix(".json").write_text(json.dumps(content))
    assert "more than 15 mm from the centre of the model's grid" in content["postprocessing"][-1]

    def command(name, *further):
        words = ["--data_path", "data", "--split_file_path", "val.csv"]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words, *further])
        capsys.readouterr()
        code = 0
        try:
            run_script(name)
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr()

    results, again = tmp_path / "result_Files", ("--result_path", "result_Files")
    _, printed = command("preprocess")
    assert printed.out.splitlines()[1].startswith("recentre: once the C++ program has run, ")
    stand_in_program(tmp_path / INPUT_FOLDER, results, bright)
    shutil.copy(model.with_suffix(".json"), results / MODEL_RECORD)
    _, printed = command("preprocess", *again)
    (name,) = (tmp_path / RECENTRED_FOLDER).glob("Case2_about_*[0-9].bin")
    names = [name.stem] + [f"{name.stem}_mirrored"] * (flip == "true")
    about_mm = [float(place) for place in name.stem.split("_")[2:]]
    assert printed.out == (
        f"{RECENTRED_FOLDER}: {len(names)} volume(s) of [32, 48, 16] voxels, of 1 case(s)\n"
    )
    assert set(contents(tmp_path / RECENTRED_FOLDER)) == {f"{name}.bin" for name in names}

    code, printed = command("postprocess", *again)
    assert code == 1 and not (tmp_path / "masks").exists()
    line = (
        f"result_Files/{names[0]}_0.bin: no such result; the gland lies far from the grid's centre"
    )
    assert line in printed.err and RECENTRED_FOLDER in printed.err

    stand_in_program(tmp_path / RECENTRED_FOLDER, results, bright)
    _, printed = command("preprocess", *again)
    assert printed.out == "no case has to be segmented again on a moved grid\n"
    command("postprocess", *again, "--set", "dirPredictionImage=files")
    evaluate(bright, cases, trained, {})
    tables = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("files", "masks")]
    pd.testing.assert_frame_equal(
        *(table.sort_values("case", ignore_index=True) for table in tables)
    )
    fixed = config("dstRes=2,2,4", f"flip_average={flip}", f"dirPredictionImage={tmp_path}/fixed")
    fixed_dice = {row["case"]: row["dice"] for row in evaluate(bright, cases, fixed, {})}
    dice = tables[0].set_index("case")["dice"]
    assert dice["Case2"] > fixed_dice["Case2"] + 0.5
    assert dice["Case0"] == pytest.approx(fixed_dice["Case0"], abs=1e-6)  # as a table has it

    image = read_image(cases[0].image_path)
    found = segment_inputs(bright, network_inputs(image, trained), image, trained)
    np.testing.assert_allclose(found.centre_mm, about_mm, atol=1e-9)

    # The place is the same for another image of this case: its result is not taken.
    settings = Results([results], trained, models=1)
    record = results / f"{names[-1]}_0.json"
    ours = record.read_text()
    for text in ("", json.dumps({"image_sha256": "another"})):
        record.write_text(text)
        assert settings.next_attempt(cases[0]).volume_names(trained) == names
        with pytest.raises(DataError, match=rf"{record}: .*--result_path.*{RECENTRED_FOLDER}"):
            settings.segment(cases[0], image)
    record.write_text(ours)
    assert settings.next_attempt(cases[0]) is None

    # Of an ensemble, each model has to have run on the moved grid.
    shutil.copytree(results, tmp_path / "second")
    both = Results([results, tmp_path / "second"], trained, models=2)
    assert both.next_attempt(cases[0]) is None
    mask = both.segment(cases[0], image).mask
    np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (mask, found.mask)))
    (tmp_path / "second" / f"{names[-1]}_0.bin").unlink()
    attempt = both.next_attempt(cases[0])
    assert attempt.case == cases[0] and attempt.volume_names(trained) == names

    # With another threshold the gland's centre is another: no result is taken for that of its grid.
    other = ("--set", "threshold=0.99999")
    assert command("postprocess", *again, "--set", "dirPredictionImage=files")[0] == 0
    for volume in results.glob("Case2*.bin"):
        output = np.fromfile(volume, "<f4")
        half = (
            slice(output.size // 2) if "mirr" not in volume.name else slice(output.size // 2, None)
        )
        output[half] *= 0.9  # along X
        output.tofile(volume)
    code, printed = command("postprocess", *again, *other)
    assert code == 1 and "no such result" in printed.err


# Ensembles ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_of_several_models_the_mean_probability_counts(tmp_path, cases, config):
    """The same masks as from Python's mean; the first model alone has others."""
    cases = cases[:1]
    settings = config("flip_average=true", "threshold=0.4")
    write_inputs(cases, settings, tmp_path / "bin")

    def darker(batch):
        return ms.Tensor(sloping(batch).asnumpy() ** 2)

    def both(batch):
        return ms.Tensor((sloping(batch).asnumpy() + darker(batch).asnumpy()) / np.float32(2))

    for name, network in (("a", sloping), ("b", darker), ("mean", both)):
        stand_in_program(tmp_path / "bin", tmp_path / name, network)
    folders = [tmp_path / "a", tmp_path / "b"]
    found = evaluate_outputs(cases, Results(folders, settings, models=2), {})
    assert found == evaluate_outputs(cases, results_in(tmp_path / "mean", settings), {})
    assert found != evaluate_outputs(cases, results_in(folders[0], settings), {})


@pytest.mark.parametrize(
    ("names", "models"), [(["a"], 2), (["a", "b", "c"], 2), (["a", "b"], 1), (["a", "./a"], 2)]
)
def test_too_few_or_too_many_results_are_refused(names, models, tmp_path, config):
    folders = [f"{tmp_path}/{name}" for name in names]
    with pytest.raises(UsageError, match=rf"--result_path .*/a.*: expected {models} different"):
        Results(folders, config(), models)


# Results of another model ------------------------------------------------------------------------


def exported(folder, name, checkpoint, config):
    """A stand-in of an exported model, with its description; returns its path."""
    model = folder / f"{name}.mindir"
    model.write_bytes(name.encode())
    hashes = {"sha256": hash_file(model), "checkpoint_sha256": checkpoint}
    description = describe(config, 1, {model.name: {"format": "MINDIR", **hashes}})
    model.with_suffix(".json").write_text(json.dumps(description))
    return model


@pytest.mark.usefixtures("undrawn")
def test_results_of_another_model_are_refused(tmp_path, data, cases, config):
    """The C++ program copies the model's description into the folder of its results."""
    settings, split = config(), tmp_path / "val.csv"
    split.write_text("".join(f"{case.image_path.name}\n" for case in cases))
    ours, other = (exported(tmp_path, name, name, settings) for name in ("ours", "other"))
    write_inputs(cases, settings, tmp_path / "bin")
    stand_in_program(tmp_path / "bin", tmp_path / "outputs")
    arguments = data, split, ours, [tmp_path / "outputs"], [f"dirPredictionImage={tmp_path}/out"]
    record = tmp_path / "outputs" / MODEL_RECORD
    with pytest.raises(DataError, match=rf"{record}: no such file, .*'s \.json beside the model"):
        postprocess(*arguments)
    shutil.copy(ours.with_suffix(".json"), record)
    assert len(postprocess(*arguments)) == len(cases)

    coarser = json.loads(record.read_text())
    coarser["configuration"]["dstRes"] = [5, 5, 5]
    for text in (other.with_suffix(".json").read_text(), json.dumps(coarser)):
        record.write_text(text)
        for command in (
            lambda: postprocess(*arguments),
            lambda: preprocess(data, split, ours, [], [tmp_path / "outputs"]),
        ):
            words = rf"{record}: these results are not of {ours}, .*again"
            with pytest.raises(DataError, match=words):
                command()
    record.write_text("[]")
    with pytest.raises(DataError, match=rf"{record}: cannot be read .*the description of the"):
        postprocess(*arguments)
