"""Trainings for real, in small: what a run leaves, resume, NaN, and each key that acts here."""

import importlib.util
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import mindspore as ms
import numpy as np
import pandas as pd
import pytest
from mindspore import nn

from src import checkpoint
from src.config import load_config, override_config, vnet_cfg
from src.data_manager import Case, TrainingVolume
from src.devices.ranks import Ranks
from src.evaluation import load_network
from src.lr_schedule import learning_rates
from src.promise12.splits import split_cases
from src.run_record import read_record
from src.training import epoch_end, trainer
from src.training.memory import VALIDATION_BYTES
from src.training.run_folder import configure_run, new_run_folder, newest_state
from src.training.trainer import (
    check_batch_norm,
    report_lost_ranks,
    resume_command,
    train,
    training_plane,
    uses_dataset_sink,
)
from src.training.validation import ValidationSet
from src.utils import command_line
from src.utils.errors import DataError, UsageError
from src.vnet import create_vnet
from tests.event_files import shown
from tests.helpers import ROOT
from tests.networks import computed_once
from tests.rounding import LAYER_ERROR, assert_trained_alike, perturb

SETTINGS = (
    "val_interval=3",
    "save_interval=1",
    "keep_checkpoint_max=2",
    "lr=0.002",
    "warmup_step=5",
    "warmup_ratio=0.1",
    "ema_decay=0.5",
    *("augment_flip=0.5", "augment_deform=1", "augment_histogram=0.5", "augment_noise=1"),
)
HAS_TENSORBOARDX = importlib.util.find_spec("tensorboardX") is not None
SMALL = ("VolSize=16,16,16", "dstRes=4,4,4", "width=2", "batch_size=2", "cache_dir=off", "epochs=4")


@pytest.fixture(autouse=True)
def in_scratch_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_curve(monkeypatch):
    """Draws progress.png for `whole_run` alone, which is made before: it takes long."""
    monkeypatch.setattr(epoch_end, "plot_progress", lambda *_: None)


@pytest.fixture(scope="session")
def data(tmp_path_factory, write_case):
    """Five training and two validation cases of 20^3 voxels: a bright ball in noise."""
    folder = tmp_path_factory.mktemp("data")
    names = [f"Case{number:02d}" for number in range(7)]
    for number, name in enumerate(names):
        write_case(folder, name, seed=number)
    (folder / "train.csv").write_text("".join(f"{name}.mhd\n" for name in names[:5]))
    (folder / "val.csv").write_text("".join(f"{name}.mhd\n" for name in names[5:]))
    return folder


def small(*overrides):
    return override_config(vnet_cfg, [*SMALL, *overrides])


class Losses(ms.Callback):
    """The exact loss of each step."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_step_end(self, run_context):
        self.values.append(float(run_context.original_args().net_outputs.asnumpy()))


def run(data, config, *callbacks, val=False, run_folder=None):
    return train(
        config,
        "CPU",
        data,
        data / "train.csv",
        data / "val.csv" if val else None,
        run_folder,
        callbacks,
    )


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    """One uninterrupted training with validation: (folder, losses, printed text).

    With events and overlays of one case, where tensorboardX is installed.
    """
    folder = tmp_path_factory.mktemp("whole")
    losses = Losses()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        printed = []
        patch.setattr(
            "builtins.print",
            lambda *words, **_: printed.append(" ".join(map(str, words))),
        )
        patch.setattr(trainer, "OVERLAYS", 1)
        events = f"tensorboard={HAS_TENSORBOARDX}"
        config = small(*SETTINGS, "task=balls", "dirResult=runs", events)
        run_folder = run(data, config, losses, val=True)
    return folder / run_folder, losses.values, printed


def test_a_run_leaves_what_the_readme_says(whole_run):
    """Also shows task, dirResult, epochs, keep_checkpoint_max, save_interval."""
    folder, losses, _ = whole_run
    assert folder.parent.name == "runs"
    assert re.fullmatch(r"vnet\.balls\.\d{8}_\d{6}(_\d+)?", folder.name)
    assert {path.name for path in folder.iterdir()} == {
        "ckpt",
        "config.json",
        "history.csv",
        "progress.png",
        "training.json",
        ".lock",
        *["tensorboard"] * HAS_TENSORBOARDX,
    }
    record = read_record(folder)
    assert len(record["training_cases"]) == 5 and record["sessions"][0]["device"] == "CPU"
    assert {path.name for path in (folder / "ckpt").iterdir()} == {
        "checkpoint_vnet-3_3.ckpt",
        "checkpoint_vnet-4_3.ckpt",
        "best.ckpt",
        "last.ckpt",
        "last_state.ckpt",
    }
    assert load_config(folder / "config.json").task == "balls"
    assert len(losses) == 4 * 3  # five cases in batches of two


def test_the_log_has_the_zoos_lines(whole_run):
    _, losses, printed = whole_run
    text = "\n".join(printed)
    assert "compiling" in text
    assert re.match(r"\d{4}-\d\d-\d\d [\d:]{8} [+-]\d{4}: vnet_mindspore \S+, MindSpore", text)
    assert re.fullmatch(r"trained: epoch 4 of 4, best validation .*/best\.ckpt", printed[-1])
    assert "============== Starting Training fold 0 ==============" in text
    lines = re.findall(r"^epoch: (\d+) step: (\d+), loss is (0\.\d{1,8})$", text, re.MULTILINE)
    assert [(int(epoch), int(step)) for epoch, step, _ in lines] == [(e, 3) for e in (1, 2, 3, 4)]
    np.testing.assert_allclose([float(loss) for *_, loss in lines], losses[2::3], rtol=1e-6)
    times = re.findall(r"^epoch time: ([\d.]+) ms, per step time: ([\d.]+) ms$", text, re.MULTILINE)
    assert len(times) == 4
    for epoch_ms, step_ms in times:
        assert float(step_ms) == pytest.approx(float(epoch_ms) / 3, abs=1e-2)


def test_history_holds_every_epoch(whole_run):
    """Also shows lr, warmup_step and warmup_ratio: the rates are the schedule's."""
    folder, losses, _ = whole_run
    history = pd.read_csv(folder / "history.csv")
    assert list(history["epoch"]) == [1, 2, 3, 4]
    assert list(history["step"]) == [3, 6, 9, 12]
    np.testing.assert_allclose(
        history["train_loss"], np.reshape(losses, (4, 3)).mean(axis=1), rtol=1e-6
    )
    rates = learning_rates(0.002, 12, 5, 0.1)
    np.testing.assert_allclose(history["learning_rate"], rates[2::3], rtol=1e-6)


def test_the_events_of_a_run_are_its_history_and_overlays(whole_run):
    pytest.importorskip("tensorboardX")  # among the packages of scripts/run_tests.sh
    folder, _, printed = whole_run
    tags, history = shown(folder / "tensorboard"), pd.read_csv(folder / "history.csv")
    losses = history.set_index("epoch")["train_loss"].to_dict()
    assert tags["history/train_loss"] == pytest.approx(losses, rel=1e-6)
    pictures = {name: values.keys() for name, values in tags.items() if "overlays/" in name}
    assert pictures == {"overlays/Case05": {3, 4}}
    lines = [line for line in printed if "TensorBoard" in line]
    assert lines == [f"TensorBoard: tensorboard --logdir runs/{folder.name}/tensorboard"]


def test_validation_comes_every_val_interval_and_at_the_end(whole_run):
    history = pd.read_csv(whole_run[0] / "history.csv")
    assert list(history["val_dice"].notna()) == [False, False, True, True]
    assert history["val_dice"].dropna().between(0, 1).all()


def test_a_moving_average_is_what_is_scored_and_kept(data, whole_run):
    """Numbered checkpoints hold it, `last_state.ckpt` for a resume; `last.ckpt` the latest."""
    folder, _, _ = whole_run
    kept, last, state = (
        ms.load_checkpoint(str(folder / "ckpt" / name))
        for name in ("checkpoint_vnet-4_3.ckpt", checkpoint.LAST, checkpoint.STATE)
    )
    assert kept.keys() == last.keys()
    for name, value in kept.items():
        np.testing.assert_array_equal(state[f"average.{name}"].asnumpy(), value.asnumpy())
    assert any((last[name].asnumpy() != value.asnumpy()).any() for name, value in kept.items())
    config = load_config(folder / "config.json")
    network = load_network(folder / "ckpt" / "checkpoint_vnet-4_3.ckpt", config, "CPU")
    cases = split_cases(data, data / "val.csv", "val", 0)
    history = pd.read_csv(folder / "history.csv")
    score = ValidationSet(cases, config, VALIDATION_BYTES).mean_dice(network)
    assert score == pytest.approx(history["val_dice"].iloc[-1])


class DieAtOnce(ms.Callback):
    """The process "dies" before its first step."""

    def on_train_epoch_begin(self, run_context):
        raise KeyboardInterrupt


def test_a_run_whose_masks_were_edited_does_not_go_on(data, whole_run, tmp_path):
    """As it was, it goes on for more epochs."""
    copy = shutil.copytree(data, tmp_path / "copy")
    folder = shutil.copytree(whole_run[0], tmp_path / "run")
    longer, run_folder = configure_run(str(folder), "CPU", ["epochs=5"])
    edited = {}
    for name in ("Case01", "Case05"):  # of the training, of the validation
        mask = copy / "gt" / f"{name}_segmentation.raw"
        edited[mask] = mask.read_bytes()
        mask.write_bytes(edited[mask].replace(b"\1", b"\0", 1))
    message = rf"{folder}: was started with another image or mask of Case01, Case05; restore"
    with pytest.raises(DataError, match=message):
        run(copy, longer, val=True, run_folder=run_folder)
    assert load_config(folder / "config.json").epochs == 4
    for mask, voxels in edited.items():
        mask.write_bytes(voxels)
    with pytest.raises(KeyboardInterrupt):
        run(copy, longer, DieAtOnce(), val=True, run_folder=run_folder)
    assert load_config(folder / "config.json").epochs == 5


GRID = (32, 32, 16)  # batch norm over the two voxels that the others' 16^3 ends in would be a sign


class StepOfOwn(ms.Callback):
    """When epoch 2 begins: the state, and what a step with a batch of noise makes of it, with the
    weights as they are and with perturbed ones. Then the process "dies".
    """

    def on_train_epoch_begin(self, run_context):
        arguments = run_context.original_args()
        if arguments.cur_epoch_num == 2:
            cell = arguments.train_network
            self.state = {p.name: p.asnumpy().copy() for p in cell.get_parameters()}
            self.moments, self.perturbed_moments = (self.step(cell, by) for by in (0, LAYER_ERROR))
            raise KeyboardInterrupt

    def step(self, cell, perturbation):
        """Adam's first moments after the step, all in one: a tenth of each is the gradient."""
        for parameter in cell.get_parameters():
            parameter.set_data(ms.Tensor(self.state[parameter.name]))
        network, random = cell.network.network, np.random.default_rng(0)
        perturb(network, perturbation)
        noise = random.standard_normal((2, 1, *GRID), np.float32)
        mask, keep = (
            (random.random(shape) < 0.5).astype(np.float32)
            for shape in ((2, *GRID), (2, network.dropout_channels))
        )
        cell(ms.Tensor(noise), ms.Tensor(mask), ms.Tensor(keep))
        moments = [p.asnumpy() for p in cell.get_parameters() if p.name.startswith("moment1.")]
        return np.concatenate([moment.ravel() for moment in moments])


def test_a_run_resumes_with_and_without_fast_conv3d(data):
    """Weights, moving statistics and Adam's moments are the same for both, to the last bit, and the
    next gradient to its rounding. Later ones would show how far Adam, which divides a gradient by
    its size, carries rounding on.
    """
    grid = ("VolSize=" + ",".join(map(str, GRID)), "dstRes=2,2,4")
    settings = (*grid, "dirResult=runs", "fast_conv3d=off")
    whole, resumed = StepOfOwn(), StepOfOwn()
    with pytest.raises(KeyboardInterrupt):
        run(data, small(*SETTINGS, *settings), whole)
    (folder,) = Path("runs").iterdir()
    config, _ = configure_run(str(folder), "CPU", ["fast_conv3d=on"])
    with pytest.raises(KeyboardInterrupt):
        run(data, config, resumed, run_folder=folder)
    assert resumed.state.keys() == whole.state.keys()
    for name, value in whole.state.items():
        np.testing.assert_array_equal(resumed.state[name], value, err_msg=name)
    apart = np.linalg.norm(resumed.moments - whole.moments)
    spread = np.linalg.norm(whole.perturbed_moments - whole.moments)
    assert 0 < apart < spread < 0.01 * np.linalg.norm(whole.moments)
    assert load_config(folder / "config.json").fast_conv3d == "on"


def test_a_killed_run_resumes_on_the_same_trajectory(data, whole_run):
    """kill -9 of the real command at a random moment, then --resume: with dropout, shuffling,
    augmentation and averaging on, to the last bit."""
    arguments = [sys.executable, ROOT / "train.py", "--device_target", "CPU", "--data_path", data]
    arguments += ["--train_split_file_path", data / "train.csv"]
    arguments += ["--val_split_file_path", data / "val.csv"]
    settings = (*SMALL, *SETTINGS, "dirResult=runs")
    arguments += [word for setting in settings for word in ("--set", setting)]
    random = np.random.default_rng(3)
    for attempt in range(2):
        command = [*arguments, *(["--resume"] if attempt else [])]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        lines = []
        for line in child.stdout:
            lines.append(line)
            if not attempt and line.startswith("epoch: 2 step"):
                time.sleep(random.uniform(0, 0.2))
                child.send_signal(signal.SIGKILL)
        child.wait()
        if not attempt:
            assert child.returncode == -signal.SIGKILL, lines
    assert child.returncode == 0, lines
    (folder,) = Path("runs").iterdir()
    history, expected = (
        pd.read_csv(run / "history.csv", dtype=str).drop(columns="epoch_time_s")
        for run in (folder, whole_run[0])
    )
    pd.testing.assert_frame_equal(history, expected)
    for name in ("last.ckpt", "best.ckpt", "last_state.ckpt"):
        ours, theirs = (
            ms.load_checkpoint(str(run / "ckpt" / name)) for run in (folder, whole_run[0])
        )
        assert ours.keys() == theirs.keys()
        for key in theirs.keys() - {checkpoint.PROGRESS}:
            np.testing.assert_array_equal(ours[key].asnumpy(), theirs[key].asnumpy())


@pytest.mark.parametrize(
    ("sent", "name", "code", "last"),
    [
        (signal.SIGTERM, "SIGTERM", 143, "error: terminated"),
        pytest.param(*(signal.SIGINT, "Ctrl-C", 130, "error: interrupted"), marks=pytest.mark.full),
    ],
)
def test_a_signal_ends_a_training_with_its_exit_code(data, sent, name, code, last):
    """MindSpore's own handler would end it with 0; the log says how it goes on."""
    command = [sys.executable, "-u", ROOT / "train.py", "--device_target", "CPU"]
    command += ["--data_path", data, "--train_split_file_path", data / "train.csv"]
    command += ["--set", "epochs=999", "--set", "dirResult=my runs", "--set", "save_interval=1"]
    command += [word for setting in SMALL[:-1] for word in ("--set", setting)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in child.stdout:
        lines.append(line.strip())
        if line.startswith("epoch: 2 step"):
            child.send_signal(sent)
    assert child.wait(timeout=60) == code
    (folder,) = Path("my runs").iterdir()
    started = shlex.join(map(str, command))
    assert lines[-2:] == [
        f"stopped by {name}; the last good checkpoint is {folder}/ckpt/last.ckpt; continue with "
        f"{started} --resume '{folder}'",
        last,
    ]


@pytest.mark.parametrize(
    ("started", "launched", "expected"),
    [
        (["python", "train.py", "--set", "task=a b"], "", "python train.py --set 'task=a b' {own}"),
        (["vnet", "train", "--continue"], "", "vnet train --continue"),
        (["vnet", "train", "--resume"], "", "vnet train {own}"),
        (["vnet", "train", "--resume", "--set", "a=1"], "", "vnet train --set a=1 {own}"),
        (
            ["vnet", "train", "--resume", "my runs/x", "--set", "a=1"],
            "",
            "vnet train --set a=1 {own}",
        ),
        (["vnet", "train", "--resume=my runs/x"], "", "vnet train {own}"),
        (["vnet", "train"], "bash x.sh --resume my\\ runs/x a", "bash x.sh a {absolute}"),
        (["python", "train.py"], "bash x.sh 'my data'", "bash x.sh 'my data' {absolute}"),
        (["python", "-c", "x"], "", "resume='my runs/one'"),  # a fold's process
        ([], "", "resume='my runs/one'"),  # a notebook
    ],
)
def test_the_command_that_continues(monkeypatch, started, launched, expected):
    monkeypatch.setattr(command_line, "_runs", bool(started))
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.setattr(sys, "argv", started[1:])
    if launched:
        monkeypatch.setenv("VNET_COMMAND", launched)
    run_folder = Path("my runs", "one")
    own, absolute = (f"--resume '{path}'" for path in (run_folder, run_folder.absolute()))
    assert resume_command(run_folder) == expected.format(own=own, absolute=absolute)


EARLY = ("lr=1e-30", "epochs=20", "val_interval=1", "weight_decay=0")


def test_early_stop_ends_the_training(data, capsys):
    config = small(*EARLY, "early_stop=2")
    folder = run(data, config, val=True)
    history = pd.read_csv(folder / "history.csv")
    best = history["val_dice"].idxmax()
    assert len(history) == best + 1 + 2
    assert "early stop" in capsys.readouterr().out
    assert newest_state([], has_validation=True).is_complete  # a resume trains nothing more


class Poison(ms.Callback):
    """Turns weights into NaN when epoch 4 begins."""

    def on_train_epoch_begin(self, run_context):
        arguments = run_context.original_args()
        if arguments.cur_epoch_num == 4:
            parameter = next(iter(arguments.train_network.get_parameters()))
            parameter.set_data(ms.Tensor(np.full(parameter.shape, np.nan, np.float32)))


def test_a_nan_names_the_batch_and_keeps_the_last_good_checkpoint(
    data, whole_run, tmp_path, monkeypatch
):
    """Also shows save_interval, and seed: with another one the losses are others; there is no
    validation; the status file names the run; and a run without a checkpoint yet starts from its
    beginning.
    """
    monkeypatch.setenv("VNET_STATUS_FILE", str(tmp_path / "status.json"))
    losses = Losses()
    config = small(*SETTINGS, "epochs=5", "save_interval=2", "seed=2")
    folder = new_run_folder(config)
    with pytest.raises(DataError) as caught:
        run(data, config, losses, Poison(), run_folder=folder)
    message = str(caught.value)
    named = re.search(r"epoch 4 step 1; in this step: (Case\d\d), (Case\d\d);", message)
    assert named, message
    assert str(folder / "ckpt" / "last.ckpt") in message
    for value in ms.load_checkpoint(str(folder / "ckpt" / "last.ckpt")).values():
        assert np.isfinite(value.asnumpy()).all()
    names = {path.name for path in (folder / "ckpt").iterdir()}
    assert names == {"checkpoint_vnet-2_3.ckpt", "last.ckpt", "last_state.ckpt"}
    history = pd.read_csv(folder / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3] and history["val_dice"].isna().all()
    assert losses.values[0] != whole_run[1][0]
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["run_folder"]) == ("running", str(folder.absolute()))


def test_accumulated_batches_make_one_step(data):
    """Without batch norm and dropout, two batches of 2 are what one batch of 4 is."""
    histories, weights = [], []
    for size, count in ((2, 2), (4, 1)):
        settings = ("variant=paper", "optimizer=momentum", "lr=1", "warmup_step=0")
        config = small(*settings, "epochs=2", f"batch_size={size}", f"accumulate_steps={count}")
        folder = run(data, config)
        table = pd.read_csv(folder / "history.csv").drop(columns="epoch_time_s")
        assert table["step"].tolist() == [2, 4]  # five cases in steps of four
        assert (folder / "ckpt" / "checkpoint_vnet-2_2.ckpt").is_file()
        histories.append(table)
        weights.append(ms.load_checkpoint(str(folder / "ckpt" / checkpoint.LAST)))
        state = ms.load_checkpoint(str(folder / "ckpt" / checkpoint.STATE))
        assert state["global_step"].asnumpy() == 4
        assert not any(name.startswith(checkpoint.ACCUMULATED) for name in state)
    pd.testing.assert_frame_equal(*histories, rtol=1e-4)
    ms.set_seed(config.seed)
    start, *ends = (
        {name: parameter.asnumpy() for name, parameter in of.items()}
        for of in (create_vnet(config).parameters_dict(), *weights)
    )
    assert ends[0].keys() == ends[1].keys() == start.keys()
    assert_trained_alike(*ends, start, steps=4)


def test_synchronised_batch_norm_has_the_same_parameters(data, monkeypatch):
    """MindSpore runs it on Ascend only: names and shapes here, and that others are told."""

    class OnImages(nn.BatchNorm2d):
        """In its place, as it takes images and is used by a training."""

    monkeypatch.setattr(nn, "SyncBatchNorm", OnImages)
    plain, synced = (create_vnet(small(), sync_batch_norm=flag) for flag in (False, True))
    shapes = [{p.name: p.shape for p in network.get_parameters()} for network in (plain, synced)]
    assert shapes[0] == shapes[1]
    norms = sum(isinstance(cell, OnImages) for _, cell in synced.cells_and_names())
    assert norms == sum(name.endswith("moving_mean") for name in shapes[0])
    for mine, other in zip(synced.get_parameters(), plain.get_parameters(), strict=True):
        mine.set_data(other.value())
    volume = ms.Tensor(np.random.default_rng(0).normal(size=(1, 1, 16, 16, 32)).astype(np.float32))
    answers = [computed_once(network.set_train(False), volume) for network in (plain, synced)]
    np.testing.assert_allclose(*answers, atol=1e-6)
    with pytest.raises(UsageError, match="sync_batch_norm=True: MindSpore has it on Ascend"):
        run(data, small("sync_batch_norm=true"))


@pytest.mark.parametrize("fast", ["on", "off"])
def test_batch_norm_of_one_value_is_refused(data, fast):
    """Its variance became 0 or NaN, and the message named the cases and `lr`."""
    words = r"VolSize=\[16, 16, 16\] with batch_size=1: .*variant=zoo.* side of at least 32"
    with pytest.raises(UsageError, match=words):
        run(data, small("batch_size=1", f"fast_conv3d={fast}"))


@pytest.mark.parametrize(
    ("overrides", "device_count", "is_refused"),
    [
        ([], 1, True),
        (["variant=monai", "accumulate_steps=4"], 1, True),
        (["variant=paper"], 1, False),
        (["batch_size=2"], 1, False),
        (["VolSize=16,16,32"], 1, False),
        ([], 2, True),
        (["sync_batch_norm=true"], 2, False),
        (["sync_batch_norm=true"], 1, True),
    ],
)
def test_batch_norm_needs_two_values(overrides, device_count, is_refused):
    config = small("batch_size=1", *overrides)
    with pytest.raises(UsageError) if is_refused else nullcontext():
        check_batch_norm(config, "Ascend", device_count)


@pytest.mark.parametrize(
    ("target", "choice", "sinks"),
    [
        ("CPU", "auto", False),
        ("CPU", "off", False),
        ("GPU", "auto", True),
        ("Ascend", "auto", True),
        ("Ascend", "off", False),
    ],
)
def test_dataset_sink_is_for_ascend_and_gpu(target, choice, sinks):
    assert uses_dataset_sink(small(f"dataset_sink={choice}"), target) == sinks


@pytest.mark.parametrize(
    "planes, asked, expected, noted",
    [
        (["axial", "axial", "sagittal"], "auto", "axial", ["Case2: sagittal stack"]),
        (["coronal", "", "coronal", "axial"], "auto", "coronal", ["Case3: axial stack"]),
        (["", ""], "auto", "axial", []),
        (["axial", ""], "sagittal", "sagittal", ["Case0: axial stack"]),
    ],
)
def test_the_plane_of_a_training_is_that_of_most_cases(planes, asked, expected, noted, capsys):
    volumes = [TrainingVolume(np.zeros((2, 2, 2)), np.zeros((2, 2, 2), bool), p) for p in planes]
    cases = [Case(f"Case{n}", Path(f"Case{n}"), Path("mask")) for n in range(len(planes))]
    assert training_plane(small(f"plane={asked}"), cases, volumes) == expected
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"note: {words}" for words in noted]


# As MindSpore 2.10 said it on a CPU after the cable to the other host was cut.
LOST_RANK = """
----------------------------------------------------
- Kernel error:
----------------------------------------------------
Launch kernel failed: Default/optimizer-Adam/AllReduce-op23

----------------------------------------------------
- C++ Call Stack: (For framework developers)
"""


@pytest.mark.parametrize(
    ("count", "message", "told"),
    [(2, LOST_RANK, True), (1, LOST_RANK, False), (2, "Launch kernel failed: Conv3D", False)],
)
def test_a_lost_rank_is_one_line(count, message, told):
    with (
        pytest.raises(DataError if told else RuntimeError) as error,
        report_lost_ranks(Ranks(0, count)),
    ):
        raise RuntimeError(message)
    if told:
        assert str(error.value) == (
            "rank 0: Launch kernel failed: Default/optimizer-Adam/AllReduce-op23; another rank "
            "ended, see the other logs, or the network to it failed"
        )
