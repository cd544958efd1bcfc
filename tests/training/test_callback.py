"""What the callback measures of an epoch's steps, and when it stops a training."""

import io
import logging
import signal
import sys
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from easydict import EasyDict
from mindspore import nn

from src.training.callback import TrainingCallback
from src.training.progress import Progress
from src.utils.errors import DataError
from src.utils.stopping import NAMES, between_steps, stop_if_asked


class Recorder:
    """Takes the place of `EpochEnd`: keeps what it is given."""

    def __init__(self, stops=False, run_folder=None):
        self.stops, self.run_folder = stops, run_folder
        self.progress = Progress(case_ids=["Case00", "Case01", "Case02", "Case03"])
        self.config = EasyDict(epochs=9)
        self.ended, self.finished = [], 0

    def run(self, steps):
        self.ended.append(steps)
        return self.stops

    def finish(self):
        self.finished += 1


class Clock:
    """Stands in for the clock of the callback; the test moves it."""

    def __init__(self, monkeypatch):
        self.now_s = 100.0
        monkeypatch.setattr("src.training.callback.time.perf_counter", lambda: self.now_s)


SAMPLES = SimpleNamespace(steps=2, batch=lambda epoch, step: [2 * step, 2 * step + 1])


class Context:
    """A run context of MindSpore: two batches an epoch."""

    def __init__(self, epoch=1, **arguments):
        known = {
            "batch_num": 2,
            "cur_epoch_num": epoch,
            "train_network": nn.Dense(1, 1),
        }
        self.arguments = EasyDict({**known, **arguments})
        self.stopped = False

    def original_args(self):
        return self.arguments

    def request_stop(self):
        self.stopped = True

    def with_step(self, number, outputs):
        self.arguments.update(cur_step_num=number, net_outputs=outputs)
        return self


def follow(callback, context, *outputs, clock=None, wait_s=0.0, step_s=0.0):
    """An epoch of one step for each of the network's outputs."""
    callback.on_train_epoch_begin(context)
    for number, output in enumerate(outputs, 1):
        context.with_step(number, output)
        if clock:
            clock.now_s += wait_s
        callback.on_train_step_begin(context)
        if clock:
            clock.now_s += step_s
        callback.on_train_step_end(context)
    callback.on_train_epoch_end(context)


@pytest.fixture(autouse=True)
def signal_handlers():
    """Puts pytest's handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_one_bar_for_the_whole_training_on_terminals_only(stream, shown, monkeypatch):
    """Of a resume, too; a line of the log stands above it, and no end of it leaves it there."""
    drawn = stream()
    monkeypatch.setattr(sys, "stderr", drawn)
    monkeypatch.setattr(sys, "stdout", drawn)
    monkeypatch.setenv("COLUMNS", "80")
    recorder = Recorder()
    recorder.progress.epoch = 6
    with TrainingCallback(recorder, SAMPLES) as callback:
        callback.on_train_begin(Context(epoch=7))
        for epoch in (7, 8):
            follow(callback, Context(epoch), ms.Tensor(0.5), ms.Tensor(0.25))
        drawn.truncate(0)
        logging.getLogger("src").info("a line")
        callback.bar.refresh()
        *before, last = drawn.getvalue().split("\n")
        assert before[-1].split("\r")[-1].strip("\0") == "a line"
        assert ("epoch 8 of 9" in last and "16/18" in last) == shown
    assert (not drawn.getvalue().endswith("a line\n")) == shown
    assert drawn.getvalue().rstrip(" \r").endswith("step/s]") == shown  # blanked


@pytest.mark.parametrize("stops", [False, True])
def test_the_end_of_an_epoch_gets_losses_and_times(monkeypatch, stops):
    clock, recorder, context = Clock(monkeypatch), Recorder(stops), Context(epoch=3)
    callback = TrainingCallback(recorder, SAMPLES)
    losses = ms.Tensor(0.5), ms.Tensor(0.25)
    follow(callback, context, *losses, clock=clock, wait_s=0.5, step_s=4)
    (steps,) = recorder.ended
    assert (steps.epoch, steps.losses, steps.skipped) == (3, [0.5, 0.25], 0)
    assert (steps.elapsed_s, steps.waited_s) == (9, 1)
    assert context.stopped == stops
    callback.on_train_end(context)
    assert recorder.finished == 1


def test_with_dataset_sink_the_waits_are_unknown(monkeypatch):
    """MindSpore then calls back once an epoch, with the last step."""
    clock, recorder = Clock(monkeypatch), Recorder()
    context = Context(dataset_sink_mode=True)
    follow(TrainingCallback(recorder, SAMPLES), context, ms.Tensor(0.5), clock=clock, wait_s=3)
    assert (recorder.ended[0].losses, recorder.ended[0].waited_s) == ([0.5], 0)


def test_overflows_are_counted():
    recorder = Recorder()
    outputs = [(ms.Tensor(0.5), ms.Tensor(flag), ms.Tensor(1024.0)) for flag in (True, False)]
    follow(TrainingCallback(recorder, SAMPLES), Context(), *outputs)
    assert (recorder.ended[0].losses, recorder.ended[0].skipped) == ([0.5, 0.5], 1)


@pytest.mark.parametrize(
    ("sink", "words"),
    [
        (
            False,
            "loss is nan at epoch 4 step 2; in this step and the one before: "
            "Case00, Case01, Case02, Case03",
        ),
        (True, "loss is nan in epoch 4"),
    ],
)
@pytest.mark.parametrize("saved", [None, False, True])
def test_a_nan_stops_with_its_batch_and_the_last_good_checkpoint(tmp_path, sink, words, saved):
    """`saved` None: a rank that has no run folder."""
    (tmp_path / "ckpt").mkdir()
    if saved:
        (tmp_path / "ckpt" / "last.ckpt").touch()
    recorder = Recorder(run_folder=None if saved is None else tmp_path)
    context = Context(epoch=4, dataset_sink_mode=sink)
    with pytest.raises(DataError) as error:
        follow(TrainingCallback(recorder, SAMPLES), context, ms.Tensor(0.5), ms.Tensor(np.nan))
    good = {None: "rank 0's", False: "no checkpoint yet", True: str(tmp_path / "ckpt/last.ckpt")}
    assert words in str(error.value) and good[saved] in str(error.value)
    assert recorder.ended == []


def test_weights_that_are_not_finite_end_no_epoch():
    recorder, network = Recorder(), nn.Dense(1, 1)
    network.weight.set_data(ms.Tensor([[np.inf]], ms.float32))
    with pytest.raises(DataError, match="weights became NaN or infinite at epoch 1 step 2"):
        outputs = ms.Tensor(0.5), ms.Tensor(0.25)
        follow(TrainingCallback(recorder, SAMPLES), Context(train_network=network), *outputs)
    assert recorder.ended == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("place", ["step", "epoch"])
def test_a_signal_is_answered_after_the_step_or_what_ends_the_epoch(capsys, number, code, place):
    """MindSpore sets its own handlers in each step: the callback takes them back."""
    recorder, context = Recorder(), Context().with_step(1, ms.Tensor(0.5))
    callback = TrainingCallback(recorder, SAMPLES)
    callback.on_train_epoch_begin(context)
    with between_steps(lambda: "resume it"):
        signal.signal(number, signal.SIG_IGN)
        callback.on_train_step_end(context)
        signal.raise_signal(number)
        with pytest.raises((KeyboardInterrupt, SystemExit)) as error:
            getattr(callback, f"on_train_{place}_end")(context)
    assert getattr(error.value, "code", 130) == code
    assert len(recorder.ended) == (place == "epoch")
    assert capsys.readouterr().out == f"stopped by {NAMES[number]}; resume it\n"


@pytest.mark.parametrize("stops", [False, True])
def test_a_signal_after_the_last_step_does_not_keep_the_training_from_its_end(stops):
    context = Context(epoch=3 if stops else 9)  # of a resume, MindSpore's epoch_num is the rest
    callback = TrainingCallback(Recorder(stops), SAMPLES)
    callback.on_train_epoch_begin(context)
    with between_steps(lambda: "resume it"):
        callback.on_train_step_end(context.with_step(1, ms.Tensor(0.5)))
        signal.raise_signal(signal.SIGTERM)
        callback.on_train_epoch_end(context)
    assert context.stopped == stops
    stop_if_asked()  # nor from what comes after it
