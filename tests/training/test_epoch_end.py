"""The end of an epoch: what happens, in which order, and what it leaves; no training."""

import math
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pandas as pd
import pytest
from easydict import EasyDict
from mindspore import nn

from src import checkpoint
from src.checkpoint_file import BEST
from src.devices.ranks import Ranks
from src.training import epoch_end
from src.training.epoch_end import EpochEnd, EpochSteps, update_weight_average
from src.training.progress import Progress
from tests.helpers import names_in
from tests.networks import dense_cells

STEPS = 3
ALONE = Ranks()


@pytest.fixture
def run_folder(tmp_path):
    (tmp_path / "run" / "ckpt").mkdir(parents=True)
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def no_curve(request, monkeypatch):
    """Draws progress.png for the one test that looks at it: it takes longest."""
    if request.function is not test_the_history_has_a_row_per_epoch:
        monkeypatch.setattr(epoch_end, "plot_progress", lambda *_: None)


def end(run_folder, cells=None, dices=None, ranks=ALONE, progress=None, **settings):
    """An `EpochEnd` over five epochs; validations find these Dice values, one after the other."""
    config = {"val_interval": 1, "epochs": 5, "save_interval": 1, "keep_checkpoint_max": 10}
    config = EasyDict({**config, "early_stop": 0, "ema_decay": 0.5, "num_workers": 1, **settings})
    rates = np.linspace(0.1, 0.5, STEPS * config.epochs)
    found = iter(dices or ())
    score = None if dices is None else lambda network: next(found)
    progress = progress or Progress(case_ids=["a", "b"])
    return EpochEnd(config, cells or dense_cells(), progress, rates, score, run_folder, ranks)


def steps_of(epoch, losses=(0.9, 0.8, 0.7), skipped=0, elapsed_s=6.0, waited_s=0.0):
    return EpochSteps(epoch, list(losses), skipped, elapsed_s, waited_s)


def weight_in(path):
    return ms.load_checkpoint(str(path))["weight"].asnumpy().item()


def set_weight(cell, value):
    cell.weight.set_data(ms.Tensor([[value]], ms.float32))


def test_the_history_has_a_row_per_epoch(run_folder):
    ended = end(run_folder, dices=[0.5, 0.25])
    ended.run(steps_of(1))
    ended.run(steps_of(2, losses=(0.5, 0.3, 0.1), elapsed_s=7.5))
    history = pd.read_csv(run_folder / "history.csv")
    expected = pd.DataFrame(
        {
            "epoch": [1, 2],
            "step": [3, 6],
            "learning_rate": ended.learning_rates[[2, 5]],
            "train_loss": [0.8, 0.3],
            "epoch_time_s": [6.0, 7.5],
            "val_dice": [0.5, 0.25],
        }
    )
    pd.testing.assert_frame_equal(history, expected)
    assert (run_folder / "progress.png").is_file()


def test_a_resumed_run_keeps_the_rows_of_its_epochs_only(run_folder):
    """The history is written before the checkpoint: a kill in between leaves a row too many."""
    ended = end(run_folder)
    for epoch in (1, 2, 3):
        ended.run(steps_of(epoch))
    end(run_folder, progress=Progress(epoch=2)).run(steps_of(3))
    assert list(pd.read_csv(run_folder / "history.csv")["epoch"]) == [1, 2, 3]


def test_the_log_of_an_epoch(run_folder, capsys):
    """The zoo's two lines, overflows, validation; times are in ms."""
    end(run_folder, dices=[0.25]).run(steps_of(1, skipped=2, elapsed_s=4.5))
    assert capsys.readouterr().out.splitlines() == [
        "epoch: 1 step: 3, loss is 0.7",
        "epoch: 1 steps skipped for overflow: 2",
        "epoch time: 4500.000 ms, per step time: 1500.000 ms",
        "epoch 1 of 5: validation Dice 0.2500, best 0.2500",
    ]


@pytest.mark.parametrize(
    ("dices", "lines"),
    [
        (
            [0.5, 0.25, 0.75],
            [
                "epoch 1 of 6: validation Dice 0.5000, best 0.5000",
                "epoch 2 of 6: 1 min left",
                "epoch 3 of 6: validation Dice 0.2500, best 0.5000, 1 min left",
                "epoch 4 of 6: under 1 min left",
                "epoch 6 of 6: validation Dice 0.7500, best 0.7500",
                "trained: epoch 6 of 6, best validation Dice 0.7500, checkpoint {folder}/best.ckpt",
            ],
        ),
        (
            None,
            [
                "epoch 1 of 6",
                "epoch 2 of 6: 1 min left",
                "epoch 4 of 6: under 1 min left",
                "epoch 6 of 6",
                "trained: epoch 6 of 6, checkpoint {folder}/checkpoint_vnet-6_3.ckpt",
            ],
        ),
    ],
)
def test_an_epoch_has_one_line_of_ours_at_most(run_folder, capsys, monkeypatch, dices, lines):
    """Validation, and the time left where that is news; epochs of 20 s, validated at 1, 3 and 6."""
    now_s = 100.0
    monkeypatch.setattr(epoch_end.time, "monotonic", lambda: now_s)
    ended = end(run_folder, dices=dices, epochs=6)
    ended.is_due = lambda _: ended.progress.epoch in (1, 3, 6)
    for epoch in range(1, 7):
        now_s += 20
        ended.run(steps_of(epoch))
    ended.finish()
    said = [line for line in capsys.readouterr().out.splitlines() if " of 6" in line]
    assert said == [line.format(folder=run_folder / "ckpt") for line in lines]


@pytest.mark.parametrize(("waited_s", "reported"), [(0.29, False), (0.31, True)])
def test_a_long_wait_for_data_is_reported(run_folder, capsys, waited_s, reported):
    end(run_folder).run(steps_of(1, waited_s=waited_s))
    lines = [line for line in capsys.readouterr().out.splitlines() if "waited" in line]
    assert len(lines) == reported
    assert all("0.3 s for data, 5% of the time" in line and "num_workers" in line for line in lines)


@pytest.mark.parametrize(
    ("interval", "epochs", "validated"),
    [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (3, 4, [3, 4]), (9, 2, [2])],
)
def test_validation_comes_every_val_interval_and_at_the_end(
    run_folder, interval, epochs, validated
):
    ended = end(run_folder, dices=[0.5] * epochs, val_interval=interval, epochs=epochs)
    for epoch in range(1, epochs + 1):
        ended.run(steps_of(epoch))
    history = pd.read_csv(run_folder / "history.csv")
    assert list(history.loc[history["val_dice"].notna(), "epoch"]) == validated


def test_the_best_weights_are_kept(run_folder):
    """Equal Dice is not better; the network is scored in evaluation mode, then trains on."""
    cells, modes = dense_cells(), []
    cells.network.set_train(True)
    ended = end(run_folder, cells, dices=[])
    found = iter((0.3, 0.6, 0.6, 0.5))
    ended.score = lambda network: modes.append(network.training) or next(found)
    for epoch in (1, 2, 3, 4):
        set_weight(cells.network, epoch)
        ended.run(steps_of(epoch))
    assert weight_in(run_folder / "ckpt" / BEST) == 2
    assert (ended.progress.best_dice, ended.progress.validations_since_best) == (0.6, 2)
    assert modes == [False] * 4 and cells.network.training


def test_a_better_network_comes_with_the_state_that_knows_its_dice(run_folder):
    """Else a resume from before it would call worse weights the best, or its Dice another's."""
    ended = end(run_folder, dices=[0.3, 0.6, 0.5], save_interval=100)
    for epoch in (1, 2, 3):
        set_weight(ended.cells.network, epoch)
        ended.run(steps_of(epoch))
    folder = run_folder / "ckpt"
    assert names_in(folder) == sorted([BEST, checkpoint.LAST, checkpoint.STATE])
    saved = Progress(**checkpoint.load_last(folder, dense_cells()))
    assert (saved.epoch, saved.best_dice, weight_in(folder / BEST)) == (2, 0.6, 2)


def test_checkpoints_come_every_save_interval_and_after_the_last_epoch(run_folder):
    ended = end(run_folder, save_interval=2, keep_checkpoint_max=2)
    for epoch in (1, 2, 3, 4, 5):
        ended.run(steps_of(epoch))
    names = [f"checkpoint_vnet-{epoch}_{STEPS}.ckpt" for epoch in (4, 5)]
    assert names_in(run_folder / "ckpt") == [*names, checkpoint.LAST, checkpoint.STATE]
    saved = checkpoint.load_last(run_folder / "ckpt", dense_cells())
    assert Progress(**saved) == ended.progress == Progress(5, 15, case_ids=["a", "b"])


@pytest.mark.parametrize(
    ("save_s", "saved"),
    [
        (0.001, [1, 2, 3, 4, 5, 6, 7]),
        (0.5, [1, 4, 7]),  # due 25 s later: three epochs of 10 s
        (0.6, [1, 4, 7]),  # 30 s
        (0.61, [1, 5, 7]),
        (1000, [1, 7]),
    ],
)
@pytest.mark.parametrize("early_stop", [0, 7])
def test_checkpoints_take_two_percent_of_the_time(
    run_folder, monkeypatch, save_s, saved, early_stop
):
    """Of the training between them; the last epoch, also of an early stop, is saved once."""
    now_s = 5.0

    def save(seconds):
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(epoch_end.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(epoch_end, "plot_progress", lambda *_: save(save_s))
    epochs = 7 if early_stop == 0 else 100
    ended = end(run_folder, dices=[-1] * 7, save_interval=0, epochs=epochs, early_stop=early_stop)
    stops = []
    for epoch in range(1, 8):
        now_s += 10
        stops.append(ended.run(steps_of(epoch)))
    assert stops == [False] * 6 + [early_stop == 7]
    names = [f"checkpoint_vnet-{epoch}_{STEPS}.ckpt" for epoch in saved]
    assert names_in(run_folder / "ckpt") == [*names, checkpoint.LAST, checkpoint.STATE]
    assert now_s == pytest.approx(75 + save_s * len(saved))
    assert checkpoint.load_last(run_folder / "ckpt", dense_cells())["epoch"] == 7


@pytest.mark.parametrize("save_interval", [0, 100])
def test_a_kill_after_the_last_epoch_finds_its_checkpoint(run_folder, monkeypatch, save_interval):
    """Also of a better network: a resume would find all epochs trained, and could not write it."""
    ended = end(run_folder, dices=[0.5], epochs=1, save_interval=save_interval)
    ended.save_took_s = math.inf
    saved = []
    monkeypatch.setattr(checkpoint, "save_last", lambda folder, *_: saved.extend(names_in(folder)))
    ended.run(steps_of(1))
    assert saved == [f"checkpoint_vnet-1_{STEPS}.ckpt"]


def test_the_average_is_what_is_scored_and_kept(run_folder):
    """A resume needs the latest weights too: `last.ckpt`."""
    cells = dense_cells(with_average=True)
    ended = end(run_folder, cells, dices=[])
    scored = []
    ended.score = lambda network: scored.append(network.weight.asnumpy().item()) or 0.5
    for epoch, value in ((1, 2.0), (2, 13.0)):
        set_weight(cells.network, value)
        ended.run(steps_of(epoch))
    assert scored == pytest.approx([2, 12])  # a decay of 0, then 1 / 11
    folder = run_folder / "ckpt"
    assert weight_in(folder / BEST) == 2
    assert weight_in(folder / f"checkpoint_vnet-2_{STEPS}.ckpt") == pytest.approx(12)
    assert weight_in(folder / checkpoint.LAST) == 13


def test_the_average_is_exponential_once_the_first_epochs_are_over():
    cells = dense_cells(with_average=True)
    expected = 0
    for epoch, value in enumerate((7.0, 1.0, -2.0, 5.0, 3.0, 8.0), 1):
        set_weight(cells.network, value)
        update_weight_average(cells.average, cells.network, epoch, decay=0.25)
        decay = (0, 1 / 11, 2 / 12, 3 / 13, 0.25, 0.25)[epoch - 1]
        expected = decay * expected + (1 - decay) * value
        assert cells.average.weight.asnumpy() == pytest.approx(expected, rel=1e-6)


def test_the_average_is_updated_in_place_to_the_last_bit():
    """A weight of several parts, in networks that have computed before: they use the new values."""
    random = np.random.default_rng(0)
    size = (3, epoch_end.AVERAGED_AT_ONCE - 5)
    average, network = (nn.Dense(size[1], size[0], has_bias=False) for _ in range(2))
    first, second = random.standard_normal((2, *size), np.float32)
    volume = ms.Tensor(random.standard_normal((1, size[1]), np.float32))
    average.weight.set_data(ms.Tensor(first))
    network.weight.set_data(ms.Tensor(second))
    before = average(volume).asnumpy().copy()
    update_weight_average(average, network, epoch=2, decay=0.9)
    expected = np.float32(1 / 11) * first + np.float32(10 / 11) * second
    np.testing.assert_array_equal(average.weight.asnumpy(), expected)
    np.testing.assert_array_equal(network.weight.asnumpy(), second)
    np.testing.assert_allclose(average(volume).asnumpy(), volume.asnumpy() @ expected.T, atol=0.02)
    assert (average(volume).asnumpy() != before).all()


@pytest.mark.parametrize("device_target", ["CPU", "Ascend"])
def test_the_average_reaches_every_device(monkeypatch, device_target):
    """Where `asnumpy` is a copy, it is written back."""
    cells, kept = dense_cells(with_average=True), []
    set_weight(cells.network, 3.0)
    set_weight(cells.average, 1.0)
    monkeypatch.setattr(epoch_end.ms, "get_context", {"device_target": device_target}.get)
    mean = cells.average.weight
    parameter = SimpleNamespace(asnumpy=lambda: mean.asnumpy().copy(), set_data=kept.append)
    average = SimpleNamespace(get_parameters=lambda: [parameter])
    update_weight_average(average, cells.network, epoch=11, decay=0.5)
    assert [tensor.asnumpy().item() for tensor in kept] == [2.0] * (device_target == "Ascend")


@pytest.mark.parametrize(
    ("dices", "patience", "stops"),
    [
        ([0.5, 0.4, 0.3], 0, [False, False, False]),
        ([0.5, 0.4, 0.3], 2, [False, False, True]),
        ([0.5, 0.4, 0.6, 0.6], 2, [False, False, False, False]),
        ([0.5, 0.5], 1, [False, True]),
    ],
)
def test_early_stop_counts_validations_without_a_better_dice(run_folder, dices, patience, stops):
    ended = end(run_folder, dices=dices, early_stop=patience)
    assert [ended.run(steps_of(epoch)) for epoch, _ in enumerate(dices, 1)] == stops


def test_without_validation_cases_nothing_stops_early(run_folder):
    """A run that was started with some may be resumed without."""
    stalled = Progress(validations_since_best=7)
    assert not end(run_folder, early_stop=2, progress=stalled).run(steps_of(1))


def test_other_ranks_than_the_first_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = end(None, dices=[0.5])
    ended.run(steps_of(1))
    ended.finish()
    assert ended.progress.best_dice == 0.5 and names_in(tmp_path) == []


def test_ranks_are_averaged_before_the_weights_are_scored(run_folder, monkeypatch):
    """Statistics, weight average, validation, history, events, checkpoint: in this order."""
    order = []
    averaged = SimpleNamespace(
        mean=lambda value: 10 * value, average=lambda parameters: order.append("statistics")
    )
    ended = end(run_folder, dense_cells(with_average=True), dices=[], ranks=averaged)
    ended.score = lambda network: order.append("score") or 0.5
    ended.events = SimpleNamespace(add=lambda row: order.append(row))
    for module, name in (
        (epoch_end, "update_weight_average"),
        (checkpoint, "save_weights"),
        (epoch_end, "write_history"),
        (checkpoint, "save_last"),
        (epoch_end, "plot_progress"),
    ):
        monkeypatch.setattr(module, name, lambda *_, name=name: order.append(name))
    ended.run(steps_of(1))
    assert order == [
        *("statistics", "update_weight_average", "score", "write_history"),
        *(ended.history[0], "save_weights", "save_last", "plot_progress"),
    ]
    assert ended.history[0]["train_loss"] == pytest.approx(8)
