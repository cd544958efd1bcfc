"""Acceptance test of a machine: checks that everything this project does works on its device.

    bash scripts/check_device.sh TARGET [DEVICE_NUM]

Each group of checks runs in its own process, since a process has one device and a faulty driver may
end it; so does the CPU reference. Prints a table and writes it as JSON.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from easydict import EasyDict

from ..utils.files import write_files
from ..utils.process import change_folder
from . import run_script
from .arguments import DEVICES
from .golden import GOLDEN, seeded

PACKAGE = __package__.split(".")[0]
ROOT = Path(__file__).resolve().parents[2]  # the checkout, or the folder of the package
GROUP_SECONDS = 240  # time-out of a group of checks
RANKS_SECONDS = 300
# Largest difference from a golden value, as a share of the largest golden value. A GPU may compute
# float32 convolutions with TensorFloat-32's 11 bits.
TOLERANCE = {("CPU", "float32"): 1e-4, ("GPU", "float32"): 5e-3}
MIXED_TOLERANCE = 2e-2  # float16 has 11 bits; rounding errors add up over the layers
PUBLISHED_MS = {"Ascend": "1080 (zoo, Ascend 910)", "GPU": "1870 (zoo, V100)", "CPU": "-"}
SPEED = "step at 128x128x64, batch 4, ms"
SKIPPED = "skipped"
NO_CHECKOUT = "only in a checkout of the repository, which has scripts/"


class Table:
    """The results of the checks, printed at once and collected for the report."""

    def __init__(self, quiet: bool = False) -> None:
        self.rows: list[dict[str, str]] = []
        self.quiet = quiet

    def add(self, check: str, expected: object, found: object, passed: bool | None) -> None:
        """Adds a check; with `passed` None it could not run, and `found` says why."""
        verdict = SKIPPED if passed is None else "passed" if passed else "failed"
        row = {"check": check, "expected": str(expected), "found": str(found), "verdict": verdict}
        self.rows.append(row)
        if not self.quiet:
            print(
                f"{verdict:8} {check:50} expected {row['expected']}; found {row['found']}",
                flush=True,
            )

    def near(self, check: str, found: object, golden: object, tolerance: float) -> None:
        """Adds a check that differences are small relative to the largest golden value."""
        golden = np.asarray(golden, np.float64)
        difference = np.abs(np.asarray(found, np.float64) - golden).max()
        share = difference / max(np.abs(golden).max(), 1e-30)
        self.add(
            check, f"difference below {tolerance:.0e}", f"{share:.1e}", bool(share < tolerance)
        )

    @contextmanager
    def record_errors(self, check: str) -> Iterator[None]:
        """Turns an exception in the block into a failed check, so that the others still run."""
        from ..devices.device import mindspore_reason

        try:
            yield
        except Exception as error:
            self.add(check, "no error", mindspore_reason(error), False)

    def count(self, verdict: str) -> int:
        return sum(row["verdict"] == verdict for row in self.rows)


# In the process of one device ----------------------------------------------------------------


def precisions(target: str) -> tuple[str, ...]:
    """Returns the precisions of 3-D convolutions in training on a device."""
    return {"CPU": ("float32",), "GPU": ("float32", "mixed"), "Ascend": ("mixed",)}[target]


def tolerance(target: str, precision: str) -> float:
    return TOLERANCE.get((target, precision), MIXED_TOLERANCE)


def configuration(precision: str, *overrides: str) -> EasyDict:
    """Returns the default configuration with a precision, without the fast convolution."""
    from ..config import override_config, vnet_cfg

    fixed = (f"precision={precision}", "fast_conv3d=off", "dropout=0.5")
    return override_config(vnet_cfg, [*fixed, *overrides])


def create_layer(name: str, shapes: list[tuple[int, ...]]) -> Any:
    """Returns a layer of the network by its name in tests/golden/make_layers.py."""
    from mindspore import nn

    from ..vnet import InstanceNorm3d, conv5

    channels = shapes[0][1]
    weight = shapes[1] if len(shapes) > 1 else ()
    return {
        "convolution 5x5x5": lambda: conv5(channels, weight[0], False),
        "convolution 2x2x2, stride 2": lambda: nn.Conv3d(channels, weight[0], 2, stride=2),
        "convolution 1x1x1": lambda: nn.Conv3d(channels, weight[0], 1),
        "transposed convolution 2x2x2": lambda: nn.Conv3dTranspose(
            channels, weight[1], 2, stride=2
        ),
        "batch norm": lambda: nn.BatchNorm3d(channels),
        "instance norm": lambda: InstanceNorm3d(channels),
        "ELU": nn.ELU,
        "PReLU": lambda: nn.PReLU(channels),
        "softmax": lambda: nn.Softmax(1),
    }[name]()


def check_layers(target: str, table: Table, golden_path: Path = GOLDEN / "layers.npz") -> None:
    """Compares each kind of layer, forward and backward, with golden values."""
    import mindspore as ms
    from mindspore import nn, ops

    from ..devices.device import apply_precision

    class Float32(nn.Cell):
        """A network whose output is float32 in mixed precision, too."""

        def __init__(self, network):
            super().__init__()
            self.network = network

        def construct(self, x):
            return ops.cast(self.network(x), ms.float32)

    class Backward(nn.Cell):
        def __init__(self, network):
            super().__init__()
            self.network = network
            self.weights = ms.ParameterTuple(network.trainable_params())
            self.gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)

        def construct(self, x, upstream):
            return self.network(x), self.gradient(self.network, self.weights)(x, upstream)

    with np.load(golden_path) as file:
        golden = dict(file)
    for precision in precisions(target):
        for number, name in enumerate(golden["names"]):
            check = f"{name}, {precision}"
            with table.record_errors(check):
                arrays = {
                    key.partition(" ")[2]: v
                    for key, v in golden.items()
                    if key.startswith(f"{number} ")
                }
                parameters = [arrays[key] for key in sorted(arrays) if key.startswith("parameter")]
                network = nn.SequentialCell(
                    create_layer(name, [arrays["x"].shape, *(p.shape for p in parameters)])
                )
                for parameter, value in zip(network.trainable_params(), parameters, strict=True):
                    parameter.set_data(ms.Tensor(value))
                apply_precision(network, configuration(precision), target)
                network.set_train()
                y, (inputs, weights) = Backward(Float32(network))(
                    ms.Tensor(arrays["x"]), ms.Tensor(arrays["upstream"])
                )
                table.near(
                    f"{check}, forward", y.asnumpy(), arrays["y"], tolerance(target, precision)
                )
                for place, gradient in enumerate((*inputs, *weights)):
                    what = "input" if place == 0 else f"parameter {place}"
                    expected = arrays[f"gradient{place}"]
                    table.near(
                        f"{check}, gradient of its {what}",
                        gradient.asnumpy(),
                        expected,
                        tolerance(target, precision),
                    )


def seeded_network(config: EasyDict) -> Any:
    """Creates a network whose weights are the same on every device."""
    import mindspore as ms

    from ..vnet import create_vnet

    network = create_vnet(config)
    for parameter in network.get_parameters():
        value = seeded.parameter(parameter.name, parameter.shape)
        parameter.set_data(ms.Tensor(value))
    return network


def check_network(target: str, table: Table, small: bool) -> dict[str, np.ndarray]:
    """Compares the network with the zoo's and MONAI's; returns the output of `instance`."""
    import mindspore as ms

    from ..devices.device import apply_precision
    from ..export.monai_weights import from_monai
    from ..vnet import create_vnet

    for precision in precisions(target):
        for variant in ("zoo",) if small else ("zoo", "monai"):
            with table.record_errors(f"network {variant}, {precision}"):
                config = configuration(precision, f"variant={variant}", "VolSize=48,32,32")
                with np.load(GOLDEN / f"{variant}.npz") as file:
                    golden = dict(file)
                shapes = json.loads(str(golden["meta"]))["shapes"]
                weights = {
                    name: seeded.parameter(name, tuple(shape)) for name, shape in shapes.items()
                }
                if variant == "monai":
                    weights = from_monai(weights)
                network = create_vnet(config)
                parameters = {
                    name: ms.Parameter(ms.Tensor(v), name=name) for name, v in weights.items()
                }
                ms.load_param_into_net(network, parameters, strict_load=True)
                apply_precision(network, config, target)
                probability = network.set_train(False)(ms.Tensor(seeded.volume())).asnumpy()
                voxels, _ = seeded.probability_summary(probability)
                table.near(
                    f"network {variant}, {precision}, probability",
                    voxels,
                    golden["eval_voxels"],
                    5 * tolerance(target, precision),
                )
    found = {}
    for precision in precisions(target):
        with table.record_errors(f"network instance, {precision}"):
            config = configuration(precision, "variant=instance", "width=4", "VolSize=48,32,32")
            network = seeded_network(config)
            apply_precision(network, config, target)
            volume = ms.Tensor(seeded.volume())
            found[f"instance {precision}"] = network.set_train(False)(volume).asnumpy()
    return found


def check_steps(target: str, table: Table) -> dict[str, np.ndarray]:
    """Checks the loss's closed form; returns the losses of three steps in each precision."""
    import mindspore as ms
    from mindspore import nn

    from ..loss import DiceLoss
    from ..training.step import create_training_cell

    with table.record_errors("Dice loss"):
        # p is 1/2 everywhere, a quarter of the voxels are foreground: 1 - (2 / 8) / (1/4 + 1/4).
        mask = np.zeros((2, 64, 64, 128), np.float32)
        mask[:, ::2, ::2] = 1
        probability = ms.Tensor(np.full(mask.shape, 0.5, np.float32))
        loss = float(DiceLoss()(probability, ms.Tensor(mask)).asnumpy())
        table.near("Dice loss of 524,288 voxels", [loss], [0.5], 1e-5)
    found = {}
    for precision in precisions(target):
        with table.record_errors(f"three training steps, {precision}"):
            config = configuration(precision, "width=4", "VolSize=48,32,32")
            network = seeded_network(config)
            optimizer = nn.SGD(network.trainable_params(), 0.01)
            step = create_training_cell(network, optimizer, config, target)
            dropout_mask = np.ones((seeded.BATCH, network.dropout_channels), np.float32)
            batch = [ms.Tensor(array) for array in (seeded.volume(), seeded.mask(), dropout_mask)]
            losses = []
            for _ in range(3):
                output = step(*batch)
                losses.append(float((output[0] if isinstance(output, tuple) else output).asnumpy()))
            found[f"losses {precision}"] = np.array(losses)
    return found


def check_scale(target: str, table: Table) -> None:
    """Checks overflow and recovery of the loss scale on a weight of known gradient."""
    import mindspore as ms
    from mindspore import nn

    from ..training.step import LossScaledStep

    class Mean(nn.Cell):
        def __init__(self):
            super().__init__()
            self.w = ms.Parameter(ms.Tensor([1.0], ms.float32), "w")

        def construct(self, x):
            return (self.w * x).mean()

    with table.record_errors("loss scale"):
        network = Mean()
        optimizer = nn.SGD(network.trainable_params(), 0.5)
        scale = nn.DynamicLossScaleUpdateCell(256.0, scale_factor=2, scale_window=3)
        step, found = LossScaledStep(network, optimizer, scale).set_train(), []
        for value in (1, 3e38, 2, 1, 1):  # the second overflows when it is scaled
            step(ms.Tensor(np.full((2, 3), value, np.float32)))
            found.append((float(network.w.asnumpy()[0]), float(step.scale_sense.asnumpy())))
        expected = [(0.5, 256), (0.5, 128), (-0.5, 128), (-1.0, 128), (-1.5, 256)]
        table.add("weight and loss scale around an overflow", expected, found, found == expected)


def check_speed(target: str, table: Table) -> None:
    """Times the zoo's training step."""
    import mindspore as ms

    from ..training.optimizer import create_optimizer
    from ..training.step import create_training_cell
    from ..vnet import create_vnet

    with table.record_errors(SPEED):
        config = configuration("auto")
        network = create_vnet(config)
        optimizer = create_optimizer(network, config, np.full(100, 1e-4, np.float32))
        step = create_training_cell(network, optimizer, config, target)
        random = np.random.default_rng(1)
        shape = (config.batch_size, 1, *config.VolSize)
        image = ms.Tensor(random.normal(size=shape).astype(np.float32))
        mask = ms.Tensor((random.random((shape[0], *shape[2:])) < 0.1).astype(np.float32))
        dropout_mask = ms.Tensor(np.ones((shape[0], network.dropout_channels), np.float32))
        times = []
        for _ in range(8):
            begin = time.perf_counter()
            step(image, mask, dropout_mask)
            ms.runtime.synchronize()
            times.append(1000 * (time.perf_counter() - begin))
        table.add(SPEED, PUBLISHED_MS[target], f"{np.median(times[3:]):.0f}", True)


def check_rank(target: str, device_num: int, small: bool, folder: Path) -> None:
    """Runs the checks of one of several ranks; writes rank_N.npz for `compare_ranks`."""
    import mindspore as ms
    from mindspore import ops

    from ..devices.device import start_communication
    from ..training.optimizer import create_optimizer
    from ..training.step import create_training_cell
    from ..vnet import create_vnet

    ranks = start_communication(device_num)
    parameters = 1_000_000 if small else 45_600_000
    gradients, times = ms.Tensor(np.ones(parameters, np.float32)), []
    for _ in range(4):
        begin = time.perf_counter()
        total = ops.AllReduce()(gradients).asnumpy()
        times.append(1000 * (time.perf_counter() - begin))
    found: dict[str, Any] = {"sum": np.array([total.min(), total.max()]), "size": parameters}
    found["all-reduce ms"] = np.median(times[1:])
    ms.set_seed(1)
    config = configuration("auto", "width=2", "VolSize=32,16,16", "batch_size=1")
    network = create_vnet(config)
    ranks.copy_from_first(network.get_parameters())
    optimizer = create_optimizer(network, config, np.full(10, 1e-3, np.float32))
    step = create_training_cell(network, optimizer, config, target)
    random = np.random.default_rng(ranks.rank)  # each rank has its own batch
    image = random.normal(size=(1, 1, *config.VolSize)).astype(np.float32)
    mask = (random.random((1, *config.VolSize)) < 0.3).astype(np.float32)
    dropout_mask = np.ones((1, network.dropout_channels), np.float32)
    for _ in range(3):
        step(*map(ms.Tensor, (image, mask, dropout_mask)))
    trained = [p for p in step.get_parameters() if "moving" not in p.name]
    found |= {f"weight {p.name}": p.asnumpy() for p in trained}
    np.savez(folder / f"rank_{ranks.rank}.npz", **found)


# In the process that started them ----------------------------------------------------------------


def compare_ranks(folder: Path, device_num: int, table: Table) -> None:
    """Compares the results of the ranks of `check_rank`."""
    found = []
    for rank in range(device_num):
        path = folder / f"rank_{rank}.npz"
        if not path.is_file():
            table.add(f"rank {rank}", "finishes", "wrote no results", False)
            return
        with np.load(path) as file:
            found.append(dict(file))
    sums = [value for own in found for value in own["sum"].tolist()]
    table.add("all-reduce of ones", device_num, sums, set(sums) == {device_num})
    times = ", ".join(f"{own['all-reduce ms']:.0f}" for own in found)
    table.add(f"all-reduce of {found[0]['size']} float32, ms on each rank", "-", times, True)
    differ = [
        f"{name.removeprefix('weight ')} on rank {rank}"
        for rank, own in enumerate(found)
        for name, value in found[0].items()
        if name.startswith("weight ") and own[name].tobytes() != value.tobytes()
    ]
    table.add(
        "weights after three steps on different batches",
        "the same bits on all ranks",
        f"{len(differ)} differ, first {differ[0]}" if differ else "the same",
        not differ,
    )


def check_versions(target: str, table: Table) -> None:
    """Adds the installed versions and what the driver reports about the devices."""

    def output_of(*command):
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{command[0]}: {error}"
        return " ".join((ended.stdout or ended.stderr).split())[:400]

    import mindspore as ms

    system = (
        f"{platform.platform()}, Python {platform.python_version()}, MindSpore {ms.__version__}"
    )
    table.add("system", "-", f"{system}, NumPy {np.__version__}", True)
    if target == "GPU":
        query = "--query-gpu=name,driver_version,memory.total"
        table.add("driver", "-", output_of("nvidia-smi", query, "--format=csv,noheader"), True)
        home = os.environ.get("CUDA_HOME")
        nvcc = output_of(f"{home}/bin/nvcc", "--version") if home else "CUDA_HOME is not set"
        table.add(
            "toolkit", "CUDA 11.1, 11.6 or 11.8", nvcc, bool(re.search(r"release 11\.[168]", nvcc))
        )
    elif target == "Ascend":
        table.add("driver", "-", output_of("npu-smi", "info"), True)
        table.add("toolkit", "-", os.environ.get("ASCEND_TOOLKIT_HOME", "CANN is not set"), True)


def run_command(words: list[str], target: str, table: Table, check: str, seconds: int) -> bool:
    """Runs a command; adds a failed check with its last line where it fails. Returns success."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    modules = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    device = {"GLOG_v": "3", "PYTHONPATH": modules, "PYTHONUNBUFFERED": "1", "PATH": path}
    try:
        ended = subprocess.run(
            words, env=os.environ | device, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        table.add(check, f"ends within {seconds} s", "hangs", False)
        return False
    if ended.returncode != 0:
        lines = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
        error = next(
            (line for line in reversed(lines) if line.startswith("error: ")), lines[-1:] or ""
        )
        table.add(check, "exit code 0", f"exit code {ended.returncode}, {''.join(error)}", False)
    return ended.returncode == 0


def start_group(
    name: str, target: str, table: Table, small: bool, folder: Path
) -> dict[str, np.ndarray]:
    """Runs a group of checks on a device in its own process; returns the arrays it computed."""
    report = folder / f"{name}_{target}.json"
    words = [
        sys.executable,
        "-m",
        f"{PACKAGE}.commands.check",
        target,
        "--group",
        name,
        "--folder",
        folder,
    ]
    words += ["--small"] * small
    ran = run_command(list(map(str, words)), target, table, name, GROUP_SECONDS)
    for row in json.loads(report.read_text()) if ran else []:
        table.add(
            row["check"],
            row["expected"],
            row["found"],
            {"passed": True, "failed": False}.get(row["verdict"]),
        )
    arrays = report.with_suffix(".npz")
    if not (ran and arrays.is_file()):
        return {}
    with np.load(arrays) as file:
        return dict(file)


def check_against_cpu(name: str, target: str, table: Table, small: bool, folder: Path) -> None:
    """Runs a group on the device and on the CPU, and compares their arrays."""
    found = start_group(name, target, table, small, folder)
    reference = found
    if target != "CPU" and found:
        reference = start_group(name, "CPU", Table(quiet=True), small, folder)
    for key, value in found.items():
        golden = reference.get(f"{key.split()[0]} float32")
        if golden is None:
            table.add(f"{key} against the CPU", "the CPU's values", "the CPU computed none", False)
        elif name != "steps" or np.isfinite(value).all():
            precision = key.split()[1]
            limit = 5 * tolerance(target, precision)
            table.near(f"{key} against the CPU's float32", value, golden, limit)
        else:
            table.add(f"{key} against the CPU", golden, value, False)


def check_programs(target: str, table: Table, folder: Path) -> None:
    """Trains, resumes, evaluates and exports, on phantoms."""
    from ..promise12.phantom import write_phantom

    vnet, device = [sys.executable, "-m", PACKAGE], ["--device_target", target]
    with change_folder(folder):
        write_phantom("data", cases=3, seed=1)
        names = sorted(path.name for path in Path("data/img").glob("*.mhd"))
        Path("split.csv").write_text("".join(f"{name}\n" for name in names))
        settings = ["width=2", "VolSize=32,16,16", "dstRes=3,6,6", "batch_size=1", "cache_dir=off"]
        train = [*vnet, "train", *device, "--data_path", "data"]
        train += ["--train_split_file_path", "split.csv", "--val_split_file_path", "split.csv"]
        train += [word for setting in settings for word in ("--set", setting)]
        checkpoint = "no checkpoint"
        steps = {
            "a training": [*train, "--set", "epochs=1"],
            "its resume": [*train, "--set", "epochs=2", "--resume"],
            "its evaluation": [*vnet, "eval", *device, "--data_path", "data"],
            "its export, loaded back": [*vnet, "export", *device],
        }
        steps["its evaluation"] += ["--eval_split_file_path", "split.csv", "--ckpt_path"]
        steps["its export, loaded back"] += ["--ckpt_file"]
        for check, words in steps.items():
            words = [*words, checkpoint] if words[-1].startswith("--ck") else words
            if not run_command(words, target, table, check, GROUP_SECONDS):
                return
            checkpoint = str(next(Path("results/infer").glob("vnet.*/ckpt/best.ckpt"), checkpoint))
            table.add(check, "exit code 0", "exit code 0", True)


def check_ranks(target: str, device_num: int, table: Table, small: bool, folder: Path) -> None:
    """Starts DEVICE_NUM ranks by msrun, on GPUs also by mpirun if installed."""
    if device_num == 1:
        table.add("several devices", "-", "DEVICE_NUM is 1", None)
        return
    ranks = ROOT / "scripts" / "ranks.py"
    if not ranks.is_file():
        table.add("several devices", "-", NO_CHECKOUT, None)
        return
    engines = ["msrun"] + ["mpirun"] * (target == "GPU" and shutil.which("mpirun") is not None)
    for engine in engines:
        own = folder / engine
        own.mkdir()
        rank = [
            sys.executable,
            "-m",
            f"{PACKAGE}.commands.check",
            target,
            str(device_num),
            "--group",
            "rank",
        ]
        rank += ["--folder", str(own), *["--small"] * small]
        if engine == "msrun":
            msrun = Path(sys.executable).with_name("msrun")
            start = [str(msrun) if msrun.exists() else "msrun", "--worker_num", str(device_num)]
            start += ["--local_worker_num", str(device_num), "--join", "True"]
            start += ["--master_port", str(20000 + os.getpid() % 10000), "--log_dir", str(own)]
        else:
            start = ["mpirun", "-n", str(device_num), "--bind-to", "none"]
            start += ["--map-by", ":OVERSUBSCRIBE", *["--allow-run-as-root"] * (os.geteuid() == 0)]
        log = str(own / "{rank}.log")
        python = "python3" if engine == "msrun" else sys.executable  # msrun's is the PATH's
        words = [
            sys.executable,
            str(ranks),
            "start",
            "--ranks",
            str(device_num),
            "--log",
            log,
            "--",
        ]
        words += [*start, python, str(ranks), "run", "--log", log, "--", *rank]
        if run_command(words, target, table, f"{device_num} ranks by {engine}", RANKS_SECONDS):
            table.add(f"{device_num} ranks by {engine}", "finish", "finished", True)
            compare_ranks(own, device_num, table)


def check_310(target: str, table: Table, folder: Path) -> None:
    """Runs the C++ program with MindSpore Lite if the chip is an Ascend 310."""
    check = "C++ program on an Ascend 310"
    chip = ""
    if target == "Ascend" and shutil.which("npu-smi"):
        chip = subprocess.run(["npu-smi", "info"], capture_output=True, text=True).stdout
    if not re.search(r"\b310", chip):
        table.add(check, "-", "no Ascend 310 here", None)
        return
    script = ROOT / "scripts" / "run_infer_310.sh"
    if not script.is_file():
        table.add(check, "-", NO_CHECKOUT, None)
        return
    model = folder / "vnet.mindir"
    if not model.is_file():
        table.add(check, "an exported model", "the export failed", False)
        return
    words = ["bash", str(script), "vnet.mindir", "data", "split.csv"]
    with change_folder(folder):
        if run_command(words, target, table, check, GROUP_SECONDS):
            table.add(check, "exit code 0", "exit code 0", True)


def run_group(args: argparse.Namespace) -> None:
    """Runs one group of checks in this process; writes its rows and arrays to files."""
    from ..devices.device import start_device

    start_device(args.target)
    folder, table = Path(args.folder), Table(quiet=True)
    groups: dict[str, Callable] = {
        "layers": lambda: check_layers(args.target, table),
        "network": lambda: check_network(args.target, table, args.small),
        "steps": lambda: check_steps(args.target, table),
        "scale": lambda: check_scale(args.target, table),
        "speed": lambda: check_speed(args.target, table),
        "rank": lambda: check_rank(args.target, args.device_num, args.small, folder),
    }
    arrays = groups[args.group]()
    if args.group != "rank":
        report = folder / f"{args.group}_{args.target}.json"
        report.write_text(json.dumps(table.rows))
        if arrays:
            np.savez(report.with_suffix(".npz"), **arrays)


def check_machine(target: str, device_num: int, small: bool, report: Path) -> int:
    """Runs all checks; returns how many failed."""
    table = Table()
    check_versions(target, table)
    with tempfile.TemporaryDirectory(prefix="check_device_") as name:
        folder = Path(name)
        for one in ("layers", "scale"):
            start_group(one, target, table, small, folder)
        for one in ("network", "steps"):
            check_against_cpu(one, target, table, small, folder)
        check_programs(target, table, folder)
        check_310(target, table, folder)
        check_ranks(target, device_num, table, small, folder)
        if small or target == "CPU":
            cpu = "a CPU takes minutes for one; benchmarks/ has its times"
            table.add(SPEED, PUBLISHED_MS[target], cpu if target == "CPU" else "small", None)
        else:
            start_group("speed", target, table, small, folder)
    content = json.dumps({"target": target, "checks": table.rows}, indent=2)
    write_files({report: f"{content}\n".encode()})
    print(f"the table for a bug report: {report.resolve()}")
    print(f"{table.count('passed')} passed, {table.count('failed')} failed")
    return table.count("failed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("target", metavar="TARGET", choices=DEVICES, help=" or ".join(DEVICES))
    parser.add_argument(
        "device_num",
        metavar="DEVICE_NUM",
        type=int,
        nargs="?",
        default=1,
        help="number of devices; above 1: check training on all of them, too (default: 1)",
    )
    parser.add_argument("--small", action="store_true", help="smaller checks, for the tests")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)


def execute(args: argparse.Namespace) -> None:
    """Runs the checks; exits with 1 if one failed."""
    if args.group:
        run_group(args)
    elif check_machine(
        args.target, args.device_num, args.small, Path(f"check_device_{args.target}.json")
    ):
        sys.exit(1)


if __name__ == "__main__":
    run_script("check")
