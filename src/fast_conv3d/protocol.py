"""What operators.py and native/ops.cpp agree on: the operators' inputs, outputs and specs.

    python -m src.fast_conv3d.protocol    # writes native/protocol.h

It is defined here once. The header holds the same as C++, with a version that the library returns
and `operators.library` compares with `VERSION`.
"""

import zlib
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, get_type_hints

HEADER = Path(__file__).parent / "native" / "protocol.h"
LANES = 16  # floats of a vector
PLAIN_CHANNELS = 8  # up to here tensors between units are plain: blocks would be half empty


class Kind(IntEnum):
    """The convolution of a unit; FEW_INPUT reads a plain one-channel volume."""

    CONV5 = 0
    FEW_INPUT = 1
    CONV_DOWN2 = 2
    CONV_UP2 = 3


class Activation(IntEnum):
    NONE = 0
    ELU = 1
    PRELU = 2


class Residual(IntEnum):
    """What is added to a unit's first activation: nothing, its own input, or another tensor."""

    NONE = 0
    INPUT = 1
    TENSOR = 2


class UnitSpec(NamedTuple):
    """A unit: y = conv(x) + bias; out = concat(second(first(norm(y)) + residual), skip)."""

    kind: Kind
    in_channels: int
    out_channels: int
    first: Activation = Activation.NONE
    residual: Residual = Residual.NONE
    second: Activation = Activation.NONE
    has_bias: bool = False
    has_norm: bool = False
    skip_channels: int = 0  # of a tensor that is concatenated to the output; 0: none
    has_dropout_mask: bool = False  # whether the skip's channels are multiplied by factors
    epsilon: float = 0.0  # of batch norm
    momentum: float = 0.0  # weight of the old moving statistics in an update


class ConvSpec(NamedTuple):
    """A 5x5x5 convolution of plain tensors."""

    in_channels: int
    out_channels: int
    has_bias: bool


class HeadSpec(NamedTuple):
    """The last convolution and softmax; or without the softmax, the difference of the logits."""

    foreground: int
    has_bias: bool
    logits: bool


class LossSpec(NamedTuple):
    """Dice of probabilities; or of logits, Dice plus cross-entropy. See src/loss.py."""

    logits: bool
    epsilon: float


class Operator(NamedTuple):
    """The tensors of an operator, in order. Those that a unit does not use may be any tensor."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


_UNIT = (
    *("x", "weight", "bias", "gamma", "beta", "moving_mean", "moving_variance"),
    *("first_slopes", "second_slopes", "residual", "skip", "dropout_mask", "spec"),
)
OPERATORS = {
    "unit_infer": Operator(_UNIT, ("out",)),
    "unit_forward": Operator(
        _UNIT, ("out", "y", "mean", "variance", "new_moving_mean", "new_moving_variance")
    ),
    "unit_backward": Operator(
        (*_UNIT, "out", "y", "mean", "variance", "d_out"),
        (
            *("d_x", "d_weight", "d_bias", "d_gamma", "d_beta"),
            *("d_first_slopes", "d_second_slopes", "d_residual", "d_skip"),
        ),
    ),
    "unit_volume_gradient": Operator((*_UNIT, "out", "mean", "variance", "d_out"), ("d_x",)),
    "unit_mask_gradient": Operator(("skip", "dropout_mask", "spec", "d_out"), ("d_dropout_mask",)),
    "conv_forward": Operator(("x", "weight", "bias", "spec"), ("y",)),
    "conv_backward": Operator(("x", "weight", "d_y", "spec"), ("d_x", "d_weight", "d_bias")),
    "head_forward": Operator(("x", "weight", "bias", "spec"), ("y",)),
    "head_backward": Operator(("x", "weight", "y", "d_y", "spec"), ("d_x", "d_weight", "d_bias")),
    "scale_channels": Operator(("x", "dropout_mask"), ("y",)),
    "scale_mask_gradient": Operator(("x", "dropout_mask", "d_y"), ("d_dropout_mask",)),
    "loss_forward": Operator(("prediction", "mask", "spec"), ("loss", "coefficients")),
    "loss_backward": Operator(
        ("prediction", "mask", "coefficients", "d_loss", "spec"), ("d_prediction",)
    ),
}


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.lower().split("_"))


def _enum(enum: type[IntEnum]) -> str:
    values = ", ".join(f"k{_camel(member.name)} = {member.value}" for member in enum)
    return f"enum class {enum.__name__} {{ {values} }};\n"


def _spec(spec: type[NamedTuple]) -> str:
    """A struct that is read from the floats of the spec tensor, in order."""
    fields = get_type_hints(spec)
    members = "".join(f"  {kind.__name__} {name};\n" for name, kind in fields.items())
    reads = []
    for index, (name, kind) in enumerate(fields.items()):
        value = f"values[{index}]"
        if issubclass(kind, IntEnum):
            value = f"static_cast<{kind.__name__}>(static_cast<int>({value}))"
        elif kind is bool:
            value += " != 0"
        elif kind is int:
            value = f"static_cast<int>({value})"
        reads.append(f"{name}({value})")
    initializers = ",\n        ".join(reads)
    return (
        f"struct {spec.__name__} {{\n{members}\n"
        f"  explicit {spec.__name__}(const float* values)\n      : {initializers} {{}}\n}};\n"
    )


def _operator(name: str) -> str:
    inputs, outputs = OPERATORS[name]
    lines = "".join(f"    k{_camel(tensor)},\n" for tensor in inputs)
    lines += f"    k{_camel(outputs[0])},  // the outputs\n"
    lines += "".join(f"    k{_camel(tensor)},\n" for tensor in outputs[1:])
    return (
        f"struct {_camel(name)} {{\n"
        f"  static constexpr int kInputs = {len(inputs)};\n"
        f"  enum Tensor {{\n{lines}  }};\n}};\n"
    )


def _body() -> str:
    enums = "".join(_enum(enum) for enum in (Kind, Activation, Residual))
    specs = [_spec(spec) for spec in (UnitSpec, ConvSpec, HeadSpec, LossSpec)]
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
        "#pragma once\n\n"
        "// clang-format off\n"
        "namespace fast_conv3d {\n\n"
        f"constexpr int kProtocolVersion = {VERSION};\n\n"
        f"{_body()}"
        "\n}  // namespace fast_conv3d\n// clang-format on\n"
    )


if __name__ == "__main__":
    HEADER.write_text(header())
