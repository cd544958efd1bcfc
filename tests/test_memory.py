"""Too little memory is said before a training starts, with what would fit."""

import pytest

from src import memory
from src.config import overridden, vnet_cfg
from src.errors import DataError
from src.vnet import create_vnet

GB = 10**9


def test_the_largest_fitting_batch_is_named(monkeypatch):
    config = overridden(vnet_cfg, ["width=2", "VolSize=128,128,64", "batch_size=8"])
    network = create_vnet(config)
    parameters = sum(p.size for p in network.get_parameters())
    monkeypatch.setattr(
        memory, "available_bytes", lambda: memory.training_bytes(config, parameters, 3) + 1
    )
    with pytest.raises(DataError, match=r"batch_size=8 .* batch_size=3 fits"):
        memory.check_training_fits(config, network)
    memory.check_training_fits(overridden(config, ["batch_size=3"]), network)
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    with pytest.raises(DataError, match="smaller VolSize or width"):
        memory.check_training_fits(config, network)


def test_estimate_is_near_what_was_measured():
    """Peak resident memory of training steps of the zoo's net (45.6 M parameters), in GB."""
    measured = {((64, 64, 32), 1): 2.17, ((64, 64, 32), 2): 2.86}
    for (size, batch), peak in measured.items():
        config = overridden(vnet_cfg, ["VolSize=" + ",".join(map(str, size))])
        assert memory.training_bytes(config, 45_597_760, batch) == pytest.approx(peak * GB, rel=0.2)


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    free = memory.available_bytes()
    assert free > 0
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 700\ninactive_file 300\n")
    assert memory.available_bytes() == 2300
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes() > 2000
