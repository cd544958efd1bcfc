"""What users do wrong at the command line: one line, the right exit code, nothing left behind."""

import json
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from src.checkpoint import save_weights
from src.config import PRESETS, load_config, override_config, save_config, vnet_cfg
from src.data_manager import PREPROCESSING
from src.earlier_masks import image_hash
from src.export.description import describe
from src.images.reading import read_image
from src.utils.files import hash_file
from src.vnet import create_vnet
from tests.helpers import ROOT

SMALL = "--set VolSize=16,16,16 --set dstRes=4,4,4 --set width=2 --set cache_dir=off"
TRAIN = f"train.py --device_target CPU --data_path data --train_split_file_path train.csv {SMALL}"
EVAL = "eval.py --device_target CPU --data_path data --eval_split_file_path val.csv"
PREDICT = "predict.py --device_target CPU --output_path masks"
EXPORT = "export.py --device_target CPU --ckpt_file run/best.ckpt --file_name out/vnet"
PREPROCESS = "preprocess.py --data_path data --split_file_path val.csv --mindir_path vnet.mindir"
POSTPROCESS = PREPROCESS.replace("pre", "post") + " --result_path answers"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory, write_case):
    """Three good cases, their splits, a checkpoint with its configuration, and what an export and
    the C++ program would have left."""
    folder = tmp_path_factory.mktemp("healthy")
    for number in range(3):
        write_case(folder / "data", f"Case0{number}", suffix=".mha", seed=number)
    (folder / "train.csv").write_text("Case00.mhd\nCase01.mhd\n")
    (folder / "val.csv").write_text("Case02.mhd\n")
    (folder / "run").mkdir()
    config = override_config(vnet_cfg, ["VolSize=16,16,16", "dstRes=4,4,4", "width=2"])
    save_config(config, folder / "run" / "config.json")
    save_weights(create_vnet(config), folder / "run" / "best.ckpt")
    model = folder / "vnet.mindir"
    model.write_bytes(b"model")
    hashes = {"sha256": hash_file(model), "checkpoint_sha256": "0"}
    files = {model.name: {"format": "MINDIR", **hashes}}
    model.with_suffix(".json").write_text(json.dumps(describe(config, 1, files)))
    (folder / "answers").mkdir()
    shutil.copy(model.with_suffix(".json"), folder / "answers" / "model.json")
    for number in range(3):
        answer = np.full((16, 16, 16), 0.9, "<f4")
        (folder / "answers" / f"Case0{number}_0.bin").write_bytes(answer.tobytes())
        image = read_image(folder / "data" / "img" / f"Case0{number}.mha")
        record = {"preprocessing": PREPROCESSING, "image_sha256": image_hash(image)}
        (folder / "answers" / f"Case0{number}_0.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def case_folder(healthy, tmp_path, monkeypatch):
    """A copy of the healthy folder to spoil, as the working directory."""
    shutil.copytree(healthy, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(command, monkeypatch, capfd):
    """Runs an entry point in this process: (exit code, last line of stderr)."""
    script, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return ended.value.code, capfd.readouterr().err.strip().splitlines()[-1]


def rewrite(path, change):
    """Replaces a volume by what `change` makes of its voxels (z, y, x)."""
    image = sitk.ReadImage(str(path))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    if changed.GetDimension() == image.GetDimension() and changed.GetSize() == image.GetSize():
        changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path))


def shifted(path):
    image = sitk.ReadImage(str(path))
    image.SetOrigin([place + 5 for place in image.GetOrigin()])
    sitk.WriteImage(image, str(path))


def truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def with_nan(array):
    array = array.astype(np.float32)
    array[0, 0, 0] = np.nan
    return array


IMAGE, MASK = "data/img/Case01.mha", "data/gt/Case01_segmentation.mha"
SPOILED = {
    "missing split": (lambda: Path("train.csv").unlink(), "train.csv"),
    "empty split": (lambda: Path("train.csv").write_text("\n"), "train.csv"),
    "case not there": (lambda: Path("train.csv").write_text("Case00.mhd\nCase77.mhd\n"), "Case77"),
    "mask not there": (lambda: Path(MASK).unlink(), "Case01_segmentation"),
    "truncated": (lambda: truncated(Path(IMAGE)), "Case01.mha"),
    "corrupt header": (lambda: Path(IMAGE).write_bytes(b"rubbish" * 100), "Case01.mha"),
    "two-dimensional": (lambda: rewrite(IMAGE, lambda array: array[0]), "Case01.mha"),
    "other size": (lambda: rewrite(MASK, lambda array: array[:-1]), "Case01_segmentation.mha"),
    "other geometry": (lambda: shifted(MASK), "Case01_segmentation.mha"),
    "all zero": (lambda: rewrite(IMAGE, np.zeros_like), "Case01.mha"),
    "NaN": (lambda: rewrite(IMAGE, with_nan), "Case01.mha"),
    "foreign labels": (lambda: rewrite(MASK, lambda array: array * 3), "Case01_segmentation.mha"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_training_refuses_bad_data(fault, case_folder, monkeypatch, capfd):
    spoil, named = SPOILED[fault]
    spoil()
    before = sorted(case_folder.rglob("*"))
    code, line = call(TRAIN, monkeypatch, capfd)
    assert code == 1
    assert line.startswith("error: ") and named in line
    assert sorted(case_folder.rglob("*")) == before, "nothing may be left behind"


OF_MASKS = ("other size", "other geometry", "foreign labels")  # which preprocess.py does not read


@pytest.mark.parametrize(
    ("command", "fault"),
    [(PREPROCESS, fault) for fault in SPOILED if fault not in OF_MASKS]
    + [(POSTPROCESS, fault) for fault in SPOILED],
)
def test_the_way_through_the_program_refuses_bad_data(
    command, fault, case_folder, monkeypatch, capfd
):
    spoil, named = SPOILED[fault]
    spoil()
    before = sorted(case_folder.rglob("*"))
    code, line = call(command.replace("val.csv", "train.csv"), monkeypatch, capfd)
    assert code == 1
    assert line.startswith("error: ") and named in line
    assert sorted(case_folder.rglob("*")) == before


@pytest.mark.parametrize("command", [PREPROCESS, POSTPROCESS])
@pytest.mark.parametrize("name", ["vnet.mindir", "vnet.json"])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("{}")])
def test_a_model_and_its_description_must_fit(
    command, name, spoil, case_folder, monkeypatch, capfd
):
    spoil(case_folder / name)
    before = sorted(case_folder.rglob("*"))
    code, line = call(command, monkeypatch, capfd)
    assert (code, "python export.py" in line) == (1, True), line
    assert "vnet.json: " in line or "vnet.mindir: no such model" in line
    assert sorted(case_folder.rglob("*")) == before


@pytest.mark.parametrize("command", [PREPROCESS, POSTPROCESS])
def test_a_model_of_two_volumes_per_call_is_refused(command, case_folder, monkeypatch, capfd):
    description = json.loads((case_folder / "vnet.json").read_text())
    description["input"]["shape"][0] = 2
    (case_folder / "vnet.json").write_text(json.dumps(description))
    before = sorted(case_folder.rglob("*"))
    code, line = call(command, monkeypatch, capfd)
    assert (code, "vnet.json: the model takes 2 volumes per call" in line) == (1, True), line
    assert "--batch_size 1: python export.py" in line
    assert sorted(case_folder.rglob("*")) == before


@pytest.mark.parametrize("command", [TRAIN, EVAL + " --ckpt_path run/best.ckpt"])
def test_a_broken_validation_case_is_found_before_anything_runs(
    command, case_folder, monkeypatch, capfd
):
    truncated(case_folder / "data" / "img" / "Case02.mha")
    before = sorted(case_folder.rglob("*"))
    extra = " --val_split_file_path val.csv" if command is TRAIN else ""
    code, line = call(command + extra, monkeypatch, capfd)
    assert code == 1
    assert "Case02.mha" in line
    assert sorted(case_folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (TRAIN + " --set widht=4", 2, "did you mean 'width'"),
        (TRAIN + " --set VolSize=20,16,16", 2, "multiples of 16"),
        (TRAIN + " --set epochs=many", 2, "epochs=many"),
        (TRAIN + " --no_such_argument 1", 2, "no_such_argument"),
        (TRAIN.replace("CPU", "TPU"), 2, "TPU"),
        (TRAIN.replace("CPU", "Ascend"), 1, "device Ascend is not available"),
        (TRAIN + " --resume run", 1, "run"),
        (TRAIN + " --run_distribute 1 --device_num 2", 2, "no launcher started this process"),
        (TRAIN + " --device_num 2", 2, "--device_num: goes with --run_distribute 1"),
        ("create_csv.py --random 1 --folds 5", 2, "--random: goes with one split"),
        ("create_csv.py --seed 7", 2, "--seed: goes with --random 1 or --folds K"),
        (
            PREDICT + " --ckpt_path run --input x --output_path a --set dirPredictionImage=b",
            2,
            "one",
        ),
        (TRAIN + " --set precision=mixed", 2, "Ascend and GPU only"),
        (TRAIN + " --set task=a/b", 2, "letters, digits, space"),
        (TRAIN + " --resume", 1, "no run vnet.promise12.* to resume"),
        (TRAIN + " --set dirResult=train.csv/runs", 1, "train.csv"),
        (TRAIN + " --set batch_size=1000000", 1, "batch_size=1000000"),
        (EVAL, 2, "--ckpt_path"),
        (EVAL + " --ckpt_path absent.ckpt", 1, "absent.ckpt: no such checkpoint"),
        (EVAL + " --ckpt_path data", 1, "data: no checkpoint in this folder, which holds gt, img"),
        (EVAL + " --ckpt_path run --config no.yaml", 1, "no.yaml: cannot be read"),
        (EVAL + " --ckpt_path run --config train.csv", 2, "train.csv: expected lines such as"),
        (EVAL + " --ckpt_path run --config vnet.json", 2, "vnet.json: unknown configuration key"),
        (EVAL + " --ckpt_path train.csv --set width=2", 1, "train.csv"),
        (
            EVAL.replace("CPU", "Ascend") + " --ckpt_path run/best.ckpt",
            1,
            "device Ascend is not available",
        ),
        (EVAL + " --ckpt_path run/best.ckpt --set width=4", 2, "width=2"),
        (EVAL + " --ckpt_path run/best.ckpt --set variant=paper", 2, "variant=zoo"),
        (EVAL + " --ckpt_path run/best.ckpt --set dirPredictionImage=val.csv", 1, "val.csv"),
        (PREDICT + " --ckpt_path run/best.ckpt --input absent.mhd", 1, "absent.mhd"),
        (PREDICT + " --ckpt_path run/best.ckpt --input run", 1, "run"),
        (EXPORT.replace("--ckpt_file run/best.ckpt", ""), 2, "--ckpt_file"),
        (EXPORT.replace("CPU", "TPU"), 2, "TPU"),
        (EXPORT + " --file_format TFLITE", 2, "TFLITE"),
        (EXPORT + " --file_format AIR", 2, "AIR needs an Ascend device"),
        (EXPORT + " --file_format ONNX --conv2d", 2, "--conv2d: not for"),
        (EXPORT + " --file_format ONNX --mindir_version 1", 2, "only for --file_format MINDIR"),
        (EXPORT + " --mindir_version 2", 2, "--mindir_version"),
        (EXPORT + " --batch_size many", 2, "--batch_size"),
        (EXPORT + " --batch_size 0", 2, "batch_size"),
        (EXPORT + " --file_name ''", 2, "--file_name: an empty value"),
        (EVAL + " --ckpt_path run ''", 2, "--ckpt_path: an empty value"),
        (EVAL + " --ckpt_path=", 2, "--ckpt_path: an empty value"),
        (TRAIN + " --resume ''", 2, "--resume: an empty value"),
        (TRAIN + " --set ''", 2, "--set: an empty value"),
        (TRAIN + " --labels ''", 2, "--labels: an empty value"),
        ("create_csv.py --out_path ''", 2, "--out_path: an empty value"),
        (PREPROCESS + " --result_path answers ''", 2, "--result_path: an empty value"),
        (EXPORT + " --batch_size -2", 2, "batch_size"),
        (EXPORT + " --set widht=4", 2, "did you mean 'width'"),
        (EXPORT + " --set VolSize=20,16,16", 2, "multiples of 16"),
        (EXPORT + " --set width=4", 2, "width=2"),
        (EXPORT + " --set variant=monai", 2, "variant=zoo"),
        (EXPORT.replace("run/best", "absent"), 1, "absent.ckpt: no such checkpoint"),
        (EXPORT.replace("run/best.ckpt", "train.csv") + " --set width=2", 1, "train.csv"),
        (EXPORT.replace("out/vnet", "train.csv/vnet"), 1, "train.csv: cannot be written"),
        (EXPORT.replace("out/vnet", "train.csv/a/vnet"), 1, "train.csv/a: cannot be written"),
        (EXPORT.replace("out/vnet", "vnet"), 1, "vnet.mindir: there already"),
        (PREPROCESS.replace("vnet.mindir", "no.mindir"), 1, "no.mindir: no such model"),
        (PREPROCESS.replace("val.csv", "no.csv"), 1, "no.csv: no such split"),
        (PREPROCESS.replace("path data", "path nowhere"), 1, "nowhere/img: no such folder"),
        (PREPROCESS + " --set VolSize=32,32,32", 2, "VolSize=[16, 16, 16]"),
        (PREPROCESS + " --set normDir=true", 2, "normDir=False"),
        (PREPROCESS + " --set treshold=0.4", 2, "did you mean 'threshold'"),
        (POSTPROCESS.replace("--result_path answers", ""), 2, "--result_path"),
        (POSTPROCESS.replace("answers", "run"), 1, "run/model.json: no such file"),
        (POSTPROCESS + " --set dstRes=1,1,1", 2, "dstRes=[4.0, 4.0, 4.0]"),
        (POSTPROCESS + " --set dirPredictionImage=val.csv", 1, "val.csv"),
    ],
)
def test_wrong_words_get_one_line(command, code, says, case_folder, monkeypatch, capfd):
    if "--resume run" in command:
        (case_folder / "run" / "config.json").unlink()
    before = sorted(case_folder.rglob("*"))
    found, line = call(command, monkeypatch, capfd)
    assert (found, says in line) == (code, True), line
    assert sorted(case_folder.rglob("*")) == before


def test_a_training_gets_what_its_preset_says(case_folder, monkeypatch):
    """And --set on top; a resumed run keeps its own."""
    given = []
    monkeypatch.setattr("src.training.trainer.train", lambda config, *_, **__: given.append(config))
    train = "train.py --device_target CPU --set epochs=7"
    for words in ("--preset compact", "--preset compact --resume run"):
        monkeypatch.setattr(sys, "argv", [*train.split(), *words.split()])
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    own = load_config(case_folder / "run" / "config.json")
    assert given == [{**vnet_cfg, **PRESETS["compact"], "epochs": 7}, {**own, "epochs": 7}]


def test_settings_count_in_the_order_preset_file_set(case_folder, monkeypatch):
    given = []
    monkeypatch.setattr("src.training.trainer.train", lambda config, *_, **__: given.append(config))
    Path("own.yaml").write_text("epochs: 8\nbatch_size: 3\nlr: 1e-4\n")
    words = "--preset compact --set epochs=7 --config own.yaml --labels 2"
    monkeypatch.setattr(sys, "argv", f"train.py --device_target CPU {words}".split())
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    own = {"batch_size": 3, "lr": 1e-4, "epochs": 7, "labels": [2]}
    assert given == [{**vnet_cfg, **PRESETS["compact"], **own}]


def test_a_checkpoints_configuration_is_what_a_file_changes(case_folder, monkeypatch):
    Path("own.yaml").write_text("threshold: 0.3\ndirPredictionImage: elsewhere\n")
    argv = f"{EVAL} --ckpt_path run --config own.yaml --set threshold=0.4".split()
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(str(ROOT / "eval.py"), run_name="__main__")
    written = json.loads((case_folder / "elsewhere" / "metrics.json").read_text())
    own = load_config(case_folder / "run" / "config.json")
    assert written["configuration"] == {
        **own,
        "threshold": 0.4,
        "dirPredictionImage": "elsewhere",
    }
    assert written["checkpoint"] == "run/best.ckpt"


def test_a_device_is_chosen_where_none_is_named(case_folder, monkeypatch, capsys):
    """As on a machine with a GPU, which gets the zoo's lower learning rate."""
    given, started = [], []
    monkeypatch.setattr("src.training.trainer.train", lambda *args, **_: given.append(args))
    monkeypatch.setattr("src.devices.device.choose_device", {"auto": "GPU"}.get)
    monkeypatch.setattr("src.devices.device.start_device", lambda *args: started.append(args))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    config, target, *_ = given[0]
    assert (config.lr, target, started) == (0.0005, "GPU", [("GPU", 0)])


def test_a_release_takes_set(case_folder, monkeypatch):
    argv = ["release.py", "--ckpt_file", "run/best.ckpt", "--set", "threshold=0.3"]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(str(ROOT / "tools/release.py"), run_name="__main__")
    own = load_config(case_folder / "run" / "config.json")
    assert load_config(case_folder / "release" / "config.json") == {**own, "threshold": 0.3}


def test_a_cut_checkpoint_is_refused_by_eval(case_folder, monkeypatch, capfd):
    truncated(case_folder / "run" / "best.ckpt")
    code, line = call(EVAL + " --ckpt_path run/best.ckpt", monkeypatch, capfd)
    assert (code, "best.ckpt" in line) == (1, True)
    assert not (case_folder / "results").exists()
