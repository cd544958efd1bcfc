"""The start of a device, and what precision makes of the network."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import hal

from src.device import Device, apply_precision, start_device
from src.errors import DataError
from src.vnet import create_vnet


@pytest.mark.parametrize("target", ["Ascend", "GPU"])
def test_a_device_that_is_not_there_is_one_line(target):
    if hal.is_available(target):
        pytest.skip(f"{target} is there")
    with pytest.raises(DataError) as error:
        start_device(target)
    message = str(error.value)
    assert message.startswith(f"device {target} is not available")
    assert "--device_target CPU" in message and "\n" not in message


def test_a_rank_without_its_launcher_is_one_line(monkeypatch):
    for variable in ("MS_ROLE", "MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(DataError) as error:
        start_device("CPU", 0, distributed=True)
    message = str(error.value)
    assert message.startswith("device CPU 0: ")
    assert "msrun" in message and "\n" not in message


@pytest.mark.parametrize("number", [0, 3])
def test_a_cpu_is_always_there(number):
    device = start_device("CPU", number)
    assert device == Device("CPU", rank=0, ranks=1) and device.writes
    assert ms.get_context("mode") == ms.GRAPH_MODE
    assert ms.get_context("device_target") == "CPU"


@pytest.mark.parametrize("rank, writes", [(0, True), (1, False), (7, False)])
def test_only_the_first_rank_writes(rank, writes):
    assert Device("Ascend", rank, 8).writes is writes


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
    assert apply_precision(network, small_config(f"precision={precision}"), target) is mixed
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
