"""The start of a device, and what precision makes of the network."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import device_context

from src.device import apply_precision, start_device, uses_mixed_precision
from src.errors import DataError
from src.vnet import create_vnet


@pytest.mark.parametrize("target", ["Ascend", "GPU"])
def test_a_device_that_is_not_there_is_one_line(target):
    if getattr(device_context, target.lower()).is_available():
        pytest.skip(f"{target} is there")
    with pytest.raises(DataError) as error:
        start_device(target)
    message = str(error.value)
    assert message.startswith(f"device {target} is not available")
    assert "--device_target CPU" in message and "\n" not in message


@pytest.mark.parametrize("device_id", [-1, 2])
def test_a_card_that_is_not_there_is_named(monkeypatch, device_id):
    monkeypatch.setattr(device_context.ascend, "is_available", lambda: True)
    monkeypatch.setattr(device_context.ascend, "device_count", lambda: 2)
    with pytest.raises(DataError, match=f"device Ascend {device_id}: this machine has 2, from 0"):
        start_device("Ascend", device_id)


@pytest.mark.parametrize("number", [0, 3])
def test_a_cpu_is_always_there(number):
    start_device("CPU", number)
    assert ms.get_context("mode") == ms.GRAPH_MODE
    assert ms.get_context("device_target") == "CPU"


@pytest.mark.parametrize(
    "precision, target, mixed",
    [
        ("auto", "CPU", False),
        ("auto", "GPU", True),
        ("auto", "Ascend", True),
        ("float32", "GPU", False),
        ("float32", "Ascend", False),
        ("mixed", "CPU", True),
        ("mixed", "GPU", True),
    ],
)
def test_precision_by_device(small_config, precision, target, mixed):
    network = create_vnet(small_config("width=1", f"precision={precision}"))
    names = [parameter.name for parameter in network.get_parameters()]
    config = small_config(f"precision={precision}")
    assert uses_mixed_precision(config, target) is mixed
    apply_precision(network, config, target)
    # Checkpoints must not depend on it.
    assert [parameter.name for parameter in network.get_parameters()] == names
    assert {parameter.dtype for parameter in network.get_parameters()} == {ms.float32}


def test_mixed_precision_computes_in_float16(small_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start_device("CPU")
    volume = ms.Tensor(np.random.default_rng(0).normal(size=(1, 1, 16, 16, 16)), ms.float32)

    def answer(precision):
        ms.set_seed(1)
        config = small_config("width=1", f"precision={precision}")
        network = create_vnet(config)
        apply_precision(network, config, "CPU")
        return network.set_train(False)(volume)

    exact, half = answer("float32"), answer("mixed")
    assert exact.dtype == half.dtype == ms.float32
    difference = np.abs(exact.asnumpy() - half.asnumpy()).max()
    assert 1e-6 < difference < 1e-2  # float16 has 11 bits, float32 24
