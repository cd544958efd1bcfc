"""Do several devices train together? Their ranks must end up with the same weights."""

import os
import shutil
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import ops

from ..devices.device import start_communication
from ..devices.ranks import Ranks
from ..training.optimizer import create_optimizer
from ..training.step import create_training_cell
from ..utils.process import ROOT, free_port
from ..vnet import create_vnet
from .precisions import configuration
from .processes import NO_CHECKOUT, group_command, run_program
from .table import Table

TIMEOUT_S = 300
PARAMETERS = 45_600_000  # of the zoo's network


def run_rank(target: str, device_num: int, small: bool, folder: Path) -> None:
    """Computes, as one of several ranks, what `compare_ranks` compares; writes rank_N.npz."""
    ranks = start_communication(device_num)
    found = _reduce_ones(1_000_000 if small else PARAMETERS) | _train(ranks, target)
    np.savez(folder / f"rank_{ranks.rank}.npz", **found)


def _reduce_ones(count: int) -> dict[str, np.ndarray]:
    gradients, times_ms = ms.Tensor(np.ones(count, np.float32)), []
    for _ in range(4):
        begin = time.perf_counter()
        total = ops.AllReduce()(gradients).asnumpy()
        times_ms.append(1000 * (time.perf_counter() - begin))
    return {
        "sum": np.array([total.min(), total.max()]),
        "size": np.array(count),
        "all-reduce ms": np.asarray(np.median(times_ms[1:])),
    }


def _train(ranks: Ranks, target: str) -> dict[str, np.ndarray]:
    """Returns the weights after three steps on a batch of the rank's own."""
    ms.set_seed(1)
    config = configuration("auto", "width=2", "VolSize=32,16,16", "batch_size=1")
    network = create_vnet(config)
    ranks.copy_from_first(network.get_parameters())
    optimizer = create_optimizer(network, config, np.full(10, 1e-3, np.float32))
    step = create_training_cell(network, optimizer, config, target)
    random = np.random.default_rng(ranks.rank)
    image = random.normal(size=(1, 1, *config.VolSize)).astype(np.float32)
    mask = (random.random((1, *config.VolSize)) < 0.3).astype(np.float32)
    dropout_mask = np.ones((1, network.dropout_channels), np.float32)
    for _ in range(3):
        step(*map(ms.Tensor, (image, mask, dropout_mask)))
    trained = [p for p in step.get_parameters() if "moving" not in p.name]
    return {f"weight {p.name}": p.asnumpy() for p in trained}


def check_ranks(target: str, device_num: int, table: Table, small: bool, folder: Path) -> None:
    """Starts the ranks by msrun, on GPUs also by mpirun if installed, and compares them."""
    script = ROOT / "scripts" / "ranks.py"
    if device_num == 1 or not script.is_file():
        reason = "DEVICE_NUM is 1" if device_num == 1 else NO_CHECKOUT
        table.add("several devices", "-", reason, None)
        return
    engines = ["msrun"] + ["mpirun"] * (target == "GPU" and shutil.which("mpirun") is not None)
    for engine in engines:
        own = folder / engine
        own.mkdir()
        log = ("--log", str(own / "{rank}.log"), "--")
        words = [
            *(sys.executable, str(script), "start", "--ranks", str(device_num), *log),
            *_start_python(engine, device_num, own),
            *(str(script), "run", *log),
            *group_command("rank", target, own, small, device_num),
        ]
        if run_program(words, table, f"{device_num} ranks by {engine}", TIMEOUT_S):
            compare_ranks(own, device_num, table)


def _start_python(engine: str, device_num: int, folder: Path) -> list[str]:
    """Returns the command by which msrun or mpirun starts Python for each rank."""
    count = str(device_num)
    if engine == "mpirun":
        places = ("--bind-to", "none", "--map-by", ":OVERSUBSCRIBE")
        root = ["--allow-run-as-root"] * (os.geteuid() == 0)
        return ["mpirun", "-n", count, *places, *root, sys.executable]
    msrun = Path(sys.executable).with_name("msrun")
    return [
        *(str(msrun) if msrun.exists() else "msrun", "--worker_num", count),
        *("--local_worker_num", count, "--join", "True"),
        *("--master_port", str(free_port()), "--log_dir", str(folder)),
        "python3",  # msrun starts only the PATH's
    ]


def compare_ranks(folder: Path, device_num: int, table: Table) -> None:
    """Compares the results that the ranks wrote to the folder."""
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
