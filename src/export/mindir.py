"""MindIR files: their names for input and output, and how version 3 becomes version 1.

MindSpore 2.10 writes version 3, MindSpore Lite 2.0 reads version 1. Since version 2 a primitive's
settings (an axis, an epsilon) are constant inputs after its tensors; in version 1 they are
attributes of the primitive.
"""

from pathlib import Path

from mindspore.train.mind_ir_pb2 import AttributeProto, ModelProto

from ..utils.errors import DataError

# Primitive -> names of its last inputs, as attributes of version 1.
SETTINGS = {
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
SAME = {
    *("Add", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose", "Div", "Mul", "PReLU"),
    *("Reshape", "Sigmoid", "Slice", "Sqrt", "Sub", "Tile"),
    *("Depend", "Load", "MakeTuple", "TupleGetItem", "UpdateState"),  # of the graph itself
}
FORMATS = {0: "NCHW", 14: "NCDHW"}  # of the number that version 3 stores
REFERENCE = "REF::"  # what a node's op_type says before the name of its primitive


def names_of(path: Path) -> tuple[str, str]:
    """The names under which a runtime shows the only input and the only output of a model."""
    graph = _read(path).graph
    nodes = {output: node for node in graph.node for output in node.output}
    node = nodes[graph.output[0].name]
    while node.input[0] in nodes and node.domain.rpartition("/")[2].startswith("Depend"):
        node = nodes[node.input[0]]
    return graph.input[0].name.rpartition(":")[2], node.domain


def to_version_1(source: Path, target: Path) -> None:
    """Rewrites a model.

    Raises:
        DataError: `source` has a primitive for which no rule is written here.
    """
    model = _read(source)
    primitives = {primitive.name: primitive for primitive in model.primitives}
    constants = {
        node.output[0]: node.attribute[0] for node in model.graph.node if node.op_type == "Constant"
    }
    with_settings = {}  # primitives of one name share an entry, but may differ in their settings
    for node in model.graph.node:
        if not node.op_type.startswith(REFERENCE):
            continue
        primitive = primitives[node.op_type.removeprefix(REFERENCE)]
        if primitive.op_type in SAME:
            continue
        if primitive.op_type not in SETTINGS:
            raise DataError(f"{source}: no rule to write {primitive.op_type} in MindIR version 1")
        names = SETTINGS[primitive.op_type]
        inputs = node.input[-len(names) :]
        attributes = [_attribute(name, constants[i]) for name, i in zip(names, inputs, strict=True)]
        key = (primitive.name, *(attribute.SerializeToString() for attribute in attributes))
        if key not in with_settings:
            twin = model.primitives.add()
            twin.CopyFrom(primitive)
            twin.name = f"{primitive.name}_{len(with_settings)}"
            twin.attribute.extend(attributes)
            with_settings[key] = twin.name
        node.op_type = REFERENCE + with_settings[key]
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
