"""run_promise12.sh from a local server to the release, interrupted in download and training.

Download, check and split are real, on tiny volumes; the commands that compute are stand-ins that
record their calls.
"""

import hashlib
import os
import shlex
import signal
import subprocess
import sys

import pytest

from tests.helpers import ROOT, wait_until, write_executable
from tests.launchers import Caller
from tests.volumes import make_pairs, zip_of

pytestmark = pytest.mark.launchers

SMALL = [
    "--set",
    "variant=zoo",
    "--set",
    "width=2",
    "--set",
    "VolSize=16,16,16",
    "--set",
    "dstRes=0.5,0.5,2",
]
# Runs prepare_data.py with another record; a lost connection is tried again after a minute.
PATCHED = """
import runpy, sys
sys.path.insert(0, {root!r})
from src.promise12.downloading import download
download.__defaults__ = ({url!r}, {{"training_data.zip": {md5!r}}}, 60.0)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PYTHON = """#!/bin/sh
case $1 in
  */prepare_data.py) exec {python} {patched} "$@" ;;
  */create_csv.py) exec {python} "$@" ;;
esac
echo "$@" >>{calls}
case $1 in
  */train.py)
    echo "run: runs/vnet.promise12.1"
    [ -e runs ] || {{ mkdir runs && echo $$ >>trainer && exec sleep 60; }}
    echo "resuming runs/vnet.promise12.1 after epoch 7"
    ;;
esac
echo "avg_dice: 0.75"
"""


class Promise12Caller(Caller):
    def __init__(self, folder, url, md5):
        self.folder = folder / "my folder"
        self.folder.mkdir()
        self.out = self.folder / "my out"
        self.calls = folder / "calls.txt"
        patched = folder / "patched.py"
        patched.write_text(PATCHED.format(root=str(ROOT), url=url, md5=md5))
        words = {"python": sys.executable, "patched": patched, "calls": self.calls}
        text = PYTHON.format(**{key: shlex.quote(str(word)) for key, word in words.items()})
        self.python = write_executable(folder / "tools" / "python", text)

    def environment(self, **variables):
        kept = ("PATH", "HOME", "FAST_CONV3D_CACHE")
        base = {name: os.environ[name] for name in kept if name in os.environ}
        more = {"PYTHON": str(self.python), "DEVICE_TARGET": "CPU", "no_proxy": "*"}
        return base | more | variables | {"XDG_CACHE_HOME": str(self.folder.parent / "cache")}

    def begin(self):
        words = ["--licence=two words", "--config", "my.yaml", "--set", "epochs=9"]
        words += ["--device_id", "3"]
        return self.start("run_promise12.sh", self.out.name, *words)


@pytest.fixture
def caller(server, tmp_path):
    make_pairs(tmp_path / "cases", ["Case00", "Case01", "Case11"])
    archive = zip_of(tmp_path / "cases", tmp_path / "a.zip", "training_data/").read_bytes()
    server.files = {
        "/record/files/LICENSE.TXT": b"Cite the paper.\n",
        "/record/files/training_data.zip": archive,
    }
    return Promise12Caller(tmp_path, f"{server.url}/record", hashlib.md5(archive).hexdigest())


def test_interrupted_in_download_and_training_it_goes_on(caller, server):
    server.faults = [None, "cut 200"]
    process = caller.begin()
    log = caller.out / "prepare_data.log"
    wait_until(lambda: log.exists() and "next attempt in 60 s" in log.read_text())
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "")
    assert "training: avg_dice: 0.75" in out  # the stand-in's estimate of the time

    process = caller.begin()
    trainer = caller.out / "trainer"
    wait_until(lambda: (trainer.exists() and trainer.read_text()) or process.poll() is not None)
    assert process.poll() is None
    os.kill(int(trainer.read_text()), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 137
    assert "step 4 of 6, training, failed" in err and str(caller.out / "train.log") in err
    assert "3 cases, no problems" in out
    assert server.requests[-1][:2] == ("/record/files/training_data.zip?download=1", "bytes=200-")
    requests = len(server.requests)

    process = caller.begin()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "resuming runs/vnet.promise12.1 after epoch 7" in out and "0.750" in out
    assert len(server.requests) == requests
    assert (caller.out / "split" / "val.csv").read_text() == "Case11.mhd\n"
    measure, training, evaluation, release = caller.calls.read_text().splitlines()[-4:]
    recipe = "--device_id 3 --preset accurate --set dirResult=runs --set task=promise12 --config "
    recipe += f"{caller.folder / 'my.yaml'} --set epochs=9 --continue"
    assert f"training_time.py --device_target CPU --cases 40 --val_cases 10 {recipe}" in measure
    assert training.endswith(f"--val_split_file_path split/val.csv {recipe}")
    assert "--dev_id 3 --ckpt_path runs/vnet.promise12.1 --data_path data/TrainData" in evaluation
    assert "--ckpt_file runs/vnet.promise12.1 --out_path model --zip" in release
    assert "--metrics evaluation/metrics.json --licence two words --data PROMISE12" in release


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--licence"], 2, "--licence needs a value"),
        (["--source", "absent"], 2, "no such file or folder"),
        (["--source", "nowhere/absent"], 2, "nowhere/absent': no such file or folder"),
        (
            ["--labels", "1,2"],
            2,
            "--labels: PROMISE12 has images of one channel and masks of 0 and",
        ),
        (["mine"], 1, "holds other files"),
    ],
)
def test_wrong_words_and_foreign_folders(caller, arguments, code, words):
    (caller.folder / "mine").mkdir()
    (caller.folder / "mine" / "notes.txt").write_text("mine")
    process = caller.run("run_promise12.sh", *arguments)
    assert process.returncode == code and words in process.stderr_text
    assert [path.name for path in caller.folder.rglob("*")] == ["mine", "notes.txt"]


def test_another_source_than_that_of_the_data_is_refused(caller):
    caller.out.mkdir()
    (caller.out / ".run_promise12").touch()
    (caller.out / ".prepared").write_text("--source /a\n")
    (caller.folder / "b").mkdir()
    process = caller.run("run_promise12.sh", caller.out.name, "--source", "b")
    assert process.returncode == 1
    assert f"of '--source /a', not of --source {caller.folder / 'b'}" in process.stderr_text


def test_a_second_call_at_the_same_time_is_refused(caller):
    caller.out.mkdir()
    mark = caller.out / ".run_promise12"
    mark.touch()
    with subprocess.Popen(["flock", str(mark), "sleep", "60"]) as holder:
        wait_until(lambda: subprocess.run(["flock", "-n", str(mark), "true"]).returncode)
        process = caller.run("run_promise12.sh", caller.out.name)
        holder.kill()
    assert process.returncode == 1 and "another call works in" in process.stderr_text
