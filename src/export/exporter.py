"""A checkpoint as MINDIR, ONNX or AIR, with its description, checked against the checkpoint."""

import importlib.util
import json
import logging
import re
import shutil
import signal
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from easydict import EasyDict
from mindspore import nn

from ..checkpoint import load_weights
from ..evaluation import load_network
from ..utils import output_folder
from ..utils.command_line import MINDIR_VERSIONS
from ..utils.errors import DataError, UsageError, reason_of
from ..utils.files import check_name, hash_file, temporary_folder
from ..utils.process import working_folder
from ..vnet import create_vnet
from .air import write_air
from .description import LITE, describe, lite_path_of, path_of, with_other_formats
from .lowered_vnet import LoweredVNet
from .mindir import names_of, to_version_1
from .onnx_model import INPUT, OUTPUT, export_onnx, run_onnx

log = logging.getLogger(__name__)

# Largest difference of a probability that passes. A GPU may compute float32 convolutions with
# fewer bits.
TOLERANCE = {"CPU": 1e-4, "GPU": 2e-2}


def comparing_device(target: str) -> str:
    """The device that compares in float32: the one asked for, but a CPU for an Ascend."""
    return "CPU" if target == "Ascend" else target


@dataclass(frozen=True)
class Export:
    """One model file to write."""

    path: Path
    file_format: str
    conv2d: bool = False
    mindir_version: int | None = None

    def facts(self) -> dict:
        """What its description says of the file."""
        facts = {"format": self.file_format, "operators": "2-D" if self.conv2d else "3-D"}
        return facts | ({"mindir_version": self.mindir_version} if self.mindir_version else {})


def planned(
    file_format: str,
    file_name: str,
    conv2d: bool,
    mindir_version: int,
    device_target: str,
    batch_size: int = 1,
) -> list[Export]:
    """The files of a command line; a plain MINDIR brings its twin for MindSpore Lite along.

    Args:
        file_format: one of `src.utils.command_line.MODEL_FORMATS`.
        file_name: with or without a format's suffix.
        conv2d: 2-D operators only.
        mindir_version: one of `src.utils.command_line.MINDIR_VERSIONS`.
        device_target: AIR exists on Ascend only.
        batch_size: volumes per call.

    Returns:
        What `export_model` is to write.

    Raises:
        UsageError: the request cannot be met.
    """
    name = re.sub(r"\.(mindir|onnx|air)$", "", file_name)
    if name.rpartition("/")[2] in ("", ".", ".."):
        raise UsageError(f"--file_name {file_name}: expected the name of a file, such as out/vnet")
    if batch_size < 1:
        raise UsageError(f"--batch_size {batch_size}: expected at least 1")
    path = Path(f"{name}.{file_format.lower()}")
    if file_format == "MINDIR":
        exports = [Export(path, file_format, conv2d, mindir_version)]
        twin = Export(lite_path_of(path), file_format, True, LITE["mindir_version"])
        is_plain = not conv2d and mindir_version == MINDIR_VERSIONS[0]
        return [*exports, twin] if is_plain else exports
    if mindir_version != MINDIR_VERSIONS[0]:
        raise UsageError(f"--mindir_version {mindir_version}: only for --file_format MINDIR")
    if file_format == "AIR" and device_target != "Ascend":
        raise UsageError(
            f"--file_format AIR is written on Ascend only, not on {device_target}; MINDIR anywhere"
        )
    if file_format == "ONNX":
        if conv2d:
            raise UsageError("--conv2d: not for --file_format ONNX, which has 3-D convolutions")
        missing = [name for name in ("onnx", "onnxruntime") if not importlib.util.find_spec(name)]
        if missing:
            raise UsageError(
                f"--file_format ONNX needs {' and '.join(missing)}: "
                "pip install -r requirements-onnx.txt"
            )
    return [Export(path, file_format, conv2d)]


def export_model(
    checkpoint_path: str | Path,
    config: EasyDict,
    device_target: str,
    exports: list[Export],
    batch_size: int = 1,
    device_id: int = 0,
) -> None:
    """Writes the files of `planned` and their descriptions, all or none.

    Each is loaded back, and its output for a volume of noise compared with that of the checkpoint's
    network.

    Args:
        checkpoint_path: its weights must fit `config` exactly.
        config: variant, width and grid.
        device_target: the device asked for; its `comparing_device` is started already.
        exports: from `planned`, of one folder.
        batch_size: volumes per call of the model.
        device_id: number of the Ascend device that writes an AIR.

    Raises:
        DataError: the checkpoint does not fit, a file of that name is not ours, the folder cannot
            be written, or a model computes something else than the checkpoint.
    """
    folder = exports[0].path.parent
    check_name(exports[0].path.absolute())  # MindSpore and ONNX Runtime take no other
    # MindSpore's own convolutions, in float32 like the model: a difference is the export's.
    plain = EasyDict({**config, "fast_conv3d": "off", "precision": "float32"})
    device = comparing_device(device_target)
    reference = load_network(checkpoint_path, plain, device)
    paths = [path for export in exports for path in (export.path, path_of(export.path))]
    names = [path.name for path in paths]
    output_folder.check(folder, names)
    log.info(
        f"exporting at {config.VolSize} and comparing in float32 on {device}, up to some minutes "
        "on a CPU"
    )
    shape = (batch_size, 1, *config.VolSize)
    volume = np.random.default_rng(config.seed).normal(size=shape).astype(np.float32)
    expected = reference(ms.Tensor(volume)).asnumpy()
    checkpoint = {
        "checkpoint": Path(checkpoint_path).name,
        "checkpoint_sha256": hash_file(checkpoint_path),
    }
    with _scratch_in(folder) as scratch:
        for export in exports:
            path = scratch / export.path.name
            network = create_vnet(config).set_train(False)
            load_weights(network, checkpoint_path)
            (input_name, output_name), found = _write(export, network, volume, path)
            difference = _checked_difference(found, expected, export.path, device)
            if export.file_format == "AIR":
                write_air(checkpoint_path, config, export.conv2d, shape, path, device_id)
            file = {
                **export.facts(),
                "input_name": input_name,
                "output_name": output_name,
                "sha256": hash_file(path),
                **checkpoint,
                "largest_difference": difference,
                "mindspore": ms.__version__,
            }
            log.info(
                f"{export.path}: {path.stat().st_size / 1e6:.1f} MB, differs from "
                f"{checkpoint_path} by {difference:.1e}"
            )
            description = describe(config, batch_size, {path.name: file})
            description = with_other_formats(description, path_of(export.path))
            path_of(path).write_text(f"{json.dumps(description, indent=2)}\n")
        output_folder.claim(folder, names)
        for path in paths:
            (scratch / path.name).replace(path)


@contextmanager
def _scratch_in(folder):
    """A hidden folder in `folder`, which is made for it; nothing stays of an export that fails."""
    with ExitStack() as cleanup:

        def end(*_):  # at once: MindSpore swallows exceptions that pass through it as it compiles
            cleanup.close()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

        cleanup.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        try:
            # Absolute, since the current folder changes during an export.
            scratch = cleanup.enter_context(temporary_folder(folder.absolute(), ".exporting-"))
            signal.signal(signal.SIGTERM, end)
            yield scratch
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({reason_of(error)})") from None


def _checked_difference(found, expected, path, device):
    """The largest difference of two outputs, which must be small."""
    difference = float(np.abs(found - expected).max())
    tolerance = TOLERANCE[device]
    if not difference <= tolerance:  # nor NaN
        remedy = "report this" if np.isfinite(expected).all() else "its weights are NaN"
        raise DataError(
            f"{path}: not written, differs from the checkpoint by {difference:.1e}, expected "
            f"{tolerance:.0e} at most; {remedy}"
        )
    return difference


def _write(export, network, volume, path):
    """Writes a model; returns the names of its input and output, and what it makes of `volume`."""
    if export.file_format == "ONNX":
        export_onnx(network, volume.shape, path)
        return (INPUT, OUTPUT), run_onnx(path, volume)
    if export.conv2d:
        network = LoweredVNet(network, volume.shape).set_train(False)
    # MindSpore's own files can be read by nobody but the owner, and written by nobody; it takes a
    # path only of Latin letters, digits and few signs.
    work = Path(tempfile.mkdtemp(prefix="mindspore-", dir=path.parent))
    mindir = work / "model.mindir"
    with working_folder(work):
        ms.export(network, ms.Tensor(volume), file_name=mindir.name, file_format="MINDIR")
    if export.file_format == "AIR":  # which MindSpore cannot load: the MINDIR is checked for it
        checked = mindir
    elif export.mindir_version == 1:
        checked = path
        to_version_1(mindir, path)
    else:
        checked = path
        shutil.copyfile(mindir, path)
    return names_of(checked), nn.GraphCell(ms.load(str(checked)))(ms.Tensor(volume)).asnumpy()
