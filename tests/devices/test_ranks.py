"""Two processes that train together, under msrun, against one process that does it alone.

`rank_program.py` is what each rank runs; all of it in one start, since a start takes long.
"""

import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pandas as pd
import pytest

from src.checkpoint import read_progress
from src.devices.ranks import Ranks
from src.evaluation import load_network
from src.promise12.splits import split_cases
from src.training.trainer import train
from src.training.validation import ValidationSet
from src.utils.process import free_port
from src.vnet import create_vnet
from tests.devices.rank_program import PAPER, Weights, config_of
from tests.helpers import ROOT
from tests.rounding import assert_trained_alike

pytestmark = pytest.mark.launchers

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_training):
    return write_training(tmp_path_factory.mktemp("ranks"), train=(0, 1, 2), val=(2, 3, 4))


@pytest.fixture(scope="module")
def ranks(folder):
    """What each rank left, name -> array."""
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}:{os.environ['PATH']}",  # msrun starts the PATH's python
        "PYTHONPATH": str(ROOT),
    }
    options = [
        "--worker_num=2",
        "--local_worker_num=2",
        f"--master_port={free_port()}",
        "--join=True",
    ]
    ended = subprocess.run(
        [scripts / "msrun", *options, f"--log_dir={folder}", TESTS / "rank_program.py", folder],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    logs = "".join(path.read_text()[-3000:] for path in folder.glob("worker_*.log"))
    assert ended.returncode == 0, logs
    return [dict(np.load(folder / f"rank_{rank}.npz")) for rank in range(2)]


def entries(found, prefix):
    """name -> array of what one rank found under a prefix."""
    return {key[len(prefix) :]: value for key, value in found.items() if key.startswith(prefix)}


def history_of(folder, name):
    (path,) = (folder / "results" / name).glob("vnet.*/history.csv")
    history = pd.read_csv(path, float_precision="round_trip")
    return history.drop(columns="epoch_time_s")


def test_what_the_ranks_tell_each_other(ranks):
    for number, found in enumerate(ranks):
        assert (found["rank"], found["count"]) == (number, 2)
        assert found["sum"].tolist() == [3.0, 1.0]
        assert found["mean"] == 3.5
        assert found["gather"].tolist() == [0, 10, 20, 30, 40]
        assert found["texts"].tolist() == ["", "größer"]
        assert found["text"] == "größer {}"
        np.testing.assert_array_equal(found["copied"], np.full(3, 0.1, np.float32))
        assert found["copied_int"] == 7 and found["copied_int"].dtype == np.int32
        assert found["averaged"].tolist() == [1.5, 1.5, 1.5]


def test_an_overflow_on_one_rank_skips_the_step_on_all(ranks):
    """Without a word between them: the averaged gradients are not finite on any rank."""
    expected = [[0.25, 0, 256], [0.25, 1, 128], [0.25, 1, 64], [0.25, 1, 32], [-0.5, 0, 32]]
    for found in ranks:
        np.testing.assert_array_equal(found["overflows"], expected)


def test_all_that_is_trained_is_the_same_on_each_rank_bit_for_bit(ranks):
    for name in ("zoo", "paper", "resumed"):
        first, second = (
            {key: value for key, value in entries(found, f"{name} ").items() if "own" not in key}
            for found in ranks
        )
        assert first.keys() == second.keys() and len(first) > 50
        # Batch norm's moving statistics, the optimizer's state, the weights' moving average too.
        for key in first:
            np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_batch_norms_statistics_are_the_mean_of_the_ranks(ranks, folder):
    (path,) = (folder / "results" / "zoo").glob("vnet.*/ckpt/last.ckpt")
    saved = ms.load_checkpoint(str(path))
    own = [entries(found, "zoo own ") for found in ranks]
    differ = [name for name, value in own[0].items() if (value != own[1][name]).any()]
    assert len(differ) > 20, "equal statistics would hide a missing mean"
    for name, value in own[0].items():
        mean = (value.astype(np.float64) + own[1][name]) / 2
        np.testing.assert_allclose(saved[name].asnumpy(), mean, rtol=1e-6, atol=1e-7)
        for found in ranks:
            np.testing.assert_array_equal(found[f"zoo {name}"], saved[name].asnumpy())


def test_two_ranks_do_what_one_does_with_their_batches_together(ranks, folder, monkeypatch):
    """The gradient is the mean of the ranks' gradients; without batch norm and dropout nothing else
    of a step depends on how it is shared."""
    monkeypatch.chdir(folder)
    weights = Weights()
    config = config_of(*PAPER, "batch_size=2", "dirResult=results/alone")
    train(config, "CPU", "data", "train.csv", "val.csv", None, [weights])
    # Voxels at the threshold may fall either way in validation.
    histories = (history_of(folder, name).drop(columns="val_dice") for name in ("paper", "alone"))
    pd.testing.assert_frame_equal(*histories, rtol=1e-4, atol=1e-5)
    ms.set_seed(config.seed)
    start = {p.name: p.asnumpy() for p in create_vnet(config).trainable_params()}
    assert_trained_alike(entries(ranks[0], "paper "), weights.values, start, steps=4)
    assert weights.values["global_step"] == ranks[0]["paper global_step"] == 4


def test_the_validation_score_is_the_mean_over_all_ranks(ranks, folder):
    (path,) = (folder / "results" / "paper").glob("vnet.*/ckpt/best.ckpt")
    config = config_of(*PAPER)
    cases = split_cases(folder / "data", folder / "val.csv", "val", 0)
    score = ValidationSet(cases, config, 1e9).mean_dice(load_network(path, config, "CPU"))
    assert history_of(folder, "paper")["val_dice"].iloc[-1] == pytest.approx(score)


def test_a_run_knows_what_the_cases_of_all_ranks_held(ranks, folder):
    """A resume notices an edited one, whichever rank validates on it."""
    (run,) = (folder / "results" / "zoo").iterdir()
    progress = read_progress(run / "ckpt")
    assert {*progress["digests"]} == {*progress["case_ids"], *progress["val_case_ids"]}


def test_what_is_kept_is_the_moving_average_that_every_rank_has(ranks, folder):
    (path,) = (folder / "results" / "zoo").glob("vnet.*/ckpt/best.ckpt")
    saved = ms.load_checkpoint(str(path))
    average = entries(ranks[1], "zoo average ")
    assert average.keys() == saved.keys()
    for name, value in average.items():
        np.testing.assert_array_equal(value, saved[name].asnumpy(), err_msg=name)
    weights = entries(ranks[1], "zoo ")
    differ = [name for name, value in average.items() if (value != weights[name]).any()]
    assert len(differ) > 50, "an average that is the weights would hide a missing one"


def test_a_resume_goes_on_as_if_never_stopped(ranks, folder):
    histories = (history_of(folder, name) for name in ("resumed", "zoo"))
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    whole = entries(ranks[0], "zoo ")
    for name, value in entries(ranks[0], "resumed ").items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


def test_only_the_first_rank_writes(ranks, folder):
    for name in ("zoo", "paper", "resumed"):
        assert len(list((folder / "results" / name).iterdir())) == 1
        history = history_of(folder, name)
        assert history["epoch"].tolist() == [1, 2]
        assert history["step"].tolist() == [2, 4]  # three cases in global batches of two
        assert history["val_dice"].notna().tolist() == [False, True]


def test_alone_nothing_is_sent(monkeypatch):
    monkeypatch.delattr("src.devices.ranks.ops")
    alone = Ranks()
    assert alone.is_first and alone.share([1, 2, 3]) == [1, 2, 3]
    assert alone.sum(np.array([2.5])).tolist() == [2.5]
    assert (alone.mean(3), alone.text_from_first("a")) == (3, "a")
    assert alone.gather([1, 2], 2).tolist() == [1, 2]
    assert alone.gather_texts("ä") == ["ä"]
    alone.average([None])
    alone.copy_from_first([None])
