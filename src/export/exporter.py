"""Exports a checkpoint as MINDIR, ONNX, AIR or VNET with a description, and verifies the files."""

import importlib.util
import json
import logging
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from easydict import EasyDict
from mindspore import nn

from ..checkpoint import load_vnet
from ..devices.device import choose_device, start_device
from ..ensemble import Member, check_unchanged, find_members
from ..evaluation import load_network
from ..fast_conv3d import operators
from ..fast_conv3d.build import BuildError
from ..utils import output_folder
from ..utils.errors import DataError, UsageError, reason_of
from ..utils.files import check_name, hash_file, temporary_folder
from ..utils.process import change_folder
from .air import write_air
from .description import (
    LITE_MINDIR_VERSION,
    LITE_SUFFIX,
    describe,
    description_path,
    lite_path,
    merge_description,
    weights_path,
)
from .formats import MINDIR_VERSIONS
from .lowered_vnet import LoweredVNet
from .mindir import input_output_names, to_version_1
from .onnx_model import INPUT, OUTPUT, export_onnx, run_onnx
from .weight_file import VERSION, run_weights, write_weights

log = logging.getLogger(__name__)

# The largest accepted difference of a probability. A GPU may compute float32 convolutions with
# reduced precision.
TOLERANCE = {"CPU": 1e-4, "GPU": 2e-2}


MODEL_SUFFIX = re.compile(r"\.(mindir|onnx|air|vnet)$")


def member_names(file_name: str, count: int) -> list[str]:
    """Returns the `--file_name` of each network: NAME_0, NAME_1, ... of several."""
    name = MODEL_SUFFIX.sub("", file_name)
    return [f"{name}_{number}" for number in range(count)] if count > 1 else [file_name]


def ensemble_of(names: Sequence[str], members: Sequence[Member]) -> dict[str, str]:
    """Returns what descriptions say about an ensemble; nothing for a single network.

    Args:
        names: of `member_names`.
        members: the same networks.

    Returns:
        {name of a model, without its ending: SHA-256 of its checkpoint}.
    """
    if len(names) == 1:
        return {}
    return {Path(name).name: sha256 for name, (_, _, sha256) in zip(names, members, strict=True)}


def export_checkpoints(
    paths: Sequence[str],
    overrides: list[str],
    file_format: str,
    file_name: str,
    conv2d: bool = False,
    mindir_version: int = MINDIR_VERSIONS[0],
    batch_size: int = 1,
    device_target: str = "auto",
    device_id: int = 0,
) -> None:
    """Exports the checkpoints at some paths; of several each becomes a model of an ensemble.

    Args:
        paths: see `find_members`.
        overrides: see `override_config`.
        file_format, file_name, conv2d, mindir_version, batch_size: see `plan_exports`; of several
            checkpoints `file_name` gets numbers.
        device_target: "Ascend", "GPU", "CPU" or "auto"; the function starts it.
        device_id: number of the card.

    Raises:
        DataError, UsageError: see `find_members`, `plan_exports` and `export_model`.
    """
    target = choose_device(device_target)

    def plan(name: str) -> list[Export]:
        return plan_exports(file_format, name, conv2d, mindir_version, target, batch_size)

    plan(file_name)  # wrong options fail before the checkpoints are read
    members = find_members(paths, overrides)
    names = member_names(file_name, len(members))
    ensemble = ensemble_of(names, members)
    plans = [plan(name) for name in names]
    for exports in plans:
        output_folder.check(exports[0].path.parent, [path.name for path in _files_of(exports)])
    start_device(comparison_device(target), device_id)
    for member, exports in zip(members, plans, strict=True):
        export_model(member, target, exports, batch_size, device_id, ensemble)


def comparison_device(target: str) -> str:
    """Returns the device on which outputs are compared in float32: the CPU instead of an Ascend."""
    return "CPU" if target == "Ascend" else target


@dataclass(frozen=True)
class Export:
    """One model file to write.

    Attributes:
        path: of the file.
        file_format: one of `src.export.formats.MODEL_FORMATS`.
        conv2d: whether it has 2-D operators only.
        mindir_version: of a MINDIR; None for other formats.
    """

    path: Path
    file_format: str
    conv2d: bool = False
    mindir_version: int | None = None

    def properties(self) -> dict[str, str | int]:
        """The file's format, operators and version, as the description stores them."""
        if self.file_format == "VNET":
            return {"format": self.file_format, "format_version": VERSION}
        version = {"mindir_version": self.mindir_version} if self.mindir_version else {}
        return {
            "format": self.file_format,
            "operators": "2-D" if self.conv2d else "3-D",
            **version,
        }


def plan_exports(
    file_format: str,
    file_name: str,
    conv2d: bool,
    mindir_version: int,
    device_target: str,
    batch_size: int = 1,
) -> list[Export]:
    """Returns the files to export.

    A plain MINDIR is accompanied by the models of the C++ program: one for MindSpore Lite and, for
    one volume per call, the weight file for CPUs.

    Args:
        file_format: one of `src.export.formats.MODEL_FORMATS`.
        file_name: path of the model file, with or without suffix.
        conv2d: whether to use 2-D operators only.
        mindir_version: one of `src.export.formats.MINDIR_VERSIONS`.
        device_target: "Ascend", "GPU" or "CPU"; AIR needs Ascend.
        batch_size: volumes per call of the model.

    Returns:
        The argument `exports` of `export_model`.

    Raises:
        UsageError: an invalid combination of options, or a package that ONNX needs is missing.
    """
    name = MODEL_SUFFIX.sub("", file_name)
    if name.rpartition("/")[2] in ("", ".", ".."):
        raise UsageError(f"--file_name {file_name}: expected the name of a file, such as out/vnet")
    if name.endswith(LITE_SUFFIX):
        raise UsageError(
            f"--file_name {file_name}: {LITE_SUFFIX} is the ending of models for MindSpore Lite, "
            "which an export to MINDIR adds; choose another name"
        )
    if batch_size < 1:
        raise UsageError(f"--batch_size {batch_size}: expected at least 1")
    path = Path(f"{name}.{file_format.lower()}")
    if file_format == "MINDIR":
        model = Export(path, file_format, conv2d, mindir_version)
        lite_model = Export(lite_path(path), file_format, True, LITE_MINDIR_VERSION)
        if conv2d or mindir_version != MINDIR_VERSIONS[0]:
            return [model]
        weights = [Export(weights_path(path), "VNET")] * (batch_size == 1)
        return [model, *weights, lite_model]
    if mindir_version != MINDIR_VERSIONS[0]:
        raise UsageError(f"--mindir_version {mindir_version}: only for --file_format MINDIR")
    if file_format == "AIR" and device_target != "Ascend":
        raise UsageError(
            f"--file_format AIR needs an Ascend device, not {device_target}; use MINDIR"
        )
    if file_format == "VNET" and (conv2d or batch_size > 1):
        option = "--conv2d" if conv2d else f"--batch_size {batch_size}"
        raise UsageError(
            f"{option}: not for --file_format VNET, which has 3-D convolutions of one volume"
        )
    if file_format == "ONNX":
        if conv2d:
            raise UsageError(
                "--conv2d: not for --file_format ONNX, which supports 3-D convolutions"
            )
        missing = [name for name in ("onnx", "onnxruntime") if not importlib.util.find_spec(name)]
        if missing:
            raise UsageError(
                f"--file_format ONNX needs {' and '.join(missing)}: "
                "pip install -r requirements-onnx.txt"
            )
    return [Export(path, file_format, conv2d)]


def export_model(
    member: Member,
    device_target: str,
    exports: list[Export],
    batch_size: int = 1,
    device_id: int = 0,
    ensemble: Mapping[str, str] | None = None,
) -> None:
    """Writes model files and their descriptions; on failure none is written.

    Each model is loaded again, and its output for a random volume is compared with that of the
    checkpoint's network.

    Args:
        member: the checkpoint, whose weights must match its configuration exactly.
        device_target: "Ascend", "GPU" or "CPU"; its `comparison_device` must have been started.
        exports: from `plan_exports`, all in one folder.
        batch_size: volumes per call of the model.
        device_id: of the Ascend device that writes an AIR.
        ensemble: of `ensemble_of`, if the model is one of several.

    Raises:
        BuildError: a weight file is the only export, and this machine has no C++ compiler.
        DataError: the checkpoint does not match or is replaced meanwhile, a file of that name was
            not written by this program or edited since, the folder cannot be written, or a model's
            output differs from the checkpoint's.
    """
    checkpoint, config, sha256 = member
    folder = exports[0].path.parent
    check_name(exports[0].path.absolute())  # MindSpore and ONNX Runtime need UTF-8
    exports = _checkable(exports)
    # The reference uses MindSpore's convolutions in float32, as the exported model does.
    plain = EasyDict({**config, "fast_conv3d": "off", "precision": "float32"})
    device = comparison_device(device_target)
    reference = load_network(checkpoint, plain, device)
    paths = _files_of(exports)
    names = [path.name for path in paths]
    output_folder.check(folder, names)
    log.info(
        f"exporting at {config.VolSize} and comparing in float32 on {device}, which may take some "
        "minutes on a CPU"
    )
    shape = (batch_size, 1, *config.VolSize)
    volume = np.random.default_rng(config.seed).normal(size=shape).astype(np.float32)
    expected = reference(ms.Tensor(volume)).asnumpy()
    with _scratch_folder(folder) as scratch:
        for export in exports:
            path = scratch / export.path.name
            file = _export_one(export, member, path, volume, expected, device, device_id)
            description = describe(config, batch_size, {path.name: file}, ensemble)
            written = description_path(path)  # by an earlier one of these exports
            earlier = written if written.exists() else description_path(export.path)
            description = merge_description(description, earlier)
            written.write_text(f"{json.dumps(description, indent=2)}\n")
        check_unchanged(checkpoint, sha256)
        output_folder.announce(folder, names)
        with output_folder.register(folder, names):
            for path in paths:
                (scratch / path.name).replace(path)


def _export_one(export, member, path, volume, expected, device, device_id):
    """Writes and checks a model at `path`; returns its entry in the description."""
    checkpoint, config, sha256 = member
    network = load_vnet(checkpoint, config).set_train(False)
    tensor_names, output = _write_model(export, network, volume, path)
    difference = _check_difference(output, expected, export.path, device)
    if export.file_format == "AIR":
        write_air(checkpoint, config, export.conv2d, volume.shape, path, device_id)
    log.info(
        f"{export.path}: {path.stat().st_size / 1e6:.1f} MB, differs from {checkpoint} by "
        f"{difference:.1e}"
    )
    return {
        **export.properties(),
        **tensor_names,
        "sha256": hash_file(path),
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": sha256,
        "largest_difference": difference,
        "mindspore": ms.__version__,
    }


def _files_of(exports):
    """The models and their descriptions, which formats of a model share."""
    paths = [path for export in exports for path in (export.path, description_path(export.path))]
    return list(dict.fromkeys(paths))


def _checkable(exports):
    """Leaves out a weight file that cannot be checked here, unless it is the only export."""
    try:
        if any(export.file_format == "VNET" for export in exports):
            operators.library()
    except BuildError as error:
        if len(exports) == 1:
            raise
        left_out = next(export.path for export in exports if export.file_format == "VNET")
        log.info(f"{left_out}: not written, since it can't be checked here ({error})")
        return [export for export in exports if export.path != left_out]
    return exports


@contextmanager
def _scratch_folder(folder: Path) -> Iterator[Path]:
    """Creates `folder` and yields a hidden folder in it; a failed export leaves nothing behind."""
    with ExitStack() as cleanup:

        def on_sigterm(*_):
            # Ends at once: MindSpore's compiler swallows exceptions that a signal handler raises.
            cleanup.close()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)

        cleanup.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        try:
            # Absolute, since the current folder changes during an export.
            scratch = cleanup.enter_context(temporary_folder(folder.absolute(), ".exporting-"))
            signal.signal(signal.SIGTERM, on_sigterm)
            yield scratch
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({reason_of(error)})") from None


def _check_difference(output, expected, path, device):
    """Returns the largest difference of two outputs.

    Raises:
        DataError: it exceeds the device's tolerance, or is NaN.
    """
    difference = float(np.abs(output - expected).max())
    tolerance = TOLERANCE[device]
    if not difference <= tolerance:  # also true for NaN
        remedy = "report this" if np.isfinite(expected).all() else "its weights are NaN"
        raise DataError(
            f"{path}: not written, differs from the checkpoint by {difference:.1e}, expected "
            f"{tolerance:.0e} at most; {remedy}"
        )
    return difference


def _write_model(export, network, volume, path):
    """Writes a model; returns the names of its input and output, and its output for `volume`."""
    if export.file_format == "VNET":
        write_weights(network, volume.shape[2:], path)
        return {}, run_weights(path, volume)
    if export.file_format == "ONNX":
        export_onnx(network, volume.shape, path)
        return {"input_name": INPUT, "output_name": OUTPUT}, run_onnx(path, volume)
    if export.conv2d:
        network = LoweredVNet(network, volume.shape).set_train(False)
    # MindSpore writes files that only their owner can read, and rejects many characters in a path.
    work = Path(tempfile.mkdtemp(prefix="mindspore-", dir=path.parent))
    mindir = work / "model.mindir"
    with change_folder(work):
        ms.export(network, ms.Tensor(volume), file_name=mindir.name, file_format="MINDIR")
    if export.file_format == "AIR":  # MindSpore cannot load an AIR: its MINDIR is checked instead
        checked = mindir
    elif export.mindir_version == 1:
        checked = path
        to_version_1(mindir, path)
    else:
        checked = path
        shutil.copyfile(mindir, path)
    names = dict(zip(("input_name", "output_name"), input_output_names(checked), strict=True))
    return names, nn.GraphCell(ms.load(str(checked)))(ms.Tensor(volume)).asnumpy()
