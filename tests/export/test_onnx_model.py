"""ONNX files under onnx's own checker and onnxruntime."""

from functools import cache

import mindspore as ms
import numpy as np
import onnx
import pytest
from mindspore import nn
from onnx import helper, numpy_helper

from src.export.onnx_model import INPUT, OUTPUT, export_onnx, run_onnx
from src.utils.errors import DataError
from src.utils.process import change_folder
from src.vnet import VARIANTS
from tests.networks import computed_once, seeded_vnet
from tests.rounding import assert_same_sums


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Function variant, width, shape -> folder, the current one of the export, with vnet.onnx."""

    @cache
    def export(variant, width, shape):
        folder = tmp_path_factory.mktemp("exported")
        with change_folder(folder):
            export_onnx(seeded_vnet(variant, width), shape, folder / "vnet.onnx")
        return folder

    return export


SHAPE = (2, 1, 16, 32, 48)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("width", "shape"),
    [
        (2, SHAPE),
        pytest.param(16, (1, 1, 128, 128, 64), marks=pytest.mark.full),
    ],
)
def test_onnxruntime_computes_what_mindspore_computes(variant, width, shape, exported):
    network, path = seeded_vnet(variant, width), exported(variant, width, shape) / "vnet.onnx"
    volume = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    expected = computed_once(network, volume)
    found = run_onnx(path, volume)
    assert_same_sums(found, expected, network, volume)

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    for values, name, sides in ((model.graph.input, INPUT, shape), (model.graph.output, OUTPUT, 0)):
        (value,) = values
        found = tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
        assert (value.name, found) == (name, sides or (shape[0], *shape[2:]))


@pytest.mark.parametrize(("variant", "operator"), [("zoo", "Elu"), ("paper", "PRelu")])
def test_every_activation_is_the_networks(variant, operator, exported):
    network = seeded_vnet(variant, 2)
    cells = [cell for _, cell in network.cells_and_names()]
    activations = sum(isinstance(cell, nn.ELU | nn.PReLU) for cell in cells)
    slopes = {p.name: p.asnumpy() for p in network.get_parameters() if p.name.endswith(".w")}
    (path,) = exported(variant, 2, SHAPE).iterdir()  # nothing of MindSpore's stays beside it
    graph = onnx.load(path).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count(operator) == activations
    assert not {"Relu", "Elu", "PRelu"} - {operator} & set(operators)
    weights = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    for name, slope in slopes.items():
        assert weights[name].shape == (len(slope), 1, 1, 1)
        np.testing.assert_array_equal(weights[name].ravel(), slope)
    for node in graph.node:
        if node.op_type == "Elu":  # alpha 1 is ONNX's default
            assert all(attribute.f == 1 for attribute in node.attribute)


@pytest.mark.parametrize(
    ("operator", "sides", "says"),
    [("Nonsense", (1, 16, 16, 16), "Nonsense"), ("Relu", (1, 16, 16, 8), "16")],
)
def test_an_invalid_model_is_one_line_and_not_written(tmp_path, monkeypatch, operator, sides, says):
    """Of the model itself onnx throws another error than of its shapes."""
    values = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in ((INPUT, (1, 16, 16, 16)), (OUTPUT, sides))
    )
    node = helper.make_node(operator, [INPUT], [OUTPUT])
    graph = helper.make_graph([node], "graph", *([value] for value in values))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    monkeypatch.setattr(ms.onnx, "export", lambda *_, file_name, **__: onnx.save(model, file_name))
    with pytest.raises(DataError) as error:
        export_onnx(seeded_vnet("paper", 2), (1, 1, 16, 16, 16), tmp_path / "vnet.onnx")
    message = str(error.value)
    assert message.startswith("vnet.onnx: not written, invalid ONNX (") and says in message
    versions = f"report this, with MindSpore {ms.__version__} and onnx {onnx.__version__}"
    assert message.endswith(versions) and "\n" not in message
    assert list(tmp_path.iterdir()) == []
