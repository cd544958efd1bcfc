"""The program of each rank of test_ranks.py, under msrun: `python rank_program.py FOLDER`.

Leaves FOLDER/rank_N.npz with what it computed, and the first rank's runs in FOLDER/results.
"""

import os
import shutil
import sys
from pathlib import Path

import mindspore as ms
import numpy as np

from src.config import override_config, vnet_cfg
from src.devices.device import start_communication, start_device
from src.training import epoch_end
from src.training.trainer import train
from tests.networks import scaled_step

SETTINGS = [
    *("width=2", "VolSize=32,16,16", "dstRes=2.5,2.5,2.5", "batch_size=1", "cache_dir=off"),
    *("epochs=2", "warmup_step=2", "val_interval=2", "ema_decay=0.5"),
]

# What a step does is linear in the gradient, and nothing of it depends on how it is shared.
PAPER = ["variant=paper", "optimizer=momentum", "lr=1"]


class CopyAfter(ms.Callback):
    """Copies a run as it is after an epoch: what a crash would leave then."""

    def __init__(self, epoch, results, copies):
        super().__init__()
        self.epoch, self.results, self.copies = epoch, Path(results), Path(copies)

    def on_train_epoch_end(self, run_context):
        if run_context.original_args().cur_epoch_num == self.epoch:
            (run,) = self.results.glob("vnet.*")
            shutil.copytree(run / "ckpt", self.copies / run.name / "ckpt")
            for name in ("config.json", "history.csv"):
                shutil.copy(run / name, self.copies / run.name)


class Weights(ms.Callback):
    """Keeps the weights of a training, as they are at its end."""

    def on_train_end(self, run_context):
        cell = run_context.original_args().train_network
        self.values = {p.name: p.asnumpy().copy() for p in cell.get_parameters()}


def config_of(*overrides):
    return override_config(vnet_cfg, [*SETTINGS, *overrides])


def overflows_of(rank):
    """What a rank sees of steps in which one rank's gradients overflow, then the other's."""
    step = scaled_step(1)
    found = []
    for bad_rank, bad in [(None, 0), (0, np.inf), (1, np.nan), (1, 3e38), (None, 0)]:
        value = bad if rank == bad_rank else 1.0 + rank
        _, overflow, _ = step(ms.Tensor(np.full((2, 3), value, np.float32)))
        found.append([*step.network.w.asnumpy(), bool(overflow), float(step.scale_sense.asnumpy())])
    return np.array(found)


def watch_statistics():
    """Batch norm's statistics of this rank alone, as they were before each averaging."""
    before, average = {}, epoch_end.average_statistics

    def watched(network, ranks):
        statistics = [p for p in network.get_parameters() if not p.requires_grad]
        before.update({p.name: p.asnumpy().copy() for p in statistics})
        average(network, ranks)

    epoch_end.average_statistics = watched
    return before


def watch_averages():
    """The weights' moving average on this rank, as it is after each epoch."""
    after, update = {}, epoch_end.update_weight_average

    def watched(mean, network, epoch, decay):
        update(mean, network, epoch, decay)
        after.update({p.name: p.asnumpy().copy() for p in mean.get_parameters()})

    epoch_end.update_weight_average = watched
    return after


def main():
    folder = Path(sys.argv[1])
    os.chdir(folder)
    start_device("CPU")
    ranks = start_communication(2)
    found = {"rank": ranks.rank, "count": ranks.count}

    found["sum"] = ranks.sum(np.array([1.5, ranks.rank]))
    found["mean"] = ranks.mean(3.0 + ranks.rank)
    found["gather"] = ranks.gather([10.0 * item for item in ranks.share(range(5))], 5)
    found["texts"] = ranks.gather_texts("größer" * ranks.rank)
    found["text"] = ranks.text_from_first("größer {}" if ranks.is_first else "ignored")
    pair = [ms.Parameter(ms.Tensor(np.full(3, 0.1 + ranks.rank, np.float32)), name="a")]
    pair.append(ms.Parameter(ms.Tensor(7 + ranks.rank, ms.int32), name="b"))
    ranks.copy_from_first(pair)
    found["copied"], found["copied_int"] = (parameter.asnumpy().copy() for parameter in pair)
    pair[0].set_data(ms.Tensor(np.full(3, 1.0 + ranks.rank, np.float32)))
    ranks.average(pair[:1])
    found["averaged"] = pair[0].asnumpy().copy()

    found["overflows"] = overflows_of(ranks.rank)

    before, averages = watch_statistics(), watch_averages()
    copy = [CopyAfter(1, "results/zoo", "results/resumed")] if ranks.is_first else []
    for name, overrides in {"zoo": [], "paper": PAPER}.items():
        weights = Weights()
        config = config_of(*overrides, f"dirResult=results/{name}")
        callbacks = [weights, *(copy if name == "zoo" else [])]
        run = train(config, "CPU", "data", "train.csv", "val.csv", None, callbacks, ranks)
        assert (run is None) != ranks.is_first
        found |= {f"{name} {key}": value for key, value in weights.values.items()}
        found |= {f"{name} own {key}": value for key, value in before.items()}
        found |= {f"{name} average {key}": value for key, value in averages.items()}
        before.clear()
        averages.clear()

    config = config_of("dirResult=results/resumed")
    (run,) = Path("results/resumed").iterdir() if ranks.is_first else [None]
    weights = Weights()
    train(config, "CPU", "data", "train.csv", "val.csv", run, [weights], ranks)
    found |= {f"resumed {key}": value for key, value in weights.values.items()}
    found |= {f"resumed average {key}": value for key, value in averages.items()}
    np.savez(folder / f"rank_{ranks.rank}.npz", **found)


if __name__ == "__main__":
    main()
