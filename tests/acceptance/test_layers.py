"""A layer that computes something else, or nothing, does not pass."""

import numpy as np
import pytest

from src.acceptance import layers
from src.acceptance.golden import GOLDEN
from src.acceptance.table import Table


def golden_of_layers(*numbers):
    """The golden values of some layers alone, since each takes a second to compile."""
    with np.load(GOLDEN / "layers.npz") as file:
        golden = {"names": file["names"][list(numbers)]}
        for key in file:
            number, _, array = key.partition(" ")
            if array and int(number) in numbers:
                golden[f"{numbers.index(int(number))} {array}"] = file[key]
    return golden


@pytest.mark.parametrize(
    ("key", "failing"),
    [
        ("0 y", "convolution 5x5x5, float32, forward"),
        ("3 gradient0", "transposed convolution 2x2x2, float32, gradient of its input"),
        ("4 gradient1", "batch norm, float32, gradient of its parameter 1"),
    ],
)
def test_a_wrong_value_of_a_layer_fails(tmp_path, key, failing):
    number, _, array = key.partition(" ")
    golden = golden_of_layers(int(number))
    golden[f"0 {array}"].flat[7 % golden[f"0 {array}"].size] += 0.01
    np.savez(tmp_path / "layers.npz", **golden)
    table = Table(quiet=True)
    layers.check_layers("CPU", table, tmp_path / "layers.npz")
    assert [row["check"] for row in table.rows if row["verdict"] == "failed"] == [failing]


def test_a_layer_that_raises_fails_alone(tmp_path, monkeypatch):
    np.savez(tmp_path / "layers.npz", **golden_of_layers(6, 8))
    made = layers.create_layer

    def without_elu(name, shapes):
        if name == "ELU":
            raise RuntimeError("\n- Cuda error:\n---\nno kernel for Elu\n- C++ Call Stack: (x)\n")
        return made(name, shapes)

    monkeypatch.setattr(layers, "create_layer", without_elu)
    table = Table(quiet=True)
    layers.check_layers("CPU", table, tmp_path / "layers.npz")
    assert {row["check"].partition(",")[0] for row in table.rows} == {"ELU", "softmax"}
    failed = [row for row in table.rows if row["verdict"] == "failed"]
    assert [(row["check"], row["found"]) for row in failed] == [
        ("ELU, float32", "no kernel for Elu")
    ]
