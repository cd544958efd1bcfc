"""All checks of a machine, and their report."""

import os
import platform
import re
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np

from ..utils.files import write_json
from ..utils.process import term_as_exit
from .groups import check_against_cpu, start_group
from .processes import output_of
from .programs import check_310, check_programs
from .ranks import check_ranks
from .speed import PUBLISHED_MS, SPEED
from .table import Table


def check_machine(target: str, device_num: int, small: bool) -> int:
    """Runs all checks; prints them, and writes them to check_device_TARGET.json.

    Args:
        target: "Ascend", "GPU" or "CPU".
        device_num: number of devices; above 1, they must train together, too.
        small: whether to leave out what takes long.

    Returns:
        How many checks failed.
    """
    table = Table()
    check_versions(target, table)
    with term_as_exit(), tempfile.TemporaryDirectory(prefix="check_device_") as name:
        folder = Path(name)
        for group in ("layers", "scale"):
            start_group(group, target, table, small, folder)
        for group in ("network", "steps"):
            check_against_cpu(group, target, table, small, folder)
        check_programs(target, table, folder, small)
        check_310(target, table, folder)
        check_ranks(target, device_num, table, small, folder)
        if small or target == "CPU":
            cpu = "a CPU takes minutes for one; benchmarks/ has its times"
            table.add(SPEED, PUBLISHED_MS[target], cpu if target == "CPU" else "small", None)
        else:
            start_group("speed", target, table, small, folder)
    report = Path(f"check_device_{target}.json")
    write_json(report, {"target": target, "checks": table.rows})
    print(f"the table for a bug report: {report.resolve()}")
    print(f"{table.count('passed')} passed, {table.count('failed')} failed")
    return table.count("failed")


def check_versions(target: str, table: Table) -> None:
    """Adds the installed versions and what the driver reports about the devices."""
    system = f"{platform.platform()}, Python {platform.python_version()}"
    versions = f"MindSpore {ms.__version__}, NumPy {np.__version__}"
    table.add("system", "-", f"{system}, {versions}", True)
    if target == "GPU":
        query = "--query-gpu=name,driver_version,memory.total"
        table.add("driver", "-", _line_of("nvidia-smi", query, "--format=csv,noheader"), True)
        home = os.environ.get("CUDA_HOME")
        nvcc = _line_of(f"{home}/bin/nvcc", "--version") if home else "CUDA_HOME is not set"
        table.add(
            "toolkit", "CUDA 11.1, 11.6 or 11.8", nvcc, bool(re.search(r"release 11\.[168]", nvcc))
        )
    elif target == "Ascend":
        table.add("driver", "-", _line_of("npu-smi", "info"), True)
        table.add("toolkit", "-", os.environ.get("ASCEND_TOOLKIT_HOME", "CANN is not set"), True)


def _line_of(*command: str) -> str:
    return " ".join(output_of(*command).split())[:400]
