"""Writes the AIR of a checkpoint on an Ascend, in a process of its own: a process has one device.

`python -m src.export.air` reads what `write_air` was asked for from its standard input, as JSON.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from easydict import EasyDict

from ..checkpoint import load_weights
from ..devices.device import start_device, told
from ..utils.command_line import run
from ..utils.errors import DataError
from ..utils.process import working_folder
from ..vnet import create_vnet
from .lowered_vnet import LoweredVNet


def write_air(
    checkpoint_path: str | Path,
    config: EasyDict,
    conv2d: bool,
    shape: Sequence[int],
    path: Path,
    device_id: int,
) -> None:
    """Writes an AIR.

    Args:
        checkpoint_path: its weights must fit `config`.
        config: variant, width and grid.
        conv2d: 2-D operators only.
        shape: of the input, (batch, 1, X, Y, Z).
        path: of the file.
        device_id: number of the Ascend device.

    Raises:
        DataError: the device is not there, or cannot write it.
    """
    request = {"checkpoint": str(Path(checkpoint_path).resolve()), "config": dict(config)}
    # MindSpore takes a path only of Latin letters, digits and few signs: a plain name, there.
    written = Path(path).with_name("mindspore_model.air").resolve()
    request |= {"conv2d": conv2d, "shape": list(shape), "path": str(written)}
    ended = subprocess.run(
        [sys.executable, "-m", __name__],
        cwd=Path(__file__).resolve().parents[2],
        input=json.dumps(request | {"device_id": device_id}),
        capture_output=True,
        text=True,
    )
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        raise DataError(f"AIR not written: {lines[-1].removeprefix('error: ')}")
    # MindSpore's own files can be read by nobody but the owner, and written by nobody.
    shutil.copyfile(written, path)


def main():
    """Writes the AIR that standard input asks for."""
    request = json.load(sys.stdin)
    start_device("Ascend", request["device_id"])
    # The exporter belongs to the graph engine, which MindSpore takes at this level only.
    ms.set_context(jit_config={"jit_level": "O2"})
    network = create_vnet(EasyDict(request["config"])).set_train(False)
    load_weights(network, request["checkpoint"])
    if request["conv2d"]:
        network = LoweredVNet(network, request["shape"]).set_train(False)
    volume = ms.Tensor(np.zeros(request["shape"], np.float32))
    path, hint = Path(request["path"]), "AIR is deprecated by MindSpore: take MINDIR where you can"
    with told("the export", hint), working_folder(path.parent):
        ms.export(network, volume, file_name=path.name, file_format="AIR")


if __name__ == "__main__":
    run(main)
