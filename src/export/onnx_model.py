"""ONNX from MindSpore, with what MindSpore 2.10 cannot export mended.

It has no rule for ELU, so ReLUs stand in for the ELUs while it exports and are renamed afterwards;
V-Net has no ReLU of its own. It writes a PReLU's slopes as (C,), which ONNX would match with the
last axis: they become (C, 1, 1, 1).

Needs the packages of requirements-onnx.txt.
"""

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from ..utils.errors import DataError, reason_of
from ..utils.process import working_folder
from ..vnet import VNet

INPUT, OUTPUT = "volume", "foreground_probability"


def export_onnx(network: VNet, shape: tuple[int, int, int, int, int], path: Path) -> None:
    """Writes a V-Net in evaluation mode as ONNX, opset 11, and checks that it is valid.

    Args:
        network: its ELUs are ReLUs afterwards: it is of no use then.
        shape: (batch, 1, X, Y, Z) of the input.
        path: ends with .onnx.

    Raises:
        DataError: the exported model is no valid ONNX.
    """
    import onnx  # optional

    # What is not mended yet never stands under the model's own name, nor may every name.
    exported = path.with_name("mindspore_model.onnx")
    has_elu = _swap_elu_for_relu(network)
    with working_folder(path.parent):  # MindSpore takes few letters in a path
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
            f"{path.name}: not written, no valid ONNX ({reason_of(error)}); report this, with "
            f"MindSpore {ms.__version__} and onnx {onnx.__version__}"
        ) from None
    onnx.save(model, path)


def run_onnx(path: Path, volume: np.ndarray) -> np.ndarray:
    """What onnxruntime computes of a volume, (batch, 1, X, Y, Z) -> (batch, X, Y, Z)."""
    import onnxruntime  # optional

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: volume})[0]


def _swap_elu_for_relu(cell):
    """Replaces every ELU in a cell; returns whether there was one."""
    found = False
    for name, child in cell.name_cells().items():
        if isinstance(child, nn.ELU):
            setattr(cell, name, nn.ReLU())
            found = True
        else:
            found = _swap_elu_for_relu(child) or found
    return found
