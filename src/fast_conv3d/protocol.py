"""What operators.py and native/ops.cpp agree on: the operators' inputs, outputs and specs.

    python -m src.fast_conv3d.protocol    # writes native/protocol.h

It is defined here once. The header holds the same as C++, with a version that the library returns
and `operators.library` compares with `VERSION`.
"""

import zlib
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, get_args, get_origin, get_type_hints

HEADER = Path(__file__).parent / "native" / "protocol.h"
LANES = 16  # floats of a vector
PLAIN_CHANNELS = 8  # up to here tensors between units are plain: blocks would be half empty


class Activation(IntEnum):
    NONE = 0
    ELU = 1
    PRELU = 2


class Norm(IntEnum):
    NONE = 0
    BATCH = 1
    INSTANCE = 2


class NetworkDescription(NamedTuple):
    """The arguments of `VNet` that decide which layers there are; `epsilon` is the norm's."""

    width: int
    encoder_depths: tuple[int, int, int, int, int]
    decoder_depths: tuple[int, int, int, int]
    activation: Activation
    norm: Norm
    activation_before_sum: bool
    encoder_bias: bool
    decoder_bias: bool
    up_bias: bool
    head_unit: bool
    head_side: int
    head_bias: bool
    foreground: int
    epsilon: float


class DropoutColumns(NamedTuple):
    """The first column of the dropout mask for each place of a stage, see `VNet`; -1: no dropout.

    Stages down from the top, stages up from the bottom.
    """

    down: tuple[int, int, int, int]
    up: tuple[int, int, int, int]
    skip: tuple[int, int, int, int]


class NetworkSpec(NamedTuple):
    """A whole network; without the softmax its output is the difference of the logits."""

    description: NetworkDescription
    dropout: DropoutColumns
    momentum: float  # weight of the old moving statistics in an update
    logits: bool


class ConvSpec(NamedTuple):
    """A 5x5x5 convolution of plain tensors."""

    in_channels: int
    out_channels: int
    has_bias: bool


class LossSpec(NamedTuple):
    """Dice of probabilities; or of logits, Dice plus cross-entropy. See src/loss.py."""

    logits: bool
    epsilon: float


class AdamNumbers(NamedTuple):
    """What changes from step to step: the learning rate, and each beta to the power of the step."""

    rate: float
    beta1_power: float
    beta2_power: float


class AdamSettings(NamedTuple):
    """Followed by the weight decay of each parameter."""

    beta1: float
    beta2: float
    epsilon: float


class Operator(NamedTuple):
    """The tensors of an operator, in order. Those that it does not use may be any tensor.

    A name that begins with "*" is a list: inputs that end with one have any number of tensors.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


# The parameters of a network are those of all layers, in their order: first the trainable ones,
# then, where both are wanted, the moving statistics.
_NETWORK = ("volume", "dropout_mask", "spec")
OPERATORS = {
    "network_infer": Operator((*_NETWORK, "*parameters"), ("out",)),
    "network_forward": Operator((*_NETWORK, "*parameters"), ("out", "tape")),
    "network_backward": Operator(
        (*_NETWORK, "tape", "out", "d_out", "*parameters"), ("*d_parameters",)
    ),
    "network_input_gradients": Operator(
        (*_NETWORK, "d_out", "*parameters"), ("d_volume", "d_dropout_mask")
    ),
    "conv_forward": Operator(("x", "weight", "bias", "spec"), ("y",)),
    "conv_backward": Operator(("x", "weight", "d_y", "spec"), ("d_x", "d_weight", "d_bias")),
    "loss_forward": Operator(("prediction", "mask", "spec"), ("loss", "coefficients")),
    "loss_backward": Operator(
        ("prediction", "mask", "coefficients", "d_loss", "spec"), ("d_prediction",)
    ),
    # In place: all parameters, then their first and second moments and gradients; no real output.
    "adam_step": Operator(("numbers", "settings", "*parameters"), ("nothing",)),
}


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.lower().split("_"))


def _enum(enum: type[IntEnum]) -> str:
    values = ", ".join(f"k{_camel(member.name)} = {member.value}" for member in enum)
    return f"enum class {enum.__name__} {{ {values} }};\n"


def _value(kind: type, at: int) -> tuple[str, int]:
    """C++ that reads a field from `values[at]` on, and the number of its floats."""
    if get_origin(kind) is tuple:
        items = [_value(item, at + index)[0] for index, item in enumerate(get_args(kind))]
        return f"{{{', '.join(items)}}}", len(items)
    if issubclass(kind, tuple):
        return f"values + {at}", sum(_value(k, 0)[1] for k in get_type_hints(kind).values())
    text = f"values[{at}]"
    if issubclass(kind, IntEnum):
        text = f"static_cast<{kind.__name__}>(static_cast<int>({text}))"
    elif kind is bool:
        text += " != 0"
    elif kind is int:
        text = f"static_cast<int>({text})"
    return text, 1


def _spec(spec: type[NamedTuple]) -> str:
    """A struct that is read from the floats of the spec tensor, in order."""
    members, reads, at = "", [], 0
    for name, kind in get_type_hints(spec).items():
        items = get_args(kind)
        type_name = f"std::array<{items[0].__name__}, {len(items)}>" if items else kind.__name__
        members += f"  {type_name} {name};\n"
        value, floats = _value(kind, at)
        reads.append(f"{name}{value}" if items else f"{name}({value})")
        at += floats
    initializers = ",\n        ".join(reads)
    return (
        f"struct {spec.__name__} {{\n{members}\n"
        f"  {spec.__name__}() = default;\n"
        f"  explicit {spec.__name__}(const float* values)\n      : {initializers} {{}}\n}};\n"
    )


def _enumerators(tensors: tuple[str, ...]) -> str:
    return "".join(
        f"    k{_camel(tensor.strip('*'))},{'  // and the following' * (tensor[0] == '*')}\n"
        for tensor in tensors
    )


def _operator(name: str) -> str:
    """A struct with the indices of the tensors; after a list those of the outputs begin at 0."""
    inputs, outputs = OPERATORS[name]
    if inputs[-1][0] == "*":
        return (
            f"struct {_camel(name)} {{\n"
            f"  enum Input {{\n{_enumerators(inputs)}  }};\n"
            f"  enum Output {{\n{_enumerators(outputs)}  }};\n}};\n"
        )
    first, others = _enumerators(outputs[:1]), _enumerators(outputs[1:])
    lines = _enumerators(inputs) + first.replace("\n", "  // the outputs\n") + others
    return (
        f"struct {_camel(name)} {{\n"
        f"  static constexpr int kInputs = {len(inputs)};\n"
        f"  enum Tensor {{\n{lines}  }};\n}};\n"
    )


def _body() -> str:
    enums = "".join(_enum(enum) for enum in (Activation, Norm))
    kinds = NetworkDescription, DropoutColumns, NetworkSpec, ConvSpec, LossSpec
    specs = [_spec(spec) for spec in (*kinds, AdamNumbers, AdamSettings)]
    constants = (
        f"constexpr int kLanes = {LANES};\nconstexpr int kPlainChannels = {PLAIN_CHANNELS};\n"
    )
    return "\n".join((constants, enums, *specs, *(_operator(name) for name in OPERATORS)))


VERSION = zlib.crc32(_body().encode()) >> 1  # fits a C int


def header() -> str:
    """Returns the text of native/protocol.h."""
    return (
        "// Generated by src/fast_conv3d/protocol.py; do not edit.\n"
        "// Specs, as the floats of a tensor, and inputs and outputs of the operators, in order.\n"
        "#pragma once\n\n#include <array>\n\n"
        "// clang-format off\n"
        "namespace fast_conv3d {\n\n"
        f"constexpr int kProtocolVersion = {VERSION};\n\n"
        f"{_body()}"
        "\n}  // namespace fast_conv3d\n// clang-format on\n"
    )


if __name__ == "__main__":
    HEADER.write_text(header())
