"""The operators' protocol: one definition for Python and C++, checked at load time."""

import ctypes
from pathlib import Path

import pytest

from src.fast_conv3d import build, operators
from src.fast_conv3d.build import BuildError
from src.fast_conv3d.protocol import (
    HEADER,
    OPERATORS,
    VERSION,
    Activation,
    DropoutColumns,
    NetworkDescription,
    NetworkSpec,
    Norm,
    header,
)


@pytest.fixture
def fresh_library():
    operators.library.cache_clear()
    yield
    operators.library.cache_clear()


def test_the_committed_header_is_what_the_script_writes():
    assert HEADER.read_text() == header(), "run python -m src.fast_conv3d.protocol"


def test_the_library_has_every_operator_and_the_version():
    native = ctypes.CDLL(str(build.library_path()))
    assert native.protocol_version() == VERSION
    assert all(hasattr(native, name) for name in OPERATORS)


def test_the_first_inputs_are_where_all_operators_of_a_kind_read_them():
    for name in ("network_forward", "network_backward", "network_input_gradients"):
        assert OPERATORS[name].inputs[:3] == OPERATORS["network_infer"].inputs[:3]
    for name in ("conv_forward", "conv_backward"):
        assert OPERATORS[name].inputs[:2] == ("x", "weight")


def test_a_nested_spec_is_read_in_order():
    numbers = operators._numbers(
        NetworkSpec(
            NetworkDescription(
                *(4, (1, 2, 3, 4, 5), (6, 7, 8, 9), Activation.PRELU, Norm.INSTANCE),
                *(True, False, True, False, True, 3, True, 1, 0.5),
            ),
            DropoutColumns((-1, 0, 1, 2), (3, 4, 5, 6), (7, 8, 9, 10)),
            momentum=0.75,
            logits=True,
        )
    )
    expected = [4, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 2, 1, 0, 1, 0, 1, 3, 1, 1, 0.5]
    assert numbers.tolist() == [*expected, -1, *range(11), 0.75, 1]
    text = header()
    assert "activation(static_cast<Activation>(static_cast<int>(values[10])))" in text
    assert "epsilon(values[20])" in text and "dropout(values + 21)" in text
    assert "skip{static_cast<int>(values[8])," in text and "logits(values[34] != 0)" in text


def test_another_version_is_a_build_error(fresh_library, monkeypatch):
    monkeypatch.setattr(operators, "VERSION", VERSION + 1)
    with pytest.raises(BuildError) as error:
        operators.library()
    assert f"has operator protocol {VERSION}, this program {VERSION + 1}; " in str(error.value)
    assert "python -m src.fast_conv3d.protocol" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_library_without_a_version_is_a_build_error(fresh_library, monkeypatch):
    words = Path("/proc/self/maps").read_text().split()
    path = next(word for word in words if "/libm.so" in word or "/libm-" in word)
    monkeypatch.setattr(operators, "library_path", lambda: path)
    with pytest.raises(BuildError, match=f"{path} has operator protocol none, this program"):
        operators.library()
