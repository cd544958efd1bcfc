"""Groups of checks, each in a process of its own; they may be compared with a CPU's."""

import json
from pathlib import Path

import numpy as np

from ..devices.device import start_device
from .layers import check_layers
from .network import check_network
from .precisions import tolerance
from .processes import group_command, run_command
from .ranks import run_rank
from .speed import check_speed
from .steps import check_loss_scale, check_steps
from .table import Table


def run_group(group: str, target: str, device_num: int, small: bool, folder: Path) -> None:
    """Runs a group of checks in this process.

    Writes the checks to GROUP_TARGET.json and the arrays to GROUP_TARGET.npz in the folder.

    Args:
        group: "layers", "network", "steps", "scale" or "speed"; "rank" is one of `device_num`
            ranks, see `run_rank`.
        target: "Ascend", "GPU" or "CPU".
        device_num: number of ranks.
        small: whether to leave out what takes long.
        folder: for the results.

    Raises:
        DataError: the device is missing or does not start.
    """
    start_device(target)
    if group == "rank":
        run_rank(target, device_num, small, folder)
        return
    table = Table(quiet=True)
    arrays = {
        "layers": lambda: check_layers(target, table),
        "network": lambda: check_network(target, table, small),
        "steps": lambda: check_steps(target, table),
        "scale": lambda: check_loss_scale(table),
        "speed": lambda: check_speed(target, table),
    }[group]()
    report = folder / f"{group}_{target}.json"
    report.write_text(json.dumps(table.rows))
    if arrays:
        np.savez(report.with_suffix(".npz"), **arrays)


def start_group(
    group: str, target: str, table: Table, small: bool, folder: Path
) -> dict[str, np.ndarray]:
    """Runs a group of checks in its own process; adds them, and returns the arrays it computed."""
    report = folder / f"{group}_{target}.json"
    if not run_command(group_command(group, target, folder, small), table, group):
        return {}
    for row in json.loads(report.read_text()):
        table.add_row(row)
    arrays = report.with_suffix(".npz")
    if not arrays.is_file():
        return {}
    with np.load(arrays) as file:
        return dict(file)


def check_against_cpu(group: str, target: str, table: Table, small: bool, folder: Path) -> None:
    """Runs a group on the device and on the CPU, and compares their arrays.

    On a CPU there is nothing to compare with; values that are not finite fail.
    """
    found = start_group(group, target, table, small, folder)
    if target == "CPU":
        for key, value in found.items():
            found_range = f"{value.min():.3g} to {value.max():.3g}"
            is_finite = bool(np.isfinite(value).all())
            table.add(f"{key} on the CPU", "finite values", found_range, is_finite)
        return
    reference = start_group(group, "CPU", Table(quiet=True), small, folder) if found else {}
    for key, value in found.items():
        name, precision = key.split()
        golden = reference.get(f"{name} float32")
        if golden is None:
            table.add(f"{key} against the CPU", "the CPU's values", "the CPU computed none", False)
        else:
            limit = 5 * tolerance(target, precision)
            table.near(f"{key} against the CPU's float32", value, golden, limit)
