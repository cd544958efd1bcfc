"""Too little memory is said before a training starts, with what would fit."""

import numpy as np
import pytest

from src.config import override_config, preset_overrides, vnet_cfg
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


OFF = "fast_conv3d=off"
SMALL = ["VolSize=64,64,32", "batch_size=1"]
# Overrides, whether it validates, peak resident memory of train.py in GB: a process of two threads
# with three training cases, one validation case and a checkpoint, of a machine with AVX-512.
MEASURED = [
    (SMALL, True, 1.741),
    (SMALL, False, 1.681),
    ([*SMALL, "batch_size=3"], True, 2.035),
    ([*SMALL, "ema_decay=0.9"], True, 1.927),
    ([*SMALL, "accumulate_steps=2"], True, 2.859),
    ([*SMALL, "optimizer=momentum"], True, 1.786),
    ([*SMALL, "variant=paper"], True, 1.999),
    (["batch_size=1"], True, 3.155),
    (["batch_size=1"], False, 2.757),
    (["batch_size=3"], True, 5.338),
    ([*SMALL, "width=4"], True, 0.909),
    ([*SMALL, "width=4", "batch_size=3"], True, 0.946),
    ([*SMALL, "width=4", "accumulate_steps=2"], True, 0.953),
    (preset_overrides("compact"), True, 0.912),
    ([*preset_overrides("compact"), "batch_size=1"], True, 0.850),
    (preset_overrides("accurate"), True, 1.116),
    ([*preset_overrides("accurate"), "width=8", "batch_size=1"], True, 1.159),
    ([*SMALL, OFF], True, 2.572),
    ([*SMALL, OFF], False, 2.334),
    ([*SMALL, OFF, "batch_size=3"], True, 3.454),
    ([*SMALL, OFF, "batch_size=3"], False, 3.218),
    ([*SMALL, OFF, "width=4"], True, 1.150),
    ([*SMALL, OFF, "width=4", "batch_size=3"], True, 1.304),
    ([*SMALL, OFF, "width=4", "accumulate_steps=2"], True, 1.285),
    ([*SMALL, OFF, "width=4", "variant=paper"], True, 1.134),
    ([*preset_overrides("compact"), OFF, "batch_size=1"], True, 1.513),
    ([*preset_overrides("compact"), OFF, "batch_size=1"], False, 1.292),
    ([*preset_overrides("compact"), OFF, "batch_size=3"], True, 2.065),
    ([*preset_overrides("accurate"), OFF, "width=8", "batch_size=1"], True, 3.579),
]
PARAMETERS = {
    ("zoo", 16): 45_603_076,
    ("zoo", 4): 2_854_168,
    ("paper", 16): 65_175_314,
    ("paper", 4): 4_075_142,
    ("instance", 8): 11_399_274,
    ("instance", 4): 2_850_742,
}


@pytest.mark.parametrize(("overrides", "validates", "peak"), MEASURED)
def test_the_estimate_is_what_was_measured_or_a_little_more(overrides, validates, peak):
    config = override_config(vnet_cfg, overrides)
    parameters = PARAMETERS[config.variant, config.width]
    fast = config.fast_conv3d != "off"
    estimate = memory.training_bytes(config, parameters, config.batch_size, fast, 3, validates)
    assert 1 <= estimate / GB / peak <= 1.15


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
