"""Builds libraries that stand in for CUDA, cuDNN and NCCL, so that the GPU plug-in loads anywhere.

    python tests/devices/gpu_standin/build.py FOLDER       prints the variables that put it in place

Everything above them is MindSpore's own: graph compiler, choice of kernels, mixed precision, loss
scale, dataset sink, checkpoints, collectives. Kernels compute nothing and device memory is host
memory, so numbers mean nothing; NCCL's sums alone are real. What the libraries have to define is
read from the symbol tables of the installed wheel; the few functions that have to answer something
are written by hand in runtime.c, cudnn.c and nccl.c. Knobs, in the environment of what runs:

    STANDIN_GPUS        how many cards there are (default: 2)
    STANDIN_ERROR       what cudaGetDeviceCount answers instead, such as 35 or 100
    STANDIN_MEMORY_MB   memory of a card, all of it free (default: 8192)
"""

import importlib.util
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
PLUGINS = Path(importlib.util.find_spec("mindspore").origin).parent / "lib" / "plugin"
PLUGIN = PLUGINS / "libmindspore_gpu.so.11.6"
KERNELS = PLUGINS / "gpu" / "libcuda_ops.so.11"
NVCC = "#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.124'\n"
# Functions of the driver, which the plug-in looks up by name.
DRIVER = (
    *("cuDeviceGetAttribute", "cuGetErrorName", "cuLaunchKernel", "cuModuleGetFunction"),
    *("cuModuleLoadDataEx", "cuModuleUnload", "cuStreamSynchronize"),
)
HAND_WRITTEN = {"libcudart.so.11.0": "runtime.c", "libcudnn.so.8": "cudnn.c"}


def symbols(library: Path, kind: str) -> list[str]:
    """Names of a library's dynamic symbols, `name@version` where they have a version."""
    command = ["nm", "-D", f"--{kind}-only", library]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line.split()[-1] for line in table.splitlines() if line.strip()]


def stubs(names) -> str:
    """C functions that succeed at nothing; weak, so that one written by hand comes first."""
    return "\n".join(
        ["#include <stdlib.h>", "#define STUB __attribute__((weak)) int"]
        + [
            f"STUB {name}(void **handle) {{ *handle = calloc(1, 64); return 0; }}"
            if re.fullmatch(r"cu[a-z]+(Dn)?Create(_v2)?", name)
            else f"STUB {name}(void) {{ return 0; }}"
            for name in sorted(names)
        ]
    )


def compile_library(folder: Path, name: str, names, *sources_and_flags) -> None:
    """Makes a shared library of this soname that defines these names."""
    source = folder / f"{name}.c"
    source.write_text(stubs(names))
    command = ["gcc", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name]
    subprocess.run([*command, source, *sources_and_flags], check=True)


def write_nvcc(cuda_home: Path, version: str = "11.6") -> None:
    """A compiler driver that says its version, by which MindSpore chooses the plug-in."""
    (cuda_home / "bin").mkdir(parents=True, exist_ok=True)
    (cuda_home / "bin" / "nvcc").write_text(NVCC.format(version=version))
    (cuda_home / "bin" / "nvcc").chmod(0o755)
    (cuda_home / "version.json").write_text(f'{{"cuda": {{"version": "{version}.2"}}}}')


def build(folder: Path) -> dict[str, str]:
    """Builds all libraries into a folder; returns the variables that put them in place."""
    write_nvcc(folder / "cuda")
    undefined = symbols(PLUGIN, "undefined")
    versioned = defaultdict(set)  # CUDA's symbols have the version of their library's name
    for name, _, version in (symbol.partition("@") for symbol in undefined):
        versioned[version.lstrip("@")].add(name)
    for library, names in versioned.items():
        if library.startswith("lib"):
            script = folder / f"{library}.map"
            script.write_text(f"{library} {{ global: *; }};\n")
            hand = [HERE / HAND_WRITTEN[library]] if library in HAND_WRITTEN else []
            compile_library(folder, library, names, *hand, f"-Wl,--version-script={script}")
    compile_library(folder, "libcuda.so.1", DRIVER)

    wanted = {symbol.partition("@")[0] for symbol in undefined}
    kernels = wanted & {symbol.partition("@")[0] for symbol in symbols(KERNELS, "defined")}
    kernels |= {
        symbol
        for symbol in symbols(KERNELS, "undefined")
        if re.match(r"cu(blas|dnn|fft|rand|solver|sparse)", symbol)
    }
    compile_library(folder, "libstandin_kernels.so", kernels)
    compile_library(folder, "libstandin_nccl.so", (), HERE / "nccl.c")
    preloaded = ["libstandin_kernels.so", "libstandin_nccl.so"]
    return {
        "CUDA_HOME": str(folder / "cuda"),
        "LD_LIBRARY_PATH": str(folder),
        "LD_PRELOAD": ":".join(str(folder / name) for name in preloaded),
    }


if __name__ == "__main__":
    for name, value in build(Path(sys.argv[1]).resolve()).items():
        print(f"export {name}={value}")
