"""The wheel's own GPU plug-in, over stand-ins for CUDA, cuDNN and NCCL (gpu_standin/build.py).

Kernels compute nothing, so nothing here asserts a number: graphs compile, every operator has a GPU
kernel in its precision, launchers and collectives work together, files are written.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from src.acceptance.processes import group_command
from tests.helpers import ROOT

SETTINGS = ["VolSize=32,16,16", "dstRes=2.5,2.5,2.5", "width=2", "batch_size=1", "cache_dir=off"]
# What MindSpore says where a graph does not compile, has no kernel, or flows nowhere.
FAULTS = ("Traceback", "is null", "Unsupported op", "kernel type", "Exception", "RuntimeError")

# Runs commands one after the other in one process, up to the first that fails.
COMMANDS = """
import json, sys
from importlib import import_module
from src.commands import command_parser
from src.utils.command_line import run

def main():
    for command, *words in json.loads(sys.argv[1]):
        args = command_parser(command, command).parse_args(["--device_target", "GPU", *words])
        module = import_module(f"src.commands.{command}")
        module.PROCESSES = 0  # it draws in this one
        module.execute(args)

run(main)
"""

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="only the x86-64 wheel has the GPU plug-in"
)


def load_build():
    spec = importlib.util.spec_from_file_location(
        "standin", ROOT / "tests/devices/gpu_standin/build.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    """The variables that put the stand-in in place."""
    missing = [tool for tool in ("gcc", "nm") if not shutil.which(tool)]
    assert not missing, f"{missing} missing: install gcc and binutils (Debian: apt-get install gcc)"
    return build.build(tmp_path_factory.mktemp("standin"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_training):
    return write_training(tmp_path_factory.mktemp("gpu"), train=(0, 1, 2), val=(2,))


def settings(*further):
    return [word for setting in [*SETTINGS, *further] for word in ("--set", setting)]


def run(command, folder, standin, code=(0,), **variables):
    """Runs a command on the stand-in; returns what it printed."""
    ended = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | standin | {"GLOG_v": "3"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert ended.returncode in code, ended.stdout[-4000:]
    assert not [fault for fault in FAULTS if fault in ended.stdout], ended.stdout[-4000:]
    return ended.stdout


def program(name, *words):
    return [sys.executable, ROOT / name, "--device_target", "GPU", *map(str, words)]


TRAIN = ["--data_path", "data", "--train_split_file_path", "train.csv"]
VALIDATE = ["--val_split_file_path", "val.csv"]


def trained(folder, task):
    """The run of a task, and its history."""
    (path,) = (folder / "results" / "infer").glob(f"vnet.{task}.*")
    assert (path / "ckpt" / "last_state.ckpt").is_file()
    return path, pd.read_csv(path / "history.csv")


def test_one_card_and_all_programs(folder, standin):
    """The presets' network in mixed precision, with sink and validation; after a resume the
    checkpoint is evaluated, used and exported."""
    train = program("train.py", *TRAIN, *VALIDATE)
    preset = ["variant=instance", "loss=dice_ce", "ema_decay=0.5", "flip_average=true"]
    run([*train, *settings("task=one", "epochs=1", "val_interval=2", *preset)], folder, standin)
    resume = ["--resume", "--set", "task=one", "--set", "epochs=2"]
    printed = run([*train, *resume], folder, standin)
    assert re.search("^resuming .* after epoch 1$", printed, re.M)
    assert ": validation Dice " in printed
    path, history = trained(folder, "one")
    assert history["epoch"].tolist() == [1, 2] and history["val_dice"].notna().tolist()[1]
    checkpoint = str(path / "ckpt" / "best.ckpt")
    data = ["--data_path", "data", "--eval_split_file_path", "val.csv"]
    image = ["--input", "data/img/Case00.mha", "--output_path", "masks"]
    commands = [
        ["eval", "--ckpt_path", checkpoint, *data],
        ["predict", "--ckpt_path", checkpoint, *image],
        ["export", "--ckpt_file", checkpoint],
    ]
    words = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    printed = run(words, folder, standin, code=(0, 1), PYTHONPATH=str(ROOT))
    assert (folder / "results" / "prediction" / "Case02_test.mhd").is_file()
    assert list((folder / "masks").glob("Case00*"))
    # What is loaded back has to equal the checkpoint's network, which here it may not.
    written = (folder / "vnet.mindir").is_file() and (folder / "vnet_lite.mindir").is_file()
    assert "comparing in float32 on GPU" in printed
    assert written or "not written, differs from the checkpoint by " in printed.splitlines()[-1]


@pytest.mark.parametrize(
    ("task", "further"),
    [
        pytest.param(
            "paper", ["variant=paper", "optimizer=momentum", "epochs=1"], marks=pytest.mark.full
        ),
        pytest.param("monai", ["variant=monai", "epochs=1"], marks=pytest.mark.full),
        pytest.param(
            "no_sink",
            ["variant=instance", "dataset_sink=off", "accumulate_steps=2", "epochs=1"],
            marks=pytest.mark.full,
        ),
        pytest.param(
            "exact",
            ["precision=float32", "accumulate_steps=2", "epochs=1"],
            marks=pytest.mark.full,
        ),
    ],
)
def test_one_card(folder, standin, task, further):
    words = settings(f"task={task}", *further)
    run(program("train.py", *TRAIN, *VALIDATE, *words), folder, standin)
    path, history = trained(folder, task)
    assert history["val_dice"].notna().tolist()[-1]


TWO_CARDS = {
    "mpirun": ["train_distribute_gpu.sh", "2", "0,1"],
    "msrun": ["train_msrun.sh", "2"],
}


@pytest.mark.launchers
@pytest.mark.parametrize(
    ("launcher", "precision", "epochs", "further"),
    [
        ("mpirun", "mixed", (2,), []),
        pytest.param("msrun", "float32", (1,), ["accumulate_steps=2"], marks=pytest.mark.full),
        pytest.param("mpirun", "float32", (1, 2), [], marks=pytest.mark.full),
        pytest.param("msrun", "mixed", (1, 2), [], marks=pytest.mark.full),
    ],
)
def test_two_cards(folder, standin, launcher, precision, epochs, further):
    """Trains with validation up to each of `epochs`; all but the first resume."""
    if launcher == "mpirun" and not shutil.which("mpirun"):
        pytest.skip("needs OpenMPI's mpirun (Debian: apt-get install openmpi-bin)")
    task = f"{launcher}_{precision}"
    variables = {"PYTHON": sys.executable, "DEVICE_TARGET": "GPU", "WAIT": "1"}
    script, *devices = TWO_CARDS[launcher]
    command = ["bash", ROOT / "scripts" / script, *devices, "data", "train.csv", *VALIDATE]
    command += settings(f"task={task}", f"precision={precision}", "val_interval=1", *further)
    for last in epochs:
        words = [*command, "--set", f"epochs={last}"]
        printed = run(words, folder, standin, RESUME=str(int(last > epochs[0])), **variables)
        assert printed.endswith("all ranks have finished\n")
    path, history = trained(folder, task)
    assert (
        history["epoch"].tolist() == list(range(1, last + 1)) and history["val_dice"].notna().all()
    )
    # Three cases on two cards are two batches for each, or one step of two accumulated batches.
    steps = 1 if further else 2
    assert history["step"].tolist() == [steps * epoch for epoch in history["epoch"]]


# ------------------------------------------------------------------- a machine that lacks something


@pytest.mark.parametrize(
    ("lacking", "says"),
    [
        (
            {"STANDIN_ERROR": "35"},
            "0: The cudaGetDeviceCount failed, ret[35], CUDA driver version i",
        ),
        pytest.param(
            {"STANDIN_MEMORY_MB": "1"},
            "0: Dynamic memory pool init error; see nvidia-smi: is the dri",
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_card_that_does_not_start_is_one_line(folder, standin, lacking, says):
    line = refused(folder, standin | lacking)
    assert line.startswith(f"error: device GPU {says}")


@pytest.mark.parametrize(
    ("lacking", "says"),
    [
        pytest.param(
            {"CUDA_HOME": "12.4"},
            "/bin/nvcc is of CUDA 12.4; MindSpore needs CUDA 11.1, 11.6, 11.8",
            marks=pytest.mark.full,
        ),
        ({"LD_LIBRARY_PATH": ""}, "cannot open shared object file: No such file or directory; Mi"),
    ],
)
def test_what_cuda_lacks_is_one_line(folder, standin, tmp_path, lacking, says):
    if lacking.get("CUDA_HOME") == "12.4":
        build.write_nvcc(tmp_path, "12.4")
        lacking = {"CUDA_HOME": str(tmp_path)}
    line = refused(folder, standin | lacking)
    assert line.startswith(
        "error: device GPU is not available to MindSpore 2.10.0 on this machine: "
    )
    assert says in line and " with cuDNN 8" in line and "--device_target CPU" in line


def test_each_layer_has_a_kernel_in_each_precision(folder, standin):
    """The groups of scripts/check_device.sh flow; that they find wrong numbers is right here."""
    run(group_command("layers", "GPU", folder, small=True), ROOT, standin)
    rows = json.loads((folder / "layers_GPU.json").read_text())
    assert len(rows) == 2 * 27
    for row in rows:
        assert float(row["found"]) >= 0 or row["found"] == "nan", row  # a number, not an error


@pytest.mark.full
def test_the_check_of_a_machine_flows(folder, standin):
    variables = {"PYTHON": sys.executable}
    command = ["bash", ROOT / "scripts" / "check_device.sh", "GPU", "2", "--small"]
    printed = run(command, folder, standin, code=(1,), **variables)
    assert re.fullmatch(r"\d+ passed, \d+ failed", printed.splitlines()[-1])
    rows = json.loads((folder / "check_device_GPU.json").read_text())["checks"]
    verdicts = {row["check"]: row["verdict"] for row in rows}
    for check in ("a training", "its resume", "its evaluation", "2 ranks by msrun"):
        assert verdicts[check] == "passed"
    errors = [row for row in rows if row["expected"] == "no error" or "exit code" in row["found"]]
    assert {row["check"] for row in errors if row["verdict"] == "failed"} <= {
        "its export, loaded back"
    }


def refused(folder, environment):
    """The last line of a training that cannot start."""
    ended = subprocess.run(
        program("train.py", *TRAIN),
        cwd=folder,
        env=os.environ | environment | {"GLOG_v": "3"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    return ended.stderr.splitlines()[-1]
