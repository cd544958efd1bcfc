"""The machine of a measurement and the memory of a process, from Linux's /proc."""

import os
import platform
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np

STATUS = Path("/proc/self/status")
CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86, x86's matrix unit, Arm
CLEAR_REFERENCES = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets VmHWM to the current resident memory


def new_file(text: str) -> Path:
    """Parses the name of a file to write; one that exists is refused before anything is measured.

    Raises:
        ArgumentTypeError: it exists, or its folder does not.
    """
    path = Path(text)
    if path.exists() or not path.absolute().parent.is_dir():
        found = "exists already" if path.exists() else "is in no folder"
        raise ArgumentTypeError(f"{path}: {found}; name a new file")
    return path


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16; others convert to float32 and back."""
    flags = _first_value(CPUINFO, "flags") or _first_value(CPUINFO, "Features") or ""
    return bool(BFLOAT16_FLAGS & set(flags.split()))


def describe_machine() -> dict[str, str | int | float | list[float]]:
    """Processor, cores, memory, system and load, for the record."""
    return {
        "cpu": _first_value(CPUINFO, "model name") or platform.machine(),
        "usable_cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "load_average": list(os.getloadavg()),
    }


def describe_process() -> dict[str, str]:
    """The Python of an implementation, and the environment variables that affect its speed."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "ONEDNN_MAX_CPU_ISA")
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        **{name: os.environ.get(name, "not set") for name in names},
    }


def busy_core_seconds() -> float:
    """CPU seconds of all processes since the machine started."""
    ticks = [int(count) for count in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = sum(ticks[3:5])  # proc(5): user nice system idle iowait irq softirq steal
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")


def reset_peak_memory() -> None:
    """Restarts the peak at the memory resident now, so that loading weights does not count."""
    CLEAR_REFERENCES.write_text(RESET_PEAK)


def peak_memory_bytes() -> int:
    """Peak resident memory since `reset_peak_memory` (VmHWM)."""
    return int(_first_value(STATUS, "VmHWM").split()[0]) * 1024


def _first_value(path, key):
    """The text after the first `key:` of a file of /proc, None if there is none."""
    with path.open() as lines:
        found = (line.partition(":") for line in lines)
        return next((value.strip() for name, _, value in found if name.strip() == key), None)
