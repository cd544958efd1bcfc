"""The operators' protocol: one definition for Python and C++, checked at load time."""

import ctypes
from pathlib import Path

import pytest

from src.fast_conv3d import build, operators
from src.fast_conv3d.build import BuildError
from src.fast_conv3d.protocol import HEADER, OPERATORS, VERSION, header


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


def test_unit_operators_begin_with_the_inputs_of_a_unit():
    """`Unit` in ops.cpp reads them by the indices of unit_infer."""
    unit = OPERATORS["unit_infer"].inputs
    for name in ("unit_forward", "unit_backward", "unit_volume_gradient"):
        assert OPERATORS[name].inputs[: len(unit)] == unit


@pytest.mark.parametrize(
    ("forward", "backward"), [("conv_forward", "conv_backward"), ("head_forward", "head_backward")]
)
def test_x_and_weight_come_first(forward, backward):
    for name in (forward, backward):
        assert OPERATORS[name].inputs[:2] == ("x", "weight")


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


def test_a_bprop_must_take_the_inputs_in_order():
    with pytest.raises(TypeError, match="the bprop of scale_channels must take"):
        operators._custom("scale_channels", lambda dropout_mask, x, out, d_out: None)
