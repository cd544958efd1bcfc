"""MindIR version 1 against MindSpore itself, which still reads it, and its table of operators."""

import inspect

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops
from mindspore.ops import auto_generate
from mindspore.train.mind_ir_pb2 import AttributeProto, ModelProto

from src.export.lowered_vnet import LoweredVNet
from src.export.mindir import ATTRIBUTES, FORMATS, UNCHANGED, input_output_names, to_version_1
from src.utils.errors import DataError
from src.vnet import VARIANTS, VNet

SHAPE = (1, 1, 16, 16, 32)


# One convolution a level: the conversion is by the type of an operator.
SHALLOW = {"encoder_depths": (1,) * 5, "decoder_depths": (1,) * 4}


def volume():
    return ms.Tensor(np.random.default_rng(2).normal(size=SHAPE).astype(np.float32))


def model_in(path):
    model = ModelProto()
    model.ParseFromString(path.read_bytes())
    return model


def export(network, path, *inputs):
    ms.export(network, *(inputs or [volume()]), file_name=str(path), file_format="MINDIR")
    return path


def run(path):
    return nn.GraphCell(ms.load(str(path)))(volume()).asnumpy()


@pytest.mark.parametrize(
    ("variant", "lowered"),
    # monai has those of zoo; test_exporter.py has lowered ones of zoo and paper
    [("zoo", False), ("paper", False), ("instance", False), ("instance", True)],
)
def test_version_1_computes_the_same_from_attributes(variant, lowered, tmp_path):
    network = VNet(VARIANTS[variant]._replace(**SHALLOW), width=2).set_train(False)
    if lowered:
        network = LoweredVNet(network, SHAPE).set_train(False)
    source, target = export(network, tmp_path / "3.mindir"), tmp_path / "1.mindir"
    to_version_1(source, target)
    np.testing.assert_array_equal(run(target), run(source))
    before, after = model_in(source), model_in(target)
    assert (before.mind_ir_version, after.mind_ir_version) == (3, 1)
    assert len(after.graph.parameter) == len(before.graph.parameter) > 20
    names = input_output_names(target)
    assert names == input_output_names(source)
    assert names[0] == "volume"
    assert names[1].rpartition("/")[2].startswith("Reshape" if lowered else "Sigmoid")

    primitives = {primitive.name: primitive for primitive in after.primitives}
    tensors = {"BatchNorm": 5, "BiasAdd": 2, "Concat": 1, "Elu": 1, "ReduceMean": 2}
    tensors["StridedSlice"] = 4
    met = {}
    for node in after.graph.node:
        if node.op_type.startswith("REF::"):
            primitive = primitives[node.op_type[5:]]
            if primitive.op_type in tensors:
                assert len(node.input) == tensors[primitive.op_type]
                types = {attribute.name: attribute.type for attribute in primitive.attribute}
                assert len(types) == len(primitive.attribute)
                assert set(ATTRIBUTES[primitive.op_type]) <= set(types)
                met[primitive.op_type] = types
    assert met["Concat"]["axis"] == AttributeProto.INT64
    if (variant, lowered) == ("zoo", False):
        assert met["BatchNorm"] == {
            "is_training": AttributeProto.BOOL,
            "epsilon": AttributeProto.FLOAT,
            "momentum": AttributeProto.FLOAT,
            "format": AttributeProto.STRING,
        }
    else:
        assert met["BiasAdd"] == {"format": AttributeProto.STRING}


def test_settings_that_differ_stay_apart(tmp_path):
    class Both(nn.Cell):
        def construct(self, x):
            return ops.concat((ops.concat((x, x), axis=1), ops.concat((x, x), axis=1)), axis=3)

    to_version_1(export(Both(), tmp_path / "3.mindir"), tmp_path / "1.mindir")
    axes = [
        attribute.i
        for primitive in model_in(tmp_path / "1.mindir").primitives
        for attribute in primitive.attribute
        if attribute.name == "axis"
    ]
    assert sorted(axes) == [1, 3]
    np.testing.assert_array_equal(run(tmp_path / "1.mindir"), run(tmp_path / "3.mindir"))


@pytest.mark.parametrize("primitive", ATTRIBUTES)
def test_the_table_agrees_with_mindspores_own_definitions(primitive):
    parameters = list(inspect.signature(getattr(auto_generate, primitive)).parameters)
    assert ATTRIBUTES[primitive] == tuple(name.removeprefix("data_") for name in parameters)


@pytest.mark.parametrize(
    "primitive", sorted(name for name in UNCHANGED if hasattr(auto_generate, name))
)
def test_what_stays_the_same_has_no_attributes(primitive):
    """The older primitives, which are not generated, keep attributes in version 3 too."""
    assert not inspect.signature(getattr(auto_generate, primitive)).parameters


@pytest.mark.parametrize(("number", "name"), FORMATS.items())
def test_formats_have_mindspores_numbers(number, name):
    from mindspore.ops._utils.arg_handler import str_to_enum

    assert str_to_enum("BiasAdd", "data_format", name) == number


def test_an_operator_without_a_rule_is_named(tmp_path):
    class Cumulative(nn.Cell):
        def construct(self, x):
            return ops.cumsum(x, 2)

    source = export(Cumulative(), tmp_path / "3.mindir")
    with pytest.raises(DataError, match="3.mindir: no rule to write CumSum in MindIR version 1"):
        to_version_1(source, tmp_path / "1.mindir")
    assert not (tmp_path / "1.mindir").exists()
