"""The start of a device, and what precision makes of the network."""

import logging

import mindspore as ms
import numpy as np
import pytest
from mindspore import device_context

import src.devices.device
from src.devices.device import (
    DRIVER_HINTS,
    LOCAL_RANK_VARIABLES,
    apply_precision,
    choose_device,
    start_communication,
    start_device,
    uses_mixed_precision,
)
from src.utils.errors import DataError, UsageError
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


NO_DRIVER = RuntimeError("CUDA driver version is insufficient")


@pytest.mark.parametrize(
    ("ascends", "gpus", "chosen"),
    [(8, 1, "Ascend"), (None, 2, "GPU"), (0, 2, "GPU"), (None, None, "CPU"), (None, 0, "CPU")]
    + [(None, NO_DRIVER, "CPU"), (NO_DRIVER, 1, "GPU")],
)
def test_auto_is_ascend_then_gpu_then_cpu(monkeypatch, capsys, ascends, gpus, chosen):
    def count(found):
        if isinstance(found, Exception):
            raise found
        return found

    for backend, found in ((device_context.ascend, ascends), (device_context.gpu, gpus)):
        monkeypatch.setattr(backend, "is_available", lambda found=found: found is not None)
        monkeypatch.setattr(backend, "device_count", lambda found=found: count(found))
    monkeypatch.setattr(src.devices.device, "_device_files", lambda target: [])
    assert choose_device("auto") == chosen
    assert capsys.readouterr() == (f"device_target auto: {chosen}\n", "")


def test_a_card_that_auto_leaves_out_is_named_with_the_reason(monkeypatch, capsys):
    for backend in (device_context.ascend, device_context.gpu):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    monkeypatch.setattr(
        src.devices.device, "_device_files", lambda target: ["davinci0"] * (target == "Ascend")
    )
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
    assert choose_device("auto") == "CPU"
    printed = capsys.readouterr()
    assert printed.out == "device_target auto: CPU\n"
    assert "Ascend" in printed.err and "set_env.sh" in printed.err and "GPU" not in printed.err


@pytest.mark.parametrize("target", ["Ascend", "GPU", "CPU"])
def test_a_device_that_the_user_names_is_taken_as_it_is(target, capsys):
    assert choose_device(target) == target
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("device_id", [-1, 2])
def test_a_card_that_is_not_there_is_named(monkeypatch, device_id):
    monkeypatch.setattr(device_context.ascend, "is_available", lambda: True)
    monkeypatch.setattr(device_context.ascend, "device_count", lambda: 2)
    with pytest.raises(DataError, match=f"device Ascend {device_id}: this machine has 2, from 0"):
        start_device("Ascend", device_id)


def test_a_dry_run_needs_no_card(monkeypatch):
    monkeypatch.setattr(device_context.ascend, "is_available", lambda: True)
    monkeypatch.setattr(device_context.ascend, "device_count", lambda: 0)
    started = []
    monkeypatch.setattr(ms, "set_device", lambda *device: started.append(device))
    with pytest.raises(DataError, match="this machine has 0, from 0"):
        start_device("Ascend", 0)
    monkeypatch.setenv("MS_SIMULATION_LEVEL", "0")
    start_device("Ascend", 0)
    assert started == [("Ascend", 0)]


def test_cards_that_the_user_hides_are_named(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(device_context.gpu, "is_available", lambda: True)
    monkeypatch.setattr(device_context.gpu, "device_count", lambda: 1)
    with pytest.raises(DataError, match=r"has 1, from 0 \(CUDA_VISIBLE_DEVICES=3\)$"):
        start_device("GPU", 3)


# As MindSpore 2.10 said it with the stand-in for CUDA, and without a driver.
DRIVER_MESSAGE = """
----------------------------------------------------
- Cuda error:
----------------------------------------------------
The cudaGetDeviceCount failed, ret[35], CUDA driver version is insufficient

----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
cuda_driver.cc:299 device_count
"""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError(DRIVER_MESSAGE), "The cudaGetDeviceCount failed, ret[35], CUDA driver ver"),
        (
            RuntimeError("GPU InitDevice failed.\n\n---\n- C++ Call Stack: (x)\n"),
            "GPU InitDevice f",
        ),
        (TypeError("a"), "a"),
        (ValueError(), "ValueError"),
    ],
)
@pytest.mark.parametrize("call", ["is_available", "device_count"])
def test_whatever_a_start_raises_is_one_line(monkeypatch, error, reason, call):
    def fail():
        raise error

    monkeypatch.setattr(device_context.gpu, "is_available", lambda: True)
    monkeypatch.setattr(device_context.gpu, call, fail)
    with pytest.raises(DataError) as told:
        start_device("GPU", 1)
    message = str(told.value)
    begin = "device GPU: " if call == "is_available" else "device GPU 1: "
    assert message.startswith(begin + reason) and "\n" not in message
    assert message.endswith(DRIVER_HINTS["GPU"])


def test_a_log_that_was_off_stays_off():
    logging.disable()
    try:
        start_device("CPU")
        assert logging.root.manager.disable == logging.CRITICAL
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("number", [0, 3])
def test_a_cpu_is_always_there(number):
    start_device("CPU", number)
    assert ms.get_context("mode") == ms.GRAPH_MODE
    assert ms.get_context("device_target") == "CPU"


@pytest.mark.parametrize(
    ("environment", "card"),
    [
        ({}, 1),
        ({"DEVICE_ID": "5"}, 1),  # a launcher of one process passes it on as an argument
        ({"MS_ROLE": "MS_WORKER", "DEVICE_ID": "5"}, 5),
        ({"OMPI_COMM_WORLD_RANK": "9", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}, 2),
        ({"RANK_TABLE_FILE": "hccl.json", "RANK_ID": "3", "DEVICE_ID": "7"}, 1),
    ],
)
def test_each_rank_of_a_machine_has_its_card(monkeypatch, environment, card):
    for name in (*LOCAL_RANK_VARIABLES, "DEVICE_ID", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(device_context.gpu, "is_available", lambda: True)
    monkeypatch.setattr(device_context.gpu, "device_count", lambda: 8)
    started = []
    monkeypatch.setattr(ms, "set_device", lambda *device: started.append(device))
    start_device("GPU", 1)
    assert started == [("GPU", card)]


# Communication ----------------------------------------------------------------------------------
# tests/devices/test_ranks.py has what really happens between two ranks.


@pytest.fixture
def launched(monkeypatch):
    """As in a process of mpirun's, which finds three others."""
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setattr(src.devices.device, "init", lambda: None)
    monkeypatch.setattr(src.devices.device, "get_rank", lambda: 1)
    monkeypatch.setattr(src.devices.device, "get_group_size", lambda: 4)
    monkeypatch.setattr(ms, "get_context", lambda name: {"device_target": "CPU"}[name])
    contexts = []
    monkeypatch.setattr(ms, "set_auto_parallel_context", lambda **context: contexts.append(context))
    return contexts


def test_gradients_are_averaged_over_the_ranks(launched):
    ranks = start_communication(4)
    assert (ranks.rank, ranks.count) == (1, 4)
    (context,) = launched
    assert context["parallel_mode"] == ms.ParallelMode.DATA_PARALLEL
    assert context["gradients_mean"] is True and context["device_num"] == 4


def test_on_gpus_all_gradients_travel_in_one_allreduce(launched, monkeypatch):
    """With a second one in a graph MindSpore 2.10 does not compile it; see test_gpu_standin.py."""
    monkeypatch.setattr(ms, "get_context", lambda name: {"device_target": "GPU"}[name])
    start_communication(4)
    fusion = launched[1]["comm_fusion"]["allreduce"]
    assert fusion["mode"] == "size" and fusion["config"] > 80_000  # MB; more than a card holds


@pytest.mark.parametrize("call", ["init", "get_rank", "get_group_size"])
def test_every_call_of_the_start_is_told(launched, monkeypatch, call):
    def fail():
        raise RuntimeError("MindSpore does not support ranktable startup.")

    monkeypatch.setattr(src.devices.device, call, fail)
    with pytest.raises(DataError, match="^communication: MindSpore does not support ranktable st"):
        start_communication(4)


def test_another_number_of_ranks_is_told(launched):
    with pytest.raises(UsageError, match="--device_num 2: the launcher started 4"):
        start_communication(2)
    assert launched == []


def test_a_process_that_no_launcher_started_is_told(launched, monkeypatch):
    for name in LOCAL_RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="no launcher started this process; use scripts/train_m"):
        start_communication(4)


def test_a_dry_run_has_no_launcher(launched, monkeypatch):
    for name in LOCAL_RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MS_SIMULATION_LEVEL", "0")
    assert start_communication(4).count == 4


def test_a_card_of_a_rank_that_does_not_start_is_told(launched, monkeypatch):
    def fail():
        raise RuntimeError("Dynamic memory pool init error.")

    monkeypatch.setattr(ms, "get_context", lambda name: {"device_target": "GPU"}[name])
    monkeypatch.setattr(ms.runtime, "synchronize", fail)
    with pytest.raises(DataError, match="^device GPU of rank 1: Dynamic memory pool init error; s"):
        start_communication(4)


def test_ranks_that_cannot_be_reached_are_told(launched, monkeypatch):
    def fail():
        raise RuntimeError("Failed to connect to the scheduler.\n\n- C++ Call Stack")

    monkeypatch.setattr(src.devices.device, "init", fail)
    with pytest.raises(DataError) as error:
        start_communication(4)
    assert str(error.value).startswith("communication: Failed to connect to the scheduler; are")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "precision, target, mixed",
    [
        ("auto", "CPU", False),
        ("auto", "GPU", True),
        ("auto", "Ascend", True),
        ("float32", "GPU", False),
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


def test_float32_on_an_ascend_is_refused(small_config):
    config = small_config("precision=float32")
    for use in (uses_mixed_precision, lambda *words: apply_precision(None, *words)):
        with pytest.raises(UsageError, match="^precision=float32: .*float16 on an Ascend; take"):
            use(config, "Ascend")


@pytest.mark.parametrize("variant", ["zoo", "instance"])
def test_mixed_precision_computes_in_float16(variant, small_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start_device("CPU")
    volume = ms.Tensor(np.random.default_rng(0).normal(size=(1, 1, 32, 16, 16)), ms.float32)

    def answer(precision):
        ms.set_seed(1)
        config = small_config(
            "width=1", "VolSize=32,16,16", f"variant={variant}", f"precision={precision}"
        )
        network = create_vnet(config)
        apply_precision(network, config, "CPU")
        return network.set_train(False)(volume)

    exact, half = answer("float32"), answer("mixed")
    assert exact.dtype == half.dtype == ms.float32
    difference = np.abs(exact.asnumpy() - half.asnumpy()).max()
    assert 1e-6 < difference < 1e-2  # float16 has 11 bits, float32 24
