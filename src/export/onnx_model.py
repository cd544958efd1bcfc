"""Exports a V-Net as ONNX, working around two limits of MindSpore 2.10's exporter.

It cannot export ELU: the ELUs are replaced by ReLUs for the export, and renamed in the ONNX file
(V-Net has no other ReLU). It writes the slopes of a PReLU with shape (C,), which ONNX would
broadcast along the last axis: they are reshaped to (C, 1, 1, 1).

Needs the packages of requirements-onnx.txt.
"""

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from ..utils.errors import DataError, reason_of
from ..utils.process import change_folder
from ..vnet import VNet

INPUT, OUTPUT = "volume", "foreground_probability"


def export_onnx(network: VNet, shape: tuple[int, int, int, int, int], path: Path) -> None:
    """Writes a V-Net in evaluation mode as ONNX, opset 11, and validates the file.

    Args:
        network: its ELUs are replaced by ReLUs: do not use it afterwards.
        shape: (batch, 1, X, Y, Z) of the input.
        path: of the file, ending with .onnx.

    Raises:
        DataError: the exported model is not valid ONNX.
    """
    import onnx  # optional

    # Another name, since the file is incomplete, and MindSpore rejects many characters in a name.
    exported = path.with_name("mindspore_model.onnx")
    has_elu = _replace_elu_by_relu(network)
    with change_folder(path.parent):  # it rejects many characters in a path too
        ms.onnx.export(
            network,
            ms.Tensor(np.zeros(shape, np.float32)),
            file_name=exported.name,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
    model = onnx.load(exported)
    exported.unlink()
    weights = {weight.name: weight for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Relu" and has_elu:
            node.op_type = "Elu"
        elif node.op_type == "PRelu":
            slopes = weights[node.input[1]]
            slopes.dims.extend((1, 1, 1))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DataError(
            f"{path.name}: not written, invalid ONNX ({reason_of(error)}); report this, with "
            f"MindSpore {ms.__version__} and onnx {onnx.__version__}"
        ) from None
    onnx.save(model, path)


def run_onnx(path: Path, volume: np.ndarray) -> np.ndarray:
    """Runs a model in ONNX Runtime on a CPU.

    Args:
        path: of the .onnx file.
        volume: (batch, 1, X, Y, Z) float32.

    Returns:
        The foreground's probability, (batch, X, Y, Z) float32.
    """
    import onnxruntime  # optional

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: volume})[0]


def _replace_elu_by_relu(cell: nn.Cell) -> bool:
    """Replaces every ELU in a cell by a ReLU; returns whether there was one."""
    found = False
    for name, child in cell.name_cells().items():
        if isinstance(child, nn.ELU):
            setattr(cell, name, nn.ReLU())
            found = True
        else:
            found = _replace_elu_by_relu(child) or found
    return found
