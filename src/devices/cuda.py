"""Why MindSpore finds no GPU: it looks for CUDA in one place, and says little where that fails."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import mindspore as ms

# nvcc's version -> the plug-in that MindSpore 2.10 loads for it.
PLUGINS = {"11.1": "11.1", "11.6": "11.6", "11.8": "11.6"}


def nvcc_version(nvcc: str | Path) -> str | None:
    """The release that a CUDA compiler says it is of, such as "11.6"; None if it says none."""
    try:
        answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"release (\d+\.\d+)", answer.stdout)
    return found and found[1]


def missing_library(plugin: Path) -> str | None:
    """What the loader says of a library that cannot be loaded; None where it can."""
    try:
        ctypes.CDLL(str(plugin))
    except OSError as error:
        return str(error).splitlines()[0]
    return None


def what_is_missing() -> str:
    """What of CUDA is missing or wrong, and what would be right: one line, without a name before.

    Looks at what MindSpore looks at: the variable CUDA_HOME, the version that its nvcc tells, and
    the libraries of the plug-in for that version.
    """
    plugins = Path(ms.__file__).parent / "lib" / "plugin"
    if not list(plugins.glob("libmindspore_gpu.so.*")):
        return f"this MindSpore has no GPU plug-in (in {plugins}); the x86-64 wheel of 2.10 has"
    wanted = f"MindSpore needs CUDA {', '.join(PLUGINS)} with cuDNN 8"
    home = os.environ.get("CUDA_HOME")
    if not home:
        nvcc = shutil.which("nvcc")
        found = f": nvcc on PATH is in {Path(nvcc).resolve().parents[1]}" if nvcc else ""
        return f"CUDA_HOME is not set, without which it looks for no CUDA{found}; {wanted}"
    nvcc = Path(home, "bin", "nvcc")
    if not nvcc.is_file():
        return f"CUDA_HOME is {home}, which has no bin/nvcc; {wanted}"
    version = nvcc_version(nvcc)
    if version not in PLUGINS:
        return f"{nvcc} is of CUDA {version or 'an unknown version'}; {wanted}"
    problem = missing_library(plugins / f"libmindspore_gpu.so.{PLUGINS[version]}")
    if problem:
        return (
            f"CUDA {version} in {home}, but {problem}; {wanted}, and LD_LIBRARY_PATH naming the "
            "folders of both"
        )
    return f"CUDA {version} in {home} is complete, the driver is not: see nvidia-smi"
