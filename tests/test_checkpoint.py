"""The transaction of last.ckpt and last_state.ckpt at any moment of dying, and strict loading."""

import errno
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src import checkpoint, checkpoint_file
from src.config import vnet_cfg
from src.utils import stopping
from src.utils.errors import DataError
from src.utils.log import log_to_standard_streams
from src.vnet import VARIANTS, VNet
from tests.helpers import ROOT, names_in, touch


class Pair(nn.Cell):
    """A training cell in small: `network` has the weights, the rest is state."""

    def __init__(self, size=1000):
        super().__init__()
        self.network = nn.Cell()
        self.network.weight = ms.Parameter(np.zeros(size, np.float32), name="weight")
        self.moment = ms.Parameter(np.zeros(size, np.float32), name="moment")

    def fill(self, value):
        for parameter in self.get_parameters():
            parameter.set_data(ms.Tensor(np.full(parameter.shape, value, np.float32)))
        return self

    def as_cells(self, average=None):
        return checkpoint.TrainingCells(self.network, self, average)

    def value(self):
        values = {float(v) for p in self.get_parameters() for v in p.asnumpy()}
        assert len(values) == 1, "weights and state are of different saves"
        return values.pop()


def saved(folder):
    """What a resume would find: the one number in weights, state and progress."""
    pair = Pair()
    progress = checkpoint.load_last(folder, pair.as_cells())
    assert progress["epoch"] == pair.value()
    return progress["epoch"]


def save(folder, value):
    pair = Pair().fill(value)
    checkpoint.save_last(folder, pair.as_cells(), {"epoch": value, "best_dice": 0.1 + value})


def test_last_and_state_come_back(tmp_path):
    save(tmp_path, 3)
    pair = Pair()
    progress = checkpoint.load_last(tmp_path, pair.as_cells())
    assert progress == {"epoch": 3, "best_dice": 3.1}
    assert pair.value() == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "last_state.ckpt"]


def test_an_average_travels_in_the_state(tmp_path):
    """Under names of its own, as its parameters are called like the network's."""
    pair, average = Pair().fill(1), Pair().fill(5).network
    checkpoint.save_last(tmp_path, pair.as_cells(average), {"epoch": 1})
    pair, average = Pair(), Pair().network
    checkpoint.load_last(tmp_path, pair.as_cells(average))
    assert pair.value() == 1 and set(average.weight.asnumpy()) == {5}
    with pytest.raises(DataError, match="not the state of this training.s optimizer"):
        checkpoint.load_last(tmp_path, pair.as_cells())


class Died(BaseException):
    """Stands for kill -9: nothing below catches it."""


@pytest.mark.parametrize("survived", range(12))
def test_dying_between_any_two_steps_leaves_one_whole_pair(tmp_path, monkeypatch, survived):
    """Dies at the n-th file operation of the second save, whatever it is."""
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        count = iter(range(100))

        def dying(operation):
            def wrapper(*args, **kwargs):
                if next(count) >= survived:
                    raise Died
                return operation(*args, **kwargs)

            return wrapper

        patch.setattr(checkpoint.ms, "save_checkpoint", dying(ms.save_checkpoint))
        for name in ("touch", "replace", "unlink"):
            patch.setattr(Path, name, dying(getattr(Path, name)))
        try:
            save(tmp_path, 2)
            finished = True
        except Died:
            finished = False
    assert saved(tmp_path) in ((2,) if finished else (1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "last_state.ckpt"]
    # The first two operations write the new pair; nothing of it counts before the third.
    assert (saved(tmp_path) == 1) == (survived < 3)


SAVER = """
    import sys
    sys.path[:0] = [{root!r}, {tests!r}]
    from test_checkpoint import Pair
    from src import checkpoint
    pair = Pair(200_000)
    for value in range(1_000_000):
        pair.fill(value)
        checkpoint.save_last({folder!r}, pair.as_cells(), {{"epoch": value}}, pair.network)
        print(value, flush=True)
"""


def test_a_kill_at_many_random_moments_leaves_files_of_one_save(tmp_path):
    """A stopped process's folder is what kill -9 at that moment would leave behind."""
    folder = tmp_path / "ckpt"
    folder.mkdir()
    script = textwrap.dedent(SAVER).format(
        root=str(ROOT), tests=str(ROOT / "tests"), folder=str(folder)
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    random = np.random.default_rng(1)
    under_way, epochs = 0, []
    try:
        assert child.stdout.readline().strip() == b"0"
        for moment in range(40):
            time.sleep(random.uniform(0, 0.03))
            os.kill(child.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
            snapshot = tmp_path / f"moment{moment}"
            shutil.copytree(folder, snapshot)
            os.kill(child.pid, signal.SIGCONT)
            under_way += len(list(snapshot.iterdir())) > 3
            pair = Pair(200_000)
            epochs.append(checkpoint.load_last(snapshot, pair.as_cells())["epoch"])
            assert pair.value() == epochs[-1]
            checkpoint.load_weights(pair.network, snapshot / "best.ckpt")
            assert pair.value() == epochs[-1]
            shutil.rmtree(snapshot)
    finally:
        child.kill()
        child.wait()
    assert epochs == sorted(epochs)
    assert under_way > 5, "the moments should meet saves under way"
    pair = Pair(200_000)
    checkpoint.load_last(folder, pair.as_cells())
    assert names_in(folder) == ["best.ckpt", "last.ckpt", "last_state.ckpt"]


def test_a_signal_lets_a_checkpoint_be_completed(tmp_path, monkeypatch):
    """See the tests of `unhurried`."""
    begins_s = []
    monkeypatch.setattr(checkpoint, "sync", lambda _: begins_s.append(stopping._grace_from_s))
    save(tmp_path, 1)
    checkpoint.save_weights(Pair().network, tmp_path / "best.ckpt")
    assert set(begins_s) == {math.inf} and stopping._grace_from_s <= time.monotonic()


def test_a_full_disk_keeps_the_old_pair(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(entries, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ms, "save_checkpoint", full)
    with pytest.raises(DataError, match=r"last.*No space left on device; free some space"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert saved(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "last_state.ckpt"]


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk takes root")
def test_a_disk_that_really_is_full_keeps_the_old_pair(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "none", tmp_path]).returncode:
        pytest.skip("no tmpfs here")
    try:
        save(tmp_path, 1)
        filler = tmp_path / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(tmp_path).free - 4096))
        with pytest.raises(DataError, match=r"cannot be written \((No space left|File too large)"):
            save(tmp_path, 2)
        filler.unlink()
        assert saved(tmp_path) == 1
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_leaves_nothing_of_new_weights(tmp_path, full_disk):
    """MindSpore writes under a name of its own first."""
    pair = Pair()
    checkpoint.save_weights(pair.network, tmp_path / "best.ckpt")
    before = (tmp_path / "best.ckpt").read_bytes()
    with (
        full_disk(500),
        pytest.raises(DataError, match=r"cannot be written \((No space left|File too large)"),
    ):
        checkpoint.save_weights(pair.fill(1).network, tmp_path / "best.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
    assert (tmp_path / "best.ckpt").read_bytes() == before


def test_a_failure_is_said_once(tmp_path, full_disk, capfd):
    """MindSpore's own log would guess at permissions."""
    with full_disk(500), pytest.raises(DataError):
        checkpoint.save_weights(Pair().network, tmp_path / "best.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="not a complete MindSpore checkpoint"):
        checkpoint.load_weights(Pair().network, tmp_path / "cut.ckpt")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_checkpoints_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save(tmp_path, 1)
        checkpoint.save_weights(Pair().network, tmp_path / "best.ckpt")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("best.ckpt", "last.ckpt", "last_state.ckpt"), mode)


def test_a_checkpoint_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "best.ckpt"
    checkpoint.save_weights(Pair().network, path)

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(DataError, match=r"best.ckpt: cannot be read \(Permission denied; check"):
        checkpoint.load_weights(Pair().network, path)


def test_only_own_names_are_pruned(tmp_path):
    names = ["1_5", "2_5", "10_5", "2_5 (copy)", "a_b"]
    for name in names:
        (tmp_path / f"checkpoint_vnet-{name}.ckpt").touch()
    checkpoint.prune(tmp_path, 1)
    left = {path.stem.removeprefix("checkpoint_vnet-") for path in tmp_path.iterdir()}
    assert left == {"10_5", "2_5 (copy)", "a_b"}
    with pytest.raises(ValueError, match="keep is 0"):
        checkpoint.prune(tmp_path, 0)


def test_nothing_to_resume_is_said(tmp_path):
    assert checkpoint.read_progress(tmp_path) is None
    assert checkpoint.load_last(tmp_path, Pair().as_cells()) is None
    save(tmp_path, 1)
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(DataError, match="last.ckpt: no such checkpoint"):
        checkpoint.load_last(tmp_path, Pair().as_cells())


def test_state_of_another_optimizer_is_refused(tmp_path):
    save(tmp_path, 1)
    other = Pair()
    other.second_moment = ms.Parameter(np.zeros(3, np.float32), name="second_moment")
    with pytest.raises(DataError, match="not the state of this training.s optimizer"):
        checkpoint.load_last(tmp_path, other.as_cells())


def test_prune_keeps_the_newest(tmp_path):
    for epoch in (1, 2, 9, 10, 100):
        (tmp_path / f"checkpoint_vnet-{epoch}_10.ckpt").touch()
    (tmp_path / "best.ckpt").touch()
    checkpoint.prune(tmp_path, 2)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"checkpoint_vnet-10_10.ckpt", "checkpoint_vnet-100_10.ckpt", "best.ckpt"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "zoo2.ckpt"
    network = VNet(VARIANTS["zoo"], width=2)
    checkpoint.save_weights(network, path)
    return path, {p.name: p.asnumpy() for p in network.get_parameters()}


def test_weights_come_back_bit_for_bit(weights):
    path, values = weights
    network = VNet(VARIANTS["zoo"], width=2)
    checkpoint.load_weights(network, path)
    for parameter in network.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), values[parameter.name])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("variant", "width", "says"),
    [
        ("monai", 2, "variant=zoo, width=2"),
        ("paper", 2, "variant=zoo, width=2"),
        ("zoo", 4, "variant=zoo, width=2"),
    ],
)
def test_another_variant_or_width_is_named(weights, variant, width, says):
    with pytest.raises(DataError, match=says):
        checkpoint.load_weights(VNet(VARIANTS[variant], width=width), weights[0])


def test_a_configuration_that_contradicts_the_weights_is_named(weights, tmp_path):
    """`--set` could not say otherwise."""
    path = tmp_path / "ckpt" / "best.ckpt"
    path.parent.mkdir()
    path.write_bytes(weights[0].read_bytes())
    (tmp_path / "config.json").touch()
    with pytest.raises(DataError, match=f"width=2, not .*; restore {tmp_path / 'config.json'}$"):
        checkpoint.load_weights(VNet(VARIANTS["zoo"], width=4), path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_checkpoint_is_refused(weights, tmp_path, share):
    whole = weights[0].read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"cut\.ckpt") as caught:
        checkpoint.load_weights(VNet(VARIANTS["zoo"], width=2), path)
    assert "\n" not in str(caught.value)


def test_other_programs_files_are_refused(tmp_path):
    text = tmp_path / "notes.ckpt"
    text.write_text("no checkpoint at all\n" * 50)
    foreign = tmp_path / "lenet.ckpt"
    ms.save_checkpoint(
        [{"name": "fc.weight", "data": ms.Tensor(np.ones(3, np.float32))}], str(foreign)
    )
    network = VNet(VARIANTS["zoo"], width=2)
    before = network.in_tr.conv.weight.asnumpy().copy()
    for path, says in ((text, "not a complete MindSpore"), (foreign, "has no parameter in_tr")):
        with pytest.raises(DataError, match=says):
            checkpoint.load_weights(network, path)
    with pytest.raises(DataError, match="no such checkpoint"):
        checkpoint.load_weights(network, tmp_path / "absent.ckpt")
    np.testing.assert_array_equal(network.in_tr.conv.weight.asnumpy(), before)


@pytest.mark.parametrize("name", ["in_tr.conv.weight", "in_tr.bn.bn2d.moving_mean"])
def test_weights_that_are_not_finite_are_refused(tmp_path, name):
    network = VNet(VARIANTS["zoo"], width=2)
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    values = parameters[name].asnumpy().copy()
    values.flat[-1] = np.nan
    parameters[name].set_data(ms.Tensor(values))
    checkpoint.save_weights(network, tmp_path / "nan.ckpt")
    with pytest.raises(DataError, match=f"{name} has NaN or infinity"):
        checkpoint.load_weights(VNet(VARIANTS["zoo"], width=2), tmp_path / "nan.ckpt")


def test_the_optimizers_state_is_not_taken_for_weights(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(DataError, match=r"state of an optimizer, not weights; use last\.ckpt"):
        checkpoint.load_weights(VNet(VARIANTS["zoo"], width=2), tmp_path / "last_state.ckpt")


def test_default_architecture_is_the_zoos():
    assert (vnet_cfg.variant, vnet_cfg.width) == ("zoo", 16)


# A path given by the user -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "path", "found"),
    [
        (["a.ckpt"], "a.ckpt", "a.ckpt"),
        (["run/ckpt/best.ckpt", "run/ckpt/last.ckpt"], "run/ckpt/last.ckpt", "run/ckpt/last.ckpt"),
        (
            ["run/ckpt/best.ckpt", "run/ckpt/checkpoint_vnet-3_30.ckpt"],
            "run",
            "run/ckpt/best.ckpt",
        ),
        (["run/ckpt/best.ckpt"], "run/ckpt", "run/ckpt/best.ckpt"),
        (
            [f"run/ckpt/checkpoint_vnet-{name}.ckpt" for name in ("9_90", "10_100", "8_80")],
            "run",
            "run/ckpt/checkpoint_vnet-10_100.ckpt",
        ),
        (["release/vnet.ckpt"], "release", "release/vnet.ckpt"),
    ],
)
def test_a_checkpoint_is_found_in_a_run_and_a_release(tmp_path, capsys, files, path, found):
    for file in files:
        touch((tmp_path / file).parent, Path(file).name)
    log_to_standard_streams()
    assert checkpoint_file.find_checkpoint(tmp_path / path) == tmp_path / found
    printed = capsys.readouterr().out
    assert Path(found).name in printed if path != found else printed == ""


@pytest.mark.parametrize(
    ("files", "path", "words"),
    [
        ([], "absent", ["absent: no such checkpoint or folder"]),
        (["other/a.txt"], "other", ["a.txt", "ckpt/best.ckpt", "vnet.ckpt"]),
        (["run/config.json", "run/ckpt/last.ckpt"], "run", ["holds ckpt, config.json"]),
        ([f"many/{n}" for n in range(9)], "many", ["holds 0, 1, 2, 3, 4 and 4 more;"]),
    ],
)
def test_a_path_without_a_checkpoint_is_named_with_what_it_holds(tmp_path, files, path, words):
    for file in files:
        touch((tmp_path / file).parent, Path(file).name)
    with pytest.raises(DataError) as error:
        checkpoint_file.find_checkpoint(tmp_path / path)
    assert all(word in str(error.value) for word in [str(tmp_path / path), *words])
