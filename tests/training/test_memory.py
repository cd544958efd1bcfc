"""Too little memory is said before a training starts, with what would fit."""

import numpy as np
import pytest

from src.config import override_config, vnet_cfg
from src.data_manager import TrainingVolume
from src.fast_conv3d.network import to_fast_vnet
from src.training import memory
from src.utils.errors import DataError
from src.vnet import create_vnet

GB = 10**9


@pytest.mark.parametrize("fast_conv3d", ["on", "off"])
def test_the_largest_fitting_batch_is_named(monkeypatch, fast_conv3d):
    overrides = ["width=2", "VolSize=128,128,64", "batch_size=8", f"fast_conv3d={fast_conv3d}"]
    config = override_config(vnet_cfg, overrides)
    network = to_fast_vnet(create_vnet(config), config, "CPU")
    parameters = sum(p.size for p in network.get_parameters())
    fitting = memory.training_bytes(config, parameters, 3, fast_conv3d == "on", case_count=40)
    monkeypatch.setattr(memory, "available_bytes", lambda: fitting + 1)
    with pytest.raises(DataError, match=r"batch_size=8 .* 40 cases .* batch_size=3 fits"):
        memory.check_training_fits(config, network, 40)
    left = memory.check_training_fits(override_config(config, ["batch_size=3"]), network, 40)
    assert left == 1
    with pytest.raises(DataError, match=r"41 cases .* batch_size=2 fits"):
        memory.check_training_fits(override_config(config, ["batch_size=3"]), network, 41)
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    with pytest.raises(DataError, match="smaller VolSize or width"):
        memory.check_training_fits(config, network, 0)


def test_the_preprocessed_cases_count():
    """An intensity of four bytes and a mask of one, for each voxel of each case."""
    volume = TrainingVolume(np.zeros((32, 16, 48), np.float32), np.zeros((32, 16, 48), bool), "")
    config = override_config(vnet_cfg, ["VolSize=32,16,48"])
    without, with_seven = (memory.training_bytes(config, 10, 1, True, count) for count in (0, 7))
    assert with_seven - without == 7 * (volume.intensity.nbytes + volume.mask.nbytes)


def test_estimate_is_near_what_was_measured():
    """Peak resident memory of training steps of the zoo's net (45.6 M parameters), in GB."""
    measured = {
        ((64, 64, 32), 1, False): 2.17,
        ((64, 64, 32), 2, False): 2.86,
        ((64, 64, 32), 1, True): 1.95,
        ((64, 64, 32), 2, True): 2.07,
        ((128, 128, 64), 1, True): 3.05,
        ((128, 128, 64), 4, True): 7.21,
    }
    for (size, batch, fast), peak in measured.items():
        config = override_config(vnet_cfg, ["VolSize=" + ",".join(map(str, size))])
        estimate = memory.training_bytes(config, 45_597_760, batch, fast)
        assert estimate == pytest.approx(peak * GB, rel=0.2)


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
