"""The launchers for several devices, training for real: two processes on the CPU, through msrun."""

import os
import re
import signal
import subprocess
import sys

import pandas as pd
import pytest

from tests.helpers import ROOT, wait_until
from tests.launchers import SETTINGS, processes

pytestmark = pytest.mark.launchers

FURTHER = [word for setting in SETTINGS for word in ("--set", setting)]
LONG = 5000  # epochs; the test ends the training before


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_training):
    """A user's folder: three cases, a split, a rank table."""
    folder = write_training(tmp_path_factory.mktemp("user"), train=(0, 1, 2))
    table = [sys.executable, ROOT / "scripts" / "create_hccl.py", "--server_ip", "127.0.0.1"]
    table += ["--device_num", "[0,2)", "--device_ip", "10.1.0.1,10.1.0.2"]
    subprocess.run(table, cwd=folder, check=True, capture_output=True)
    return folder


def environment(folder, **variables):
    own = {"PYTHON": sys.executable, "DEVICE_TARGET": "CPU", "TEST_OF": str(folder)}
    return os.environ | own | variables


def run(folder, script, *arguments, **variables):
    return subprocess.run(
        ["bash", ROOT / "scripts" / script, *arguments],
        cwd=folder,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_a_killed_rank_and_a_resume(folder):
    """kill -9 ends the job; a resume completes the run. That it is then the run which was never
    interrupted is in tests/devices/test_ranks.py."""
    arguments = ["hccl_2p_01_127.0.0.1.json", "2", "data", "train.csv", *FURTHER, "--set"]
    process = run(folder, "train_distribute.sh", *arguments, f"epochs={LONG}")
    assert process.returncode == 0, process.stdout + process.stderr
    assert "has finished" not in process.stdout
    results = folder / "train_parallel0" / "results" / "infer"
    wait_until(lambda: "epoch: 3 " in (folder / "train_distribute.log").read_text(), 200)
    (victim,) = (pid for pid, what in processes(folder).items() if what == "train.py RANK_ID=1")
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not processes(folder))

    log = (folder / "train_distribute.log").read_text()
    own = folder / "train_parallel1" / "train_distribute.log"
    assert (
        f"error: rank 1 was ended by SIGKILL, by a user or for lack of memory; the end of {own}"
        in log
    )
    assert f"epoch: {LONG} " not in log
    (run_folder,) = results.iterdir()
    total = int(pd.read_csv(run_folder / "history.csv")["epoch"].max()) + 2
    resume = {"WAIT": "1", "RESUME": "1"}
    process = run(folder, "train_distribute.sh", *arguments, f"epochs={total}", **resume)
    assert process.returncode == 0, process.stdout[-3000:]
    for line in ["run: results/infer/", f"epoch: {total} step: 2, loss is "]:
        assert line in process.stdout
    assert process.stdout.endswith("all ranks have finished\n")
    assert 2 <= int(re.search(r"^resuming .* after epoch (\d+)$", process.stdout, re.M)[1]) < total
    assert list(results.iterdir()) == [run_folder]
    assert not processes(folder)
    history = pd.read_csv(run_folder / "history.csv")
    assert history["epoch"].tolist() == list(range(1, total + 1))
    assert history["step"].tolist() == list(range(2, 2 * total + 1, 2))
    assert not (folder / "train_parallel1" / "results").exists()
    assert {path.name for path in (folder / "train_parallel1").iterdir()} == {
        "train_distribute.log",
        "train_distribute.log.1",
    }


@pytest.mark.full
def test_a_fault_of_the_data_is_told(folder):
    """With the rank, its log, the line of train.py and its exit code; nothing is left running."""
    (folder / "faulty.csv").write_text("Case00.mha\nCase77.mha\n")
    words = ["2", "0,1", "data", "faulty.csv", *FURTHER]
    process = run(folder, "train_distribute_gpu.sh", *words, WAIT="1")
    assert process.returncode == 1
    assert "ended with exit code 1; the end of " in process.stdout
    assert f"{folder}/log_output/1/rank." in process.stdout
    assert "Case77" in process.stdout.partition("; the end of ")[2]
    assert not processes(folder)
