"""Diagnosis of CUDA: why MindSpore, which gives no reason, finds no GPU."""

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
    """Returns the CUDA release that nvcc reports, such as "11.6"; None if it reports none."""
    try:
        result = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"release (\d+\.\d+)", result.stdout)
    return found and found[1]


def loader_error(plugin: Path) -> str | None:
    """Returns the dynamic loader's message about a library that it cannot load, else None."""
    try:
        ctypes.CDLL(str(plugin))
    except OSError as error:
        return str(error).splitlines()[0]
    return None


def diagnose() -> str:
    """Returns one line: what is missing or wrong in the CUDA installation, what MindSpore needs.

    Checks what MindSpore's own loader checks: the variable CUDA_HOME, the version of its nvcc, and
    the libraries that the plug-in for that version needs.
    """
    plugins = Path(ms.__file__).parent / "lib" / "plugin"
    if not list(plugins.glob("libmindspore_gpu.so.*")):
        return f"this MindSpore has no GPU plug-in (in {plugins}); the x86-64 wheel of 2.10 has one"
    wanted = f"MindSpore needs CUDA {', '.join(PLUGINS)} with cuDNN 8"
    home = os.environ.get("CUDA_HOME")
    if not home:
        on_path = shutil.which("nvcc")
        found = f": nvcc on PATH is in {Path(on_path).resolve().parents[1]}" if on_path else ""
        return f"CUDA_HOME is not set, so MindSpore does not look for CUDA{found}; {wanted}"
    nvcc = Path(home, "bin", "nvcc")
    if not nvcc.is_file():
        return f"CUDA_HOME is {home}, which has no bin/nvcc; {wanted}"
    version = nvcc_version(nvcc)
    if version not in PLUGINS:
        return f"{nvcc} is of CUDA {version or 'an unknown version'}; {wanted}"
    problem = loader_error(plugins / f"libmindspore_gpu.so.{PLUGINS[version]}")
    if problem:
        return (
            f"CUDA {version} in {home}, but {problem}; {wanted}, and LD_LIBRARY_PATH with the "
            "folders of both"
        )
    return f"CUDA {version} in {home} is complete, so the driver is at fault: see nvidia-smi"
