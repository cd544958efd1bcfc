"""MindIR files: reads the names of input and output, converts version 3 to version 1.

MindSpore 2.10 writes version 3, MindSpore Lite 2.0 reads version 1. In version 1 the parameters of
a primitive (an axis, an epsilon) are its attributes; since version 2 they are constant inputs that
follow its tensors.
"""

from pathlib import Path

from mindspore.train.mind_ir_pb2 import AttributeProto, ModelProto

from ..utils.errors import DataError

# Primitive -> the attributes of version 1 that are its last inputs in version 3.
ATTRIBUTES = {
    "BatchNorm": ("is_training", "epsilon", "momentum", "format"),
    "BiasAdd": ("format",),
    "Concat": ("axis",),
    "Elu": ("alpha",),
    "ReduceMean": ("keep_dims",),  # the axis before it stays an input
    "StridedSlice": (
        *("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask"),
    ),
}
# Primitives that are the same in both versions.
UNCHANGED = {
    *("Add", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose", "Div", "Mul", "PReLU"),
    *("Reshape", "Sigmoid", "Slice", "Sqrt", "Sub", "Tile"),
    *("Depend", "Load", "MakeTuple", "TupleGetItem", "UpdateState"),  # of the graph itself
}
FORMATS = {0: "NCHW", 14: "NCDHW"}  # by the number that version 3 stores
REFERENCE = "REF::"  # prefix of a node's op_type, followed by the name of its primitive


def input_output_names(path: Path) -> tuple[str, str]:
    """The names of a model's only input and only output, as runtimes show them."""
    graph = _read(path).graph
    nodes = {output: node for node in graph.node for output in node.output}
    node = nodes[graph.output[0].name]
    while node.input[0] in nodes and node.domain.rpartition("/")[2].startswith("Depend"):
        node = nodes[node.input[0]]
    return graph.input[0].name.rpartition(":")[2], node.domain


def to_version_1(source: Path, target: Path) -> None:
    """Converts a model from MindIR version 3 to version 1.

    Args:
        source: the model of version 3.
        target: the file to write.

    Raises:
        DataError: `source` has a primitive that is neither in `ATTRIBUTES` nor in `UNCHANGED`.
    """
    model = _read(source)
    primitives = {primitive.name: primitive for primitive in model.primitives}
    constants = {
        node.output[0]: node.attribute[0] for node in model.graph.node if node.op_type == "Constant"
    }
    # Nodes share a primitive in version 3, but may differ in the attributes of version 1.
    converted: dict[tuple, str] = {}
    for node in model.graph.node:
        if not node.op_type.startswith(REFERENCE):
            continue
        primitive = primitives[node.op_type.removeprefix(REFERENCE)]
        if primitive.op_type in UNCHANGED:
            continue
        if primitive.op_type not in ATTRIBUTES:
            raise DataError(f"{source}: no rule to write {primitive.op_type} in MindIR version 1")
        names = ATTRIBUTES[primitive.op_type]
        inputs = node.input[-len(names) :]
        attributes = [_attribute(name, constants[i]) for name, i in zip(names, inputs, strict=True)]
        key = (primitive.name, *(attribute.SerializeToString() for attribute in attributes))
        if key not in converted:
            copy = model.primitives.add()
            copy.CopyFrom(primitive)
            copy.name = f"{primitive.name}_{len(converted)}"
            copy.attribute.extend(attributes)
            converted[key] = copy.name
        node.op_type = REFERENCE + converted[key]
        del node.input[-len(names) :]
    model.mind_ir_version = 1
    target.write_bytes(model.SerializeToString())


def _read(path):
    model = ModelProto()
    model.ParseFromString(path.read_bytes())
    return model


def _attribute(name, constant):
    attribute = AttributeProto()
    attribute.CopyFrom(constant)
    if name == "format":
        attribute.Clear()
        attribute.type = AttributeProto.STRING
        attribute.s = FORMATS[constant.i].encode()
    attribute.name = name
    return attribute
