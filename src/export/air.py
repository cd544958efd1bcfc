"""Exports a checkpoint as AIR on an Ascend device.

A MindSpore process uses one device, and the model is checked on a CPU. So `write_air` starts
another process, `python -m src.export.air`, which reads the request as JSON from standard input.
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

from ..checkpoint import load_vnet
from ..devices.device import explain_errors, start_device
from ..utils.command_line import run
from ..utils.errors import DataError, last_error
from ..utils.process import change_folder, module_command
from .lowered_vnet import LoweredVNet


def write_air(
    checkpoint_path: str | Path,
    config: EasyDict,
    conv2d: bool,
    shape: Sequence[int],
    path: Path,
    device_id: int,
) -> None:
    """Writes an AIR file.

    Args:
        checkpoint_path: its weights must match `config`.
        config: variant, width and grid.
        conv2d: whether to use 2-D operators only.
        shape: of the input, (batch, 1, X, Y, Z).
        path: of the file.
        device_id: of the Ascend device.

    Raises:
        DataError: the device cannot be used, or the export fails.
    """
    # MindSpore rejects many characters in a file name.
    written = Path(path).with_name("mindspore_model.air").resolve()
    request = {
        "checkpoint": str(Path(checkpoint_path).resolve()),
        "config": dict(config),
        "conv2d": conv2d,
        "shape": list(shape),
        "path": str(written),
        "device_id": device_id,
    }
    result = subprocess.run(
        module_command(__name__, ends_with_parent=True),
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        reason = last_error(result.stderr) or f"exit code {result.returncode}"
        raise DataError(f"AIR not written: {reason.removeprefix('error: ')}")
    # MindSpore writes files that only their owner can read.
    shutil.copyfile(written, path)


def main() -> None:
    """Writes the AIR that standard input requests."""
    request = json.load(sys.stdin)
    start_device("Ascend", request["device_id"])
    # The exporter is part of the graph engine, which MindSpore uses at this level only.
    ms.set_context(jit_config={"jit_level": "O2"})
    network = load_vnet(request["checkpoint"], EasyDict(request["config"])).set_train(False)
    if request["conv2d"]:
        network = LoweredVNet(network, request["shape"]).set_train(False)
    volume = ms.Tensor(np.zeros(request["shape"], np.float32))
    path, hint = Path(request["path"]), "AIR is deprecated by MindSpore: use MINDIR if possible"
    with explain_errors("the export", hint), change_folder(path.parent):
        ms.export(network, volume, file_name=path.name, file_format="AIR")


if __name__ == "__main__":
    run(main)
