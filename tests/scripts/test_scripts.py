"""The shell launchers, run for real with stand-ins for Python that record how they were called."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.config import vnet_cfg
from src.export.description import describe
from src.utils.files import hash_file
from tests.helpers import ROOT, alive, wait_until, write_executable
from tests.launchers import Caller, heed_signals

pytestmark = pytest.mark.launchers

PYTEST = "python -m pytest --timeout=600 --numprocesses=2 --dist=loadfile --no-loadscope-reorder"

# Records its call, prints, then sleeps or ends as the test's environment asks.
STAND_IN = """
import json, os, signal, subprocess, sys, time
if os.environ.get("STUBBORN"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.environ.get("SECOND"):
    end = lambda *_: signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGINT, end)
call = {"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid()}
call["stdin_at_end"] = sys.stdin.read() == ""
if os.environ.get("GRANDCHILD"):
    call["grandchild"] = subprocess.Popen(["sleep", "60"]).pid
with open(os.environ["RECORD"] + ".new", "w") as file:
    json.dump(call, file)
os.rename(os.environ["RECORD"] + ".new", os.environ["RECORD"])
for line in os.environ.get("PRINT", "").split("|"):
    print("out", line)
print("err", file=sys.stderr)
if os.environ.get("STATE"):
    status = {"state": os.environ["STATE"], **json.loads(os.environ.get("WHERE", "{}"))}
    with open(os.environ["VNET_STATUS_FILE"], "w", encoding="utf-8") as file:
        json.dump(status, file, ensure_ascii=False)
time.sleep(float(os.environ.get("SLEEP", "0")))
print("last words", flush=True)
if os.environ.get("DIE_OF"):
    os.kill(os.getpid(), int(os.environ["DIE_OF"]))
sys.exit(int(os.environ.get("EXIT", "0")))
"""

TRAINERS = {"train_standalone.sh": "Ascend", "train_standalone_gpu.sh": "GPU"}
EVALUATORS = {"eval.sh": "Ascend", "eval_gpu.sh": "GPU"}
TARGETS = TRAINERS | EVALUATORS


class PythonCaller(Caller):
    """A user's folder with a space in its name: data, split, checkpoint and a recording Python."""

    def __init__(self, folder):
        self.folder = folder / "my folder"
        self.record = folder / "call.json"
        stand_in = write_executable(folder / "tools of mine" / "stand_in.py", STAND_IN)
        self.python = write_executable(
            stand_in.with_name("python"),
            f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n',
        )
        (self.folder / "my data").mkdir(parents=True)
        (self.folder / "train set.csv").write_text("Case00.mhd\n")
        (self.folder / "best.ckpt").write_bytes(b"weights")

    def arguments(self, script):
        if script in TRAINERS:
            return ["3", "my data", "train set.csv"]
        return ["3", "best.ckpt", "my data", "train set.csv"]

    def environment(self, **variables):
        base = {"PATH": os.environ["PATH"], "PYTHON": str(self.python), "RECORD": str(self.record)}
        return base | {"START_SECONDS": "5"} | {name: str(v) for name, v in variables.items()}

    def call(self):
        wait_until(self.record.exists)
        return json.loads(self.record.read_text())

    def log(self, script):
        return self.folder / f"{Path(script).stem}.log"


@pytest.fixture
def caller(tmp_path):
    caller = PythonCaller(tmp_path)
    yield caller
    if caller.record.exists():
        call = caller.call()
        for pid in filter(alive, [call["pid"], call.get("grandchild", 0)]):
            os.kill(pid, signal.SIGKILL)


def test_an_address_of_a_release_is_a_checkpoint(caller):
    address = "https://example.org/model.zip#sha256=" + 64 * "0"
    process = caller.run("eval.sh", "0", address, "my data", "train set.csv")
    assert process.returncode == 0 and address in caller.call()["argv"]


@pytest.mark.parametrize("script", TARGETS)
def test_the_whole_command(caller, script):
    further = ["--set", "VolSize=32,32,16", "--note", "two words; $HOME *", ""]
    process = caller.run(script, *caller.arguments(script), *further)
    call = caller.call()
    if script in TRAINERS:
        expected = [str(ROOT / "train.py"), "--device_target", TARGETS[script]]
        expected += ["--device_id", "3", "--data_path", "my data"]
        expected += ["--train_split_file_path", "train set.csv"]
    else:
        expected = [str(ROOT / "eval.py"), "--device_target", TARGETS[script]]
        expected += ["--dev_id", "3", "--ckpt_path", "best.ckpt", "--data_path", "my data"]
        expected += ["--eval_split_file_path", "train set.csv"]
    assert call["argv"] == expected + further
    assert call["cwd"] == str(caller.folder)
    zoo = {"DEVICE_ID": "3", "DEVICE_NUM": "1", "RANK_ID": "0", "PYTHONUNBUFFERED": "1"}
    assert zoo.items() <= call["env"].items()
    assert call["stdin_at_end"]
    assert process.returncode == 0
    assert str(caller.log(script)) in process.stdout_text
    assert f"process {call['pid']}" in process.stdout_text
    assert f"  follow: tail -f '{caller.log(script)}'\n" in process.stdout_text
    assert f"  stop:   kill {call['pid']}\n" in process.stdout_text
    assert process.stdout_text.endswith(" has finished: last words\n")
    assert process.stderr_text == ""
    assert caller.log(script).read_text().splitlines() == ["out ", "err", "last words"]


@pytest.mark.parametrize("script", EVALUATORS)
def test_the_checkpoint_may_be_the_folder_of_a_run(caller, script):
    process = caller.run(script, "0", "my data", "my data", "train set.csv")
    assert process.returncode == 0
    assert caller.call()["argv"][5:7] == ["--ckpt_path", "my data"]


@pytest.mark.parametrize("target", ["", "GPU"])
def test_the_whole_command_of_a_cross_validation(caller, target):
    further = ["--preset", "compact", "--out_path", "my folds"]
    variables = {"DEVICE_TARGET": target} if target else {}
    process = caller.run("cross_validate.sh", "my data", "5", *further, **variables)
    assert caller.call()["argv"] == [
        *(str(ROOT / "tools" / "cross_validate.py"), "--device_target", target or "auto"),
        *("--data_path", "my data", "--folds", "5", *further),
    ]
    assert process.returncode == 0 and "has finished" in process.stdout_text
    assert caller.log("cross_validate.sh").read_text().splitlines()[-1] == "last words"


def test_create_csv_runs_in_the_foreground(caller):
    further = ["--folds", "5", "--data_path", "my data"]
    process = caller.run("create_csv.sh", "out folder", "1", *further, EXIT=7)
    call = caller.call()
    expected = [str(ROOT / "create_csv.py"), "--out_path", "out folder", "--random", "1"]
    assert call["argv"] == expected + further
    assert call["cwd"] == str(caller.folder)
    assert process.returncode == 7
    assert process.stdout_text.splitlines() == ["out ", "last words"]
    assert process.stderr_text == "err\n"
    assert not list(caller.folder.glob("*.log"))


@pytest.mark.parametrize("script", ["train_standalone.sh", "eval.sh"])
def test_the_launcher_returns_while_the_process_goes_on(caller, script):
    process = caller.run(script, *caller.arguments(script), START_SECONDS=1, SLEEP=600)
    assert process.returncode == 0
    pid = caller.call()["pid"]
    assert f"process {pid}" in process.stdout_text
    assert alive(pid)
    assert os.getpgid(pid) == pid
    os.kill(pid, signal.SIGHUP)  # what closing the terminal sends
    assert "finished" not in process.stdout_text
    time.sleep(0.2)
    assert alive(pid)
    assert caller.log(script).read_text().splitlines() == ["out ", "err"]


def test_the_launcher_returns_when_the_status_file_says_running(caller):
    script = "train_standalone.sh"
    process = caller.run(
        script, *caller.arguments(script), START_SECONDS=60, SLEEP=60, STATE="running"
    )
    assert (process.returncode, process.stderr_text) == (0, "")
    call = caller.call()
    assert alive(call["pid"])
    assert not Path(call["env"]["VNET_STATUS_FILE"]).parent.exists()


# Launcher, its key in the status file, further arguments, what continues it (None: nothing does).
WORK = {
    "train": ("train_standalone.sh", "run_folder", ["--set", "task=a b"], ["--resume", "{folder}"]),
    "continue": ("train_standalone_gpu.sh", "run_folder", ["--continue"], []),
    "cross-validation": ("cross_validate.sh", "results", ["--preset", "compact"], []),
    "evaluation": ("eval.sh", "results", [], None),
}


@pytest.mark.parametrize(
    ("work", "name"),
    [*((work, "my run") for work in WORK), ("train", 'l\u00e4uft \U0001f600 "$HOME" a\\b')],
)
def test_the_launcher_says_where_the_files_are_and_how_to_go_on(caller, work, name):
    script, key, further, more = WORK[work]
    arguments = caller.arguments(script) if script in TARGETS else ["my data", "5"]
    folder = caller.folder / name
    folder.mkdir()
    variables = {"DEVICE_TARGET": "CPU", "RESUME": 1, "LC_ALL": "C"}
    state = {"START_SECONDS": 60, "SLEEP": 60, "STATE": "running"}
    state["WHERE"] = json.dumps({"pid": 1, key: str(folder)})
    process = caller.run(script, *arguments, *further, **variables, **state)
    told = dict(line.strip().split(": ", 1) for line in process.stdout_text.splitlines()[1:])
    assert told.pop("folder") == str(folder)
    assert set(told) == {"follow", "stop"} | ({"resume"} if more is not None else set())
    if more is not None:
        words = ["DEVICE_TARGET=CPU", f"PYTHON={caller.python}", "bash"]
        words += [str(ROOT / "scripts" / script), *arguments, *further]
        words += [word.format(folder=folder) for word in more]
        # As a shell reads it.
        text = subprocess.run(
            ["bash", "-c", f"printf '%s\\n' {told['resume']}"], capture_output=True, text=True
        )
        assert text.stdout.splitlines() == words


def test_no_line_of_the_log_makes_the_launcher_return(caller):
    """Else it would not have seen the end."""
    lines, ending = "|run: results|evaluating 3 cases", {"SLEEP": 0.5, "EXIT": 3}
    script = "eval.sh"
    process = caller.run(
        *(script, *caller.arguments(script)),
        **{"START_SECONDS": 60, "STATE": "starting", "PRINT": lines, **ending},
    )
    assert process.returncode == 3


@pytest.mark.parametrize(("ending", "code"), [({"EXIT": 3}, 3), ({"DIE_OF": 9}, 137)])
def test_an_early_death_is_told_at_once(caller, ending, code):
    script = "train_standalone_gpu.sh"
    lines = "|".join(str(number) for number in range(40))
    # Hangs if the launcher waits for START_SECONDS to pass.
    process = caller.run(
        script, *caller.arguments(script), START_SECONDS=600, SLEEP=0.3, PRINT=lines, **ending
    )
    assert process.returncode == code
    first, *rest = process.stderr_text.splitlines()
    assert first == (
        f"error: train.py ended with exit code {code}; the end of {caller.log(script)}:"
    )
    assert rest == [f"out {number}" for number in range(22, 40)] + ["err", "last words"]


@pytest.mark.parametrize(
    ("script", "code"), [("train_standalone.sh", 0), ("train_standalone.sh", 1), ("eval_gpu.sh", 2)]
)
def test_wait_passes_output_and_exit_code_on(caller, script, code):
    lines = "|".join(str(number) for number in range(500))
    process = caller.run(
        script, *caller.arguments(script), WAIT=1, EXIT=code, SLEEP=0.3, PRINT=lines
    )
    assert process.returncode == code
    log = caller.log(script).read_text()
    assert log.splitlines() == [f"out {number}" for number in range(500)] + ["err", "last words"]
    started = f"follow: tail -f '{caller.log(script)}'\n  stop:   kill {caller.call()['pid']}\n"
    assert process.stdout_text.endswith(f"  {started}{log}")
    assert process.stderr_text == ""


def test_wait_goes_on_when_nobody_reads_its_output(caller):
    process = caller.start("eval.sh", *caller.arguments("eval.sh"), WAIT=1, SLEEP=0.5, EXIT=4)
    caller.call()
    process.stdout.close()
    assert process.wait(timeout=120) == 4
    assert caller.log("eval.sh").read_text().endswith("last words\n")


@pytest.mark.parametrize(
    ("sent", "variables", "code"),
    [
        (signal.SIGINT, {"WAIT": 1}, 130),
        (signal.SIGTERM, {"WAIT": 1}, 143),
        (signal.SIGHUP, {"WAIT": 1}, 129),
        (signal.SIGTERM, {"WAIT": 1, "STUBBORN": 1, "STOP_SECONDS": 1}, 143),
        (signal.SIGINT, {"START_SECONDS": 60}, 130),
    ],
)
def test_a_stopped_launcher_leaves_no_process(caller, sent, variables, code):
    script = "train_standalone.sh"
    process = caller.start(script, *caller.arguments(script), SLEEP=60, GRANDCHILD=1, **variables)
    call = caller.call()
    wait_until(lambda: caller.log(script).read_text().endswith("err\n"))
    os.killpg(process.pid, sent)  # as a terminal does
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code
    assert output.endswith(f"stopped process {call['pid']}\n")
    assert errors == ""
    wait_until(lambda: not alive(call["pid"]) and not alive(call["grandchild"]))
    assert "last words" not in caller.log(script).read_text()


def test_sh_that_is_bash(caller, tmp_path):
    sh = tmp_path / "sh"
    sh.symlink_to(shutil.which("bash"))
    script = "train_standalone.sh"
    command = [str(sh), str(ROOT / "scripts" / script), *caller.arguments(script)]
    for number in range(2):
        process = subprocess.run(
            command, cwd=caller.folder, env=caller.environment(), capture_output=True, text=True
        )
        assert (process.returncode, process.stderr) == (0, "")
        assert caller.log(script).with_suffix(".log.1").exists() == bool(number)


def test_a_second_signal_reaches_what_a_launcher_waits_for(caller):
    script = "train_standalone.sh"
    process = caller.start(script, *caller.arguments(script), WAIT=1, SLEEP=60, SECOND=1)
    call = caller.call()
    wait_until(lambda: caller.log(script).read_text().endswith("err\n"))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output.endswith(f"stopped process {call['pid']}\n")
    assert errors == ""
    assert not alive(call["pid"])


@pytest.mark.parametrize("script", ["train_standalone.sh", "eval_gpu.sh"])
def test_device_target_from_the_environment(caller, script):
    assert caller.run(script, *caller.arguments(script), DEVICE_TARGET="CPU").returncode == 0
    assert caller.call()["argv"][1:3] == ["--device_target", "CPU"]


@pytest.mark.parametrize("script", TRAINERS)
def test_resume_comes_before_what_the_user_adds(caller, script):
    further = ["--resume", "results/run 1"]
    assert caller.run(script, *caller.arguments(script), *further, RESUME=1).returncode == 0
    assert caller.call()["argv"][-4:] == ["train set.csv", "--resume", *further]


def test_no_resume_unasked(caller):
    script = "train_standalone.sh"
    assert caller.run(script, *caller.arguments(script), RESUME=0).returncode == 0
    assert "--resume" not in caller.call()["argv"]


def test_a_folder_of_folds_as_split(caller):
    assert caller.run("train_standalone.sh", "0", "my data", ".").returncode == 0
    assert caller.call()["argv"][-1] == "."


def test_an_earlier_log_is_kept_even_while_it_is_written(caller):
    script = "train_standalone.sh"
    log = caller.log(script)
    log.write_text("first\n")
    second = caller.start(script, *caller.arguments(script), WAIT=1, SLEEP=1, PRINT="second")
    caller.call()
    caller.record.unlink()
    third = caller.run(script, *caller.arguments(script), PRINT="third")
    assert f"the earlier log is now {log}.2" in third.stdout_text
    second_output, _ = second.communicate(timeout=120)
    assert f"the earlier log is now {log}.1" in second_output
    assert second_output.endswith("out second\nerr\nlast words\n")
    assert Path(f"{log}.1").read_text() == "first\n"
    assert Path(f"{log}.2").read_text() == "out second\nerr\nlast words\n"
    assert log.read_text() == "out third\nerr\nlast words\n"


def test_a_log_that_cannot_be_written(caller):
    log = caller.log("eval.sh")
    log.mkdir()
    process = caller.run("eval.sh", *caller.arguments("eval.sh"))
    assert process.returncode == 1
    assert process.stderr_text.startswith(f"error: cannot write the log {log}: ")
    assert process.stderr_text.count("\n") == 1
    assert not caller.record.exists()


TRAIN_USAGE = "DEVICE_ID DATA_PATH TRAIN_SPLIT_FILE_PATH [further arguments for train.py]"
EVAL_USAGE = "DEVICE_ID CKPT_PATH DATA_PATH EVAL_SPLIT_FILE_PATH [further arguments for eval.py]"
CSV_USAGE = "OUT_PATH RANDOM [further arguments for create_csv.py]"
INFER_USAGE = (
    "MINDIR_PATH DATA_PATH SPLIT_FILE_PATH "
    "[DEVICE_ID [further arguments for preprocess.py and postprocess.py]]"
)
CROSS_USAGE = "DATA_PATH K [further arguments for cross_validate.py]"
USAGE = {
    "cross_validate.sh": CROSS_USAGE,
    **dict.fromkeys(TRAINERS, TRAIN_USAGE),
    **dict.fromkeys(EVALUATORS, EVAL_USAGE),
    "create_csv.sh": CSV_USAGE,
    "run_infer_310.sh": INFER_USAGE,
}


@pytest.mark.parametrize(
    ("script", "arguments", "complaint"),
    [
        ("train_standalone.sh", [], None),
        ("train_standalone_gpu.sh", ["0", "my data"], None),
        ("train_standalone.sh", ["one", "my data", "train set.csv"], "DEVICE_ID 'one' is not"),
        ("train_standalone.sh", ["-1", "my data", "train set.csv"], "DEVICE_ID '-1' is not"),
        ("train_standalone.sh", ["", "my data", "train set.csv"], "DEVICE_ID '' is not"),
        ("train_standalone.sh", ["0", "no data", "train set.csv"], "DATA_PATH 'no data' is not"),
        ("train_standalone.sh", ["0", "best.ckpt", "train set.csv"], "DATA_PATH 'best.ckpt' is"),
        ("train_standalone_gpu.sh", ["0", "my data", "no.csv"], "TRAIN_SPLIT_FILE_PATH 'no.csv'"),
        ("eval.sh", ["0", "best.ckpt", "my data"], None),
        ("eval.sh", ["0", "no.ckpt", "my data", "train set.csv"], "CKPT_PATH 'no.ckpt' is not"),
        ("eval_gpu.sh", ["x", "best.ckpt", "my data", "train set.csv"], "DEVICE_ID 'x' is not"),
        ("eval_gpu.sh", ["0", "best.ckpt", "no", "train set.csv"], "DATA_PATH 'no' is not"),
        ("eval_gpu.sh", ["0", "best.ckpt", "my data", "no"], "EVAL_SPLIT_FILE_PATH 'no' is not"),
        ("cross_validate.sh", ["my data"], None),
        ("cross_validate.sh", ["no data", "5"], "DATA_PATH 'no data' is not"),
        ("cross_validate.sh", ["my data", "1"], "K '1' is not a number of folds from 2"),
        ("cross_validate.sh", ["my data", "five"], "K 'five' is not"),
        ("create_csv.sh", ["out"], None),
        ("create_csv.sh", ["out", "yes"], "RANDOM 'yes' is neither 0 nor 1"),
        ("run_infer_310.sh", [], None),
        ("run_infer_310.sh", ["best.ckpt", "my data"], None),
        ("run_infer_310.sh", ["no.mindir", "my data", "train set.csv"], "MINDIR_PATH 'no.mindir'"),
        ("run_infer_310.sh", ["my data", "my data", "train set.csv"], "MINDIR_PATH 'my data' is"),
        ("run_infer_310.sh", ["best.ckpt", "no", "train set.csv"], "DATA_PATH 'no' is not a"),
        ("run_infer_310.sh", ["best.ckpt", "my data", "no"], "SPLIT_FILE_PATH 'no' is not a"),
    ],
)
def test_bad_arguments(caller, script, arguments, complaint):
    usage = f"usage: bash scripts/{script} {USAGE[script]}"
    process = caller.run(script, *arguments)
    assert process.returncode == 2
    assert process.stdout_text == ""
    if complaint is None:
        assert process.stderr_text == f"{usage}\n"
    else:
        assert process.stderr_text.startswith(f"error: {complaint}")
        assert process.stderr_text.endswith(f" ({usage})\n")
        assert process.stderr_text.count("\n") == 1
    assert not caller.record.exists()
    assert not list(caller.folder.glob("*.log*"))


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"DEVICE_TARGET": "TPU"}, "DEVICE_TARGET 'TPU' is not Ascend, GPU or CPU"),
        ({"PYTHON": "/no/such/python"}, "PYTHON '/no/such/python' cannot be run"),
        ({"WAIT": "true"}, "WAIT 'true' is neither 0 nor 1"),
        ({"RESUME": "yes"}, "RESUME 'yes' is neither 0 nor 1"),
        ({"START_SECONDS": "abc"}, "START_SECONDS 'abc' is not a number of seconds"),
        ({"VNET_NO_SYSTEM_PACKAGES": "yes"}, "VNET_NO_SYSTEM_PACKAGES 'yes' is neither 0 nor"),
        ({"STOP_SECONDS": "5s"}, "STOP_SECONDS '5s' is not a number of seconds"),
    ],
)
def test_bad_environment(caller, variables, complaint):
    process = caller.run("eval.sh", *caller.arguments("eval.sh"), **variables)
    assert process.returncode == 2
    assert process.stderr_text.startswith(f"error: {complaint}")
    assert process.stderr_text.count("\n") == 1
    assert not list(caller.folder.glob("*.log*"))


@pytest.mark.parametrize("script", USAGE)
def test_help(caller, script):
    process = caller.run(script, "--help")
    assert process.returncode == 0
    usage, _, description = process.stdout_text.partition("\n")
    assert usage == f"usage: bash scripts/{script} {USAGE[script]}"
    assert f"bash scripts/{script} " in description and "#" not in description
    assert not caller.record.exists()


# ------------------------------------------------------------------- which Python, environment

# Stands for a Python that makes environments; logs its calls, fails where the test asks.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "$(basename "$0") ${*//$'\\n'/ }" >>"$CALLS"
case "$*" in
  *hexversion* | *version_info*) case "$2" in
    *sys.exit*) exit "${UNSUPPORTED:-0}" ;;
    *venv*) echo python3.11-venv ;;
    *) echo "${VERSION:-3 11 7 /usr}" ;;
    esac ;;
  *ctypes*) [[ -z ${LACKS_LIBRARY:-} ]] || exit 1 ;;
  "-m venv"*)
    [[ -z ${LACKS_VENV:-} || -e $CALLS.apt ]] || exit 1
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python" ;;
  "-m pip"*)
    [[ -z ${PIP_EXIT:-} ]] || exit "$PIP_EXIT"
    for tool in ruff mypy shellcheck clang-format; do
      printf '#!/bin/sh\\necho %s "$@" >>"$CALLS"\\nexit "${%s_exit:-0}"\\n' $tool ${tool/-/_} \\
        >"${0%/*}/$tool"
      chmod +x "${0%/*}/$tool"
    done ;;
  */create_phantom.py*) [[ -z ${PHANTOM_EXIT:-} ]] || { echo "no space"; exit "$PHANTOM_EXIT"; } ;;
  */create_csv.py*) printf 'Case1.mhd\\nCase2.mhd\\n' | tee train.csv >val.csv; mkdir data ;;
  */train.py*)
    echo "epoch 5 of 9: validation Dice 0.5, best 0.5"
    [[ -z ${TRAIN_EXIT:-} ]] || { echo "error: NaN"; exit "$TRAIN_EXIT"; }
    mkdir -p results/infer/vnet.a.1/ckpt
    touch results/infer/vnet.a.1/ckpt/best.ckpt ;;
  */eval.py*) echo "avg_dice: 0.875"; exit "${EVAL_EXIT:-0}" ;;
  "-m pytest"*) echo "== 5 passed in $PWD as ${VIRTUAL_ENV##*/} =="; exit "${PYTEST_EXIT:-0}" ;;
esac
"""


REQUIREMENTS = [
    f"requirements{part}.txt" for part in ("", "-dicom", "-onnx", "-tensorboard", "-dev")
]


class Checkout:
    """A copy of the scripts, with a stand-in for python3.11."""

    def __init__(self, folder):
        self.root = folder / "my checkout"
        self.calls = folder / "calls"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        for name in REQUIREMENTS:
            (self.root / name).write_text(name)
        (self.root / ".ci").mkdir()
        shutil.copy(ROOT / ".ci" / "run", self.root / ".ci")
        self.python = write_executable(folder / "bin" / "python3.11", FAKE_PYTHON)
        for name in ["g++", "c++", "clang++"]:
            write_executable(self.python.with_name(name), '#!/bin/sh\nexit "${NO_COMPILER:-0}"\n')
        write_executable(
            self.python.with_name("df"),  # else the tests would fail where little is left
            '#!/bin/sh\necho "   Avail"\necho "    ${FREE_MB:-9999}"\n',
        )

    def add_apt_get(self):
        """A stand-in for the system's package manager, which fails where the test asks."""
        record = 'touch "$CALLS.apt"\necho apt-get "$@" >>"$CALLS"\nexit "${APT_EXIT:-0}"'
        write_executable(self.python.with_name("apt-get"), f"#!/bin/sh\n{record}\n")

    def run(self, *command, **variables):
        """Runs a command; returns the finished process and the calls of the stand-ins."""
        self.calls.write_text("")
        env = {"PATH": f"{self.python.parent}:{os.environ['PATH']}", "CALLS": str(self.calls)}
        process = subprocess.run(
            command, cwd=self.root.parent, env=env | variables, capture_output=True, text=True
        )
        return process, self.calls.read_text().splitlines()

    def prepare(self, *files, **variables):
        """What prepare_environment did: 'venv' and 'pip', and the process."""
        command = 'source "$1/scripts/common.sh"; shift; prepare_environment "$@"'
        process, calls = self.run("bash", "-c", command, "-", str(self.root), *files, **variables)
        return [
            word for call in calls for word in ["venv", "pip"] if f" -m {word} " in call
        ], process


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_which_python_the_launchers_take(checkout, tmp_path):
    def chosen(**variables):
        command = f"source '{checkout.root}/scripts/common.sh'; find_python"
        process, _ = checkout.run("bash", "-c", command, **variables)
        return process.stdout.strip()

    on_path = shutil.which("python3")
    active = write_executable(tmp_path / "active" / "bin" / "python", "")
    conda = write_executable(tmp_path / "conda" / "bin" / "python", "")
    environments = {"CONDA_PREFIX": str(tmp_path / "conda"), "CONDA_DEFAULT_ENV": "vnet"}
    assert chosen() == on_path
    own = write_executable(checkout.root / ".venv" / "bin" / "python", "")
    assert chosen() == str(own)
    assert chosen(**environments | {"CONDA_DEFAULT_ENV": "base"}) == str(own)
    assert chosen(**environments) == str(conda)
    environments["VIRTUAL_ENV"] = str(tmp_path / "active")
    assert chosen(**environments) == str(active)
    assert chosen(**environments, PYTHON=str(checkout.python)) == str(checkout.python)


def test_the_environment_is_made_once(checkout):
    steps, process = checkout.prepare("requirements.txt")
    assert process.returncode == 0, process.stderr
    assert steps == ["venv", "pip"]
    assert checkout.prepare("requirements.txt")[0] == []
    # The tests' packages join it, and the demo then still finds it complete.
    both = ["requirements.txt", "requirements-dev.txt"]
    assert checkout.prepare(*both)[0] == ["pip"]
    assert checkout.prepare(*both)[0] == []
    assert checkout.prepare("requirements.txt")[0] == []
    (checkout.root / "requirements-dev.txt").write_text("changed")
    assert checkout.prepare(*both)[0] == ["pip"]
    (checkout.root / "requirements.txt").write_text("changed")
    assert checkout.prepare(*both)[0] == ["venv", "pip"]
    assert checkout.prepare(*both, VERSION="3 12 1 /usr")[0] == ["venv", "pip"]


def test_an_interrupted_install_counts_for_nothing(checkout):
    both = ["requirements.txt", "requirements-dev.txt"]
    steps, process = checkout.prepare("requirements.txt", PIP_EXIT="1")
    assert steps == ["venv", "pip"]
    assert process.returncode == 1
    assert process.stderr.startswith("error: pip could not install requirements.txt")
    assert checkout.prepare("requirements.txt")[0] == ["venv", "pip"]
    assert checkout.prepare(*both, PIP_EXIT="130")[0] == ["pip"]
    assert checkout.prepare(*both)[0] == ["venv", "pip"]


@pytest.mark.parametrize(
    ("script", "free_mb", "message"),
    [
        ("run_demo.sh", 3000, "has 3000 MB left, the environment .venv takes up to 4000 MB"),
        ("run_tests.sh", 3999, "has 3999 MB left, the environment .venv takes up to 4000 MB"),
    ],
)
def test_too_little_space_for_the_environment(checkout, script, free_mb, message):
    process, calls = checkout.run("bash", f"{checkout.root}/scripts/{script}", FREE_MB=str(free_mb))
    assert process.returncode == 1
    assert process.stderr == f"error: {checkout.root} {message}: make room and start again\n"
    assert not any(" -m pip " in call for call in calls)


def test_too_little_space_for_the_tests(checkout, tmp_path):
    script = f"{checkout.root}/scripts/run_tests.sh"
    for unknown in ({}, {"FREE_MB": "-"}):
        assert checkout.run("bash", script, **unknown)[0].returncode == 0
    process, _ = checkout.run("bash", script, TMPDIR=f"{tmp_path}/none")
    assert process.returncode == 1
    assert process.stderr.startswith(f"error: {tmp_path}/none: no such folder, a run of the tests")
    process, calls = checkout.run("bash", script, FREE_MB="287", TMPDIR=str(tmp_path))
    assert process.returncode == 1
    assert process.stderr == (
        f"error: {tmp_path} has 287 MB left, a run of the tests (TMPDIR names another folder) "
        "takes up to 1500 MB: make room and start again\n"
    )
    assert not any(" -m pytest" in call for call in calls)


def test_a_foreign_environment_stays(checkout):
    theirs = write_executable(checkout.root / ".venv" / "bin" / "python", "theirs")
    steps, process = checkout.prepare("requirements.txt")
    assert steps == []
    assert process.returncode == 1
    assert process.stderr.startswith(f"error: {theirs.parents[1]} was not made by this script")
    assert theirs.read_text() == "theirs"


def test_no_supported_python(checkout):
    steps, process = checkout.prepare(
        "requirements.txt", UNSUPPORTED="1", PYTHON=str(checkout.python)
    )
    assert (steps, process.returncode) == ([], 1)
    assert process.stderr.startswith("error: no Python 3.10, 3.11 or 3.12 among ")
    assert process.stderr.count("\n") == 1


def test_a_shim_that_does_not_run_is_passed_over(checkout):
    write_executable(checkout.python, "#!/bin/sh\nexit 127\n")
    write_executable(checkout.python.with_name("python3.10"), FAKE_PYTHON)
    _, process = checkout.prepare("requirements.txt")
    assert process.returncode == 0, process.stderr
    assert "python3.10 -m venv" in checkout.calls.read_text()


@pytest.mark.parametrize(
    ("lacks", "package"), [("LACKS_VENV", "python3.11-venv"), ("LACKS_LIBRARY", "libgomp1")]
)
def test_a_missing_system_package(checkout, lacks, package):
    checkout.add_apt_get()
    _, process = checkout.prepare("requirements.txt", **{lacks: "1"})
    calls = [call for call in checkout.calls.read_text().splitlines() if "apt-get" in call]
    if os.geteuid() == 0:
        assert process.returncode == 0, process.stderr
        assert [call.split()[1] for call in calls] == ["update", "install"]
        assert calls[1].endswith(f" {package}")
    else:
        assert process.returncode == 1
        assert not calls
        assert f"sudo apt-get install {package}" in process.stderr.splitlines()[-1]


CPP_FOLDERS = ("src/fast_conv3d/native", "benchmarks", "tests/fast_conv3d")


@pytest.mark.parametrize("script", ["scripts/run_tests.sh", ".ci/run"])
def test_run_tests(checkout, script):
    process, calls = checkout.run("bash", str(checkout.root / script), PYTEST_EXIT="5")
    assert process.returncode == 5, process.stderr
    assert process.stdout.endswith(f"== 5 passed in {checkout.root} as .venv ==\n")
    linters = ("ruff", "mypy", "shellcheck", "clang-format")
    tools = [call.strip() for call in calls if call.split()[0] in linters]
    assert tools[:3] == ["ruff format --check .", "ruff check .", "mypy"]
    assert tools[3].startswith("shellcheck ")
    names = {script.name for script in (ROOT / "scripts").glob("*.sh")}
    checked = {Path(word).name for word in tools[3].split()}
    assert names | {"build.sh", "run"} <= checked
    sources = [
        *(f"{folder}/*.cpp" for folder in CPP_FOLDERS),
        "src/fast_conv3d/native/*.h",
        *(f"ascend310_infer/src/*.{suffix}" for suffix in ("h", "cc")),
    ]
    assert tools[4] == f"clang-format --dry-run --Werror {' '.join(sources)}"
    (installed,) = [call for call in calls if " -m pip install " in call]
    for name in REQUIREMENTS:
        assert f"--requirement {checkout.root}/{name}" in installed
    assert calls[-1] == PYTEST


def test_run_tests_passes_arguments_on(checkout):
    _, calls = checkout.run("bash", f"{checkout.root}/scripts/run_tests.sh", "-k", "dice", "-x")
    assert calls[-1] == f"{PYTEST} -k dice -x"


@pytest.mark.parametrize("tool", ["ruff", "mypy", "shellcheck", "clang_format"])
def test_run_tests_stops_at_a_linter(checkout, tool):
    process, calls = checkout.run(
        "bash", f"{checkout.root}/scripts/run_tests.sh", **{f"{tool}_exit": "1"}
    )
    assert process.returncode == 1
    assert process.stderr.startswith("error: ")
    assert not any(" -m pytest" in call for call in calls)


def test_run_tests_needs_a_compiler(checkout):
    checkout.add_apt_get()
    script = f"{checkout.root}/scripts/run_tests.sh"
    process, calls = checkout.run("bash", script)
    assert process.returncode == 0, process.stderr
    assert not any(call.startswith("apt-get") for call in calls)
    process, calls = checkout.run("bash", script, NO_COMPILER="127")
    if os.geteuid() == 0:
        assert process.returncode == 0, process.stderr
        assert [call for call in calls if call.startswith("apt-get")][1].endswith(" g++")
    else:
        assert process.returncode == 1
        assert "sudo apt-get install g++" in process.stderr.splitlines()[-1]
    process, calls = checkout.run("bash", script, NO_COMPILER="127", CXX="the user's own")
    assert process.returncode == 0, process.stderr
    assert not any(call.startswith("apt-get") for call in calls)


@pytest.mark.parametrize(
    ("script", "installs"),
    [
        ("run_tests.sh", ["g++-aarch64-linux-gnu", "openmpi-bin", "chromium"]),
        ("run_demo.sh", ["libgomp1", "g++"]),
    ],
)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_says_what_is_needed_and_installed_and_does_nothing(
    checkout, script, installs, option
):
    checkout.add_apt_get()
    before = set(checkout.root.parent.rglob("*"))
    process, calls = checkout.run("bash", f"{checkout.root}/scripts/{script}", option)
    assert (process.returncode, process.stderr, calls) == (0, "", [])
    for word in [f"bash scripts/{script}", ".venv", "apt-get", "VNET_NO_SYSTEM_PACKAGES=1"]:
        assert word in process.stdout
    assert all(package in process.stdout for package in installs)
    assert "shellcheck" not in process.stdout and "#" not in process.stdout
    assert set(checkout.root.parent.rglob("*")) == before | {checkout.calls}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs system packages")
def test_a_system_package_is_named_before_it_is_installed(checkout):
    checkout.add_apt_get()
    script = f"{checkout.root}/scripts/run_tests.sh"
    process, calls = checkout.run("bash", script, NO_COMPILER="127")
    assert process.returncode == 0, process.stderr
    (line,) = [line for line in process.stderr.splitlines() if "g++ with apt-get" in line]
    assert "VNET_NO_SYSTEM_PACKAGES=1" in line
    assert any(call.endswith("install -qq -y g++") for call in calls)


def test_no_system_package_is_installed_where_the_user_forbids_it(checkout):
    checkout.add_apt_get()
    script = f"{checkout.root}/scripts/run_tests.sh"
    forbidden = {"VNET_NO_SYSTEM_PACKAGES": "1"}
    process, calls = checkout.run("bash", script, NO_COMPILER="127", **forbidden)
    assert process.returncode == 1
    assert "sudo apt-get install g++" in process.stderr.splitlines()[-1]
    assert not any(call.startswith("apt-get") or " -m pytest" in call for call in calls)
    process, calls = demo(checkout, NO_COMPILER="127", **forbidden)
    assert process.returncode == 0, process.stderr
    assert "no C++ compiler" in process.stdout
    assert not any("apt-get" in call for call in calls)


@pytest.mark.parametrize("forbidden", ["0", "1"])
def test_what_tests_are_skipped_for_want_of_a_system_package(checkout, forbidden):
    """A PATH of stand-ins and what the scripts call, without the optional programs."""
    checkout.add_apt_get()
    checkout.prepare(*REQUIREMENTS)
    tools = checkout.python.parent
    for name in ["bash", "awk", "basename", "dirname", "flock", "grep", "id", "sha256sum", "touch"]:
        tools.joinpath(name).symlink_to(shutil.which(name))
    process, calls = checkout.run(
        shutil.which("bash"),
        f"{checkout.root}/scripts/run_tests.sh",
        PATH=str(tools),
        APT_EXIT="1",
        VNET_NO_SYSTEM_PACKAGES=forbidden,
    )
    assert process.returncode == 0, process.stderr
    skipped = [line for line in process.stderr.splitlines() if " is skipped (" in line]
    assert [line.rpartition("apt-get install ")[2] for line in skipped] == [
        "g++-aarch64-linux-gnu qemu-user)",
        "iproute2)",
        "openmpi-bin)",
        "chromium chromium-driver)",
        "dicom3tools)",
    ]
    tried = any(call.startswith("apt-get") for call in calls)
    assert tried == (forbidden == "0" and os.geteuid() == 0)
    assert calls[-1] == PYTEST


@pytest.mark.parametrize("cache", [None, "my cache"])
def test_build_fast_conv3d_from_any_folder(checkout, cache):
    variables = {"PYTHON": str(checkout.python)} | ({"FAST_CONV3D_CACHE": cache} if cache else {})
    write_executable(
        checkout.python, '#!/bin/sh\necho "$PWD" "$FAST_CONV3D_CACHE" "$@" >"$CALLS"\nexit 3\n'
    )
    process, calls = checkout.run(
        "bash", f"{checkout.root}/scripts/build_fast_conv3d.sh", "--help", **variables
    )
    assert process.returncode == 3, process.stderr
    folder = f"{checkout.root.parent}/my cache" if cache else ""
    assert calls == [f"{checkout.root} {folder} -m src.fast_conv3d.build --help"]


# ------------------------------------------------------------------------------------- demo


def demo(checkout, *arguments, **variables):
    return checkout.run("bash", f"{checkout.root}/scripts/run_demo.sh", *arguments, **variables)


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_demo(checkout):
    variables = {"RESUME": "1", "WAIT": "0", "DEVICE_TARGET": "GPU", "PYTHON": str(checkout.python)}
    process, calls = demo(checkout, **variables)
    assert process.returncode == 0, process.stderr
    folder = checkout.root.parent / "vnet_demo"
    commands = [call for call in calls if ".py " in call]
    names = ["create_phantom", "create_csv", "train", "eval"]
    assert [Path(call.split(".py ")[0]).name for call in commands] == names
    assert "--random 1 --data_path data" in commands[1]
    assert (
        "--device_target CPU --data_path data --train_split_file_path train.csv "
        "--val_split_file_path val.csv --set VolSize=" in commands[2]
    )
    assert "--resume" not in commands[2]
    assert (
        "--device_target CPU --ckpt_path results/infer/vnet.a.1/ckpt/best.ckpt "
        "--data_path data --eval_split_file_path val.csv" in commands[3]
    )
    steps = [line for line in process.stdout.splitlines() if line.startswith("[")]
    assert [line[:5] for line in steps] == [f"[{number}/5]" for number in range(1, 6)]
    assert "      epoch 5 of 9: validation Dice 0.5" in process.stdout
    assert process.stdout.endswith("Mean Dice of 2 validation cases: 0.875\n")
    assert (folder / "train.log").is_file()

    before = files(folder)
    process, _ = demo(checkout)
    assert process.returncode == 0
    assert process.stdout.startswith("vnet_demo is there already and stays as it is\n")
    assert files(folder) == before
    assert (folder.with_name("vnet_demo_2") / "eval.log").is_file()


def test_two_demos_at_once(checkout):
    folder = checkout.root.parent / "vnet_demo"
    folder.mkdir()
    with subprocess.Popen(["flock", str(folder), "sleep", "60"]) as first:
        wait_until(lambda: subprocess.run(["flock", "-n", str(folder), "true"]).returncode)
        process, _ = demo(checkout)
        first.kill()
    assert process.returncode == 0, process.stderr
    assert not any(folder.iterdir()) and (folder.with_name("vnet_demo_2") / "eval.log").is_file()


def test_demo_in_a_folder_of_the_users_choice(checkout):
    empty = checkout.root.parent / "an empty folder"
    empty.mkdir()
    process, _ = demo(checkout, "an empty folder")
    assert process.returncode == 0, process.stderr
    assert (empty / "eval.log").is_file()
    assert not (checkout.root.parent / "vnet_demo").exists()


@pytest.mark.parametrize("arguments", [["--folder"], ["-x"], ["one", "two"]])
def test_demo_with_other_words_than_a_folder(checkout, arguments):
    process, calls = demo(checkout, *arguments)
    assert process.returncode == 2
    assert process.stderr.startswith("error: run_demo.sh ") and arguments[-1] in process.stderr
    assert process.stderr.endswith("usage: bash scripts/run_demo.sh [FOLDER]\n")
    assert calls == []
    assert not list(checkout.root.parent.glob("*vnet_demo*"))


@pytest.mark.parametrize("apt_exit", ["0", "1"])
def test_demo_without_a_compiler(checkout, apt_exit):
    checkout.add_apt_get()
    process, calls = demo(checkout, NO_COMPILER="127", APT_EXIT=apt_exit)
    assert process.returncode == 0, process.stderr
    installed = any(call.startswith("apt-get install") for call in calls)
    assert installed == (os.geteuid() == 0 and apt_exit == "0")
    assert ("no C++ compiler: training takes MindSpore's own" in process.stdout) != installed
    assert "Mean Dice of 2 validation cases" in process.stdout
    assert not any(call.startswith("apt-get") for call in demo(checkout)[1])


@pytest.mark.parametrize(
    ("variables", "step", "log", "cause"),
    [
        ({"PHANTOM_EXIT": "1"}, "2 of 5", "create_phantom.log", "no space"),
        ({"TRAIN_EXIT": "1"}, "4 of 5", "train.log", "error: NaN"),
        ({"EVAL_EXIT": "1"}, "5 of 5", "eval.log", "avg_dice"),
    ],
)
def test_demo_stops_at_a_step_that_fails(checkout, variables, step, log, cause):
    process, _ = demo(checkout, **variables)
    assert process.returncode == 1
    assert cause in process.stderr
    last = process.stderr.splitlines()[-1]
    assert last.startswith(f"error: step {step}, ")
    assert last.endswith(f"/vnet_demo/{log}")
    assert "Done" not in process.stdout


# ------------------------------------------------------------------------------- run_infer_310

# Stands for every program of the four steps: notes its call, then does what the next one needs.
STEP = """#!/usr/bin/env bash
name=${0##*/}
[[ $name != python ]] || name=${1##*/}
[[ $name != -m ]] || name=$2
printf '%s\\x1f' "$name" "$PWD" "${PYTHON-}" "$@" >>"$CALLS"
echo >>"$CALLS"
if [[ $name == "${FAILING-}" ]]; then
  seq 40
  echo "error: what went wrong" >&2
  exit 7
fi
case $name in
  src.export.description)
    if [[ $5 == lite ]]; then echo "${3%.mindir}_lite.mindir"; else echo "${3%.mindir}.vnet"; fi
    exit ;;
  build.sh) mkdir -p "${0%/*}/out" && cp "$0" "${0%/*}/out/main" ;;
  main)
    mkdir -p time_Result
    printf '%s\\n' "loaded" "in/Case00.bin: 5 ms, out" "in/Case00_mirrored.bin: 6 ms, out"
    printf 'an earlier one\\ninference cost average time: 5 ms\\n' \\
      >time_Result/test_perform_static.txt ;;
  postprocess.py)
    printf '%s\\n' "save predicted label for test 'Case00'" "avg_Hausdorff_distance: 2.5" \\
      "avg_dice: 0.875" "predictions and metrics, shown in results/there/report.html" ;;
  preprocess.py)
    folder=results/bin_data line=
    if [[ -n ${RECENTRE-} ]]; then line="recentre: again"; fi
    if [[ $2 == --result_path ]]; then folder+=_recentred line=; fi
    count=2
    if [[ $folder == *_recentred ]]; then
      turns=$(grep -c "^preprocess.py.*result_path" "$CALLS")
      if ((turns > RECENTRE)); then count=; fi
    fi
    echo "${count:+$folder: $count volume(s) of [8, 8, 8] voxels, of 1 case(s)}"
    echo "$line" ;;
esac
echo "$name has run"
"""
STEPS = ["src.export.description", "preprocess.py", "build.sh", "main", "postprocess.py"]
LOGS = dict(zip(STEPS[1:], ["preprocess.log", "build.log", "infer.log", "acc.log"], strict=True))


class Inference:
    """A user's folder with a model and cases, and a checkout whose programs are stand-ins."""

    def __init__(self, checkout):
        self.checkout = checkout
        self.folder = checkout.root.parent / "my folder"
        self.python = write_executable(checkout.root.parent / "my tools" / "python", STEP)
        write_executable(checkout.root / "ascend310_infer" / "build.sh", STEP)
        self.folder.mkdir()
        (self.folder / "my data").mkdir()
        (self.folder / "my vnet.mindir").write_bytes(b"model")
        (self.folder / "val set.csv").write_text("Case00.mhd\n")

    def start(self, *further, **variables):
        return subprocess.Popen(
            ["bash", str(self.checkout.root / "scripts" / "run_infer_310.sh")]
            + ["my vnet.mindir", "my data", "val set.csv", *further],
            cwd=self.folder,
            env={
                "PATH": os.environ["PATH"],
                "CALLS": str(self.checkout.calls),
                "PYTHON": str(self.python),
            }
            | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_signals,
        )

    def run(self, *further, **variables):
        """The ended process, and of each call of a stand-in [name, folder, PYTHON, arguments]."""
        self.checkout.calls.write_text("")
        process = self.start(*further, **variables)
        process.stdout, process.stderr = process.communicate()
        lines = self.checkout.calls.read_text().splitlines()
        calls = [line.removesuffix("\x1f").split("\x1f") for line in lines]
        return process, [[*call[:3], call[3:]] for call in calls]


@pytest.fixture
def inference(checkout):
    return Inference(checkout)


def test_the_four_steps_of_an_inference(inference):
    further = ["--set", "threshold=0.3", "--note", "two words; $HOME *", ""]
    process, calls = inference.run("3", *further, DEVICE_TARGET="CPU")
    assert process.returncode == 0, process.stderr
    assert [call[0] for call in calls] == STEPS
    asked, prepared, built, inferred, evaluated = (call[3] for call in calls)
    root, folder = inference.checkout.root, inference.folder
    # The runtime's own model, as the description says, goes to each step.
    model = str(folder / "my vnet.vnet")
    cases = ["--mindir_path", model, "--data_path", "my data", "--split_file_path", "val set.csv"]
    runtime = ["--runtime", "native"]
    assert asked == ["-m", "src.export.description", str(folder / "my vnet.mindir"), *runtime]
    assert prepared == [str(root / "preprocess.py"), *cases, *further]
    assert built == runtime
    assert inferred == (
        ["--mindir_path", model, "--dataset_path", "results/bin_data"]
        + ["--output_path", "result_Files", "--device_type", "CPU", *runtime, "--device_id", "3"]
    )
    results = ["--result_path", "result_Files"]
    assert evaluated == [str(root / "postprocess.py"), *results, *cases, *further]
    assert [call[1] for call in calls] == [str(root), *[str(folder)] * 4]
    assert calls[2][2] == str(inference.python)  # whose pip build.sh may need
    # What a user wants to know, at the end; all else is in the logs.
    assert process.stdout.splitlines() == [
        f"model: {model}",
        f"preprocess: log {folder / 'preprocess.log'}",
        f"build: log {folder / 'build.log'}",
        f"inference: log {folder / 'infer.log'}",
        "  1 of 2: in/Case00.bin: 5 ms, out",
        "  2 of 2: in/Case00_mirrored.bin: 6 ms, out",
        f"postprocess: log {folder / 'acc.log'}",
        "  1 of 1: save predicted label for test 'Case00'",
        "inference cost average time: 5 ms",
        "avg_Hausdorff_distance: 2.5",
        "avg_dice: 0.875",
        f"report: {folder / 'results' / 'there' / 'report.html'}",
        f"masks: {folder / 'results' / 'there' / 'CASE_test.mhd'}",
    ]
    assert process.stderr == ""
    for name, log in LOGS.items():
        assert (folder / log).read_text().endswith(f"{name} has run\n")


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_an_inference_is_repeated_on_moved_grids_twice_at_most(inference, turns):
    process, calls = inference.run(RECENTRE=str(turns))
    assert process.returncode == 0, process.stderr
    again = ["preprocess.py", "main"] * min(turns, 2) + ["preprocess.py"] * (turns < 2)
    assert [call[0] for call in calls] == [*STEPS[:-1], *again, STEPS[-1]]
    for call in calls[4:-1]:
        if call[0] == "preprocess.py":
            assert call[3][1:] == ["--result_path", "result_Files", *calls[1][3][1:]]
        else:
            place = calls[3][3].index("results/bin_data")
            expected = [*calls[3][3]]
            expected[place] += "_recentred"
            assert call[3] == expected
    logs = {path.name for path in inference.folder.glob("*.log")} - set(LOGS.values())
    infer = [f"infer_recentred{turn}.log" for turn in range(1, min(turns, 2) + 1)]
    recentre = [f"recentre_{turn}.log" for turn in range(1, min(turns + 1, 2) + 1)]
    assert logs == {*infer, *recentre}


@pytest.mark.parametrize(
    ("further", "variables", "device", "runtime"),
    [
        ([], {}, ["Ascend", "0"], "lite"),
        ([], {"DEVICE_TARGET": "CPU"}, ["CPU", "0"], "native"),
        ([""], {"DEVICE_TARGET": "CPU", "RUNTIME": "lite"}, ["CPU", "0"], "lite"),
        (["5"], {"DEVICE_TARGET": "Ascend", "RUNTIME": ""}, ["Ascend", "5"], "lite"),
    ],
)
def test_the_device_of_an_inference(inference, further, variables, device, runtime):
    process, calls = inference.run(*further, **variables)
    assert process.returncode == 0, process.stderr
    words = ["--device_type", device[0], "--runtime", runtime, "--device_id", device[1]]
    assert calls[3][3][-6:] == words
    assert calls[0][3][-1] == runtime and calls[2][3] == ["--runtime", runtime]
    ending = {"lite": "my vnet_lite.mindir", "native": "my vnet.vnet"}[runtime]
    assert calls[3][3][1].endswith(ending)
    assert calls[1][3][-1] == "val set.csv"  # the device is no argument of preprocess.py


@pytest.mark.parametrize(
    ("further", "variables", "complaint"),
    [
        (["x"], {}, "DEVICE_ID 'x' is not a number"),
        (["-1"], {}, "DEVICE_ID '-1' is not a number"),
        (["--set", "threshold=0.3"], {}, "DEVICE_ID '--set' is not a number"),
        ([], {"DEVICE_TARGET": "GPU"}, "DEVICE_TARGET 'GPU' is not Ascend or CPU"),
        ([], {"DEVICE_TARGET": "TPU"}, "DEVICE_TARGET 'TPU' is not Ascend"),
        ([], {"PYTHON": "/no/such/python"}, "PYTHON '/no/such/python' cannot be run"),
        ([], {"DEVICE_TARGET": "CPU", "RUNTIME": "Lite"}, "RUNTIME 'Lite' is not native or lite"),
        ([], {"RUNTIME": "native"}, "RUNTIME 'native' is for DEVICE_TARGET=CPU, not Ascend"),
    ],
)
def test_an_inference_that_cannot_start(inference, further, variables, complaint):
    process, calls = inference.run(*further, **variables)
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: {complaint}")
    assert process.stderr.count("\n") == 1
    assert calls == []
    assert not list(inference.folder.glob("*.log"))


@pytest.mark.parametrize("failing", LOGS)
def test_an_inference_stops_at_the_first_step_that_fails(inference, failing):
    process, calls = inference.run(FAILING=failing)
    assert process.returncode == 7
    last = STEPS.index(failing)
    assert [call[0] for call in calls] == STEPS[: last + 1]
    *end, message = process.stderr.splitlines()
    assert end == [*map(str, range(22, 41)), "error: what went wrong"]
    log = inference.folder / LOGS[failing]
    step = ["preprocess", "build", "inference", "postprocess"][last - 1]
    assert message == f"error: {step} failed; its whole output is in {log}"
    assert log.read_text().splitlines() == [*map(str, range(1, 41)), "error: what went wrong"]
    written = {path.name for path in inference.folder.glob("*.log")}
    assert written == set(list(LOGS.values())[:last])
    assert "avg_dice" not in process.stdout and "average time" not in process.stdout


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stopped_inference_leaves_no_process(inference, sent, code):
    text = inference.python.read_text()
    slow = text.replace(
        "  preprocess.py)\n", '  preprocess.py)\n    echo $$ >"$CALLS.pid"; sleep 60\n'
    )
    inference.python.write_text(slow)
    process = inference.start()
    pid_file = Path(f"{inference.checkout.calls}.pid")
    wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
    second, _ = inference.run()
    assert second.returncode == 1
    assert second.stderr.startswith(f"error: another call works in {inference.folder}: ")
    process.send_signal(sent)
    assert process.wait(60) == code
    assert not alive(int(pid_file.read_text()))


def test_a_model_that_does_not_fit_stops_an_inference_at_once(inference):
    process, calls = inference.run(FAILING="src.export.description")
    assert process.returncode == 7
    assert process.stderr == "error: what went wrong\n"
    assert [call[0] for call in calls] == STEPS[:1]
    assert not list(inference.folder.glob("*.log"))


def test_the_logs_of_an_earlier_inference_are_kept(inference):
    for name, log in LOGS.items():
        (inference.folder / log).write_text(f"first {name}\n")
    process, _ = inference.run()
    assert process.returncode == 0, process.stderr
    for name, log in LOGS.items():
        assert Path(f"{inference.folder / log}.1").read_text() == f"first {name}\n"
        assert (inference.folder / log).read_text().endswith(f"{name} has run\n")


def test_a_log_of_an_inference_that_cannot_be_written(inference):
    (inference.folder / "infer.log").mkdir()
    process, calls = inference.run()
    assert process.returncode == 1
    log = inference.folder / "infer.log"
    assert process.stderr.startswith(f"error: cannot write the log {log}: ")
    assert process.stderr.count("\n") == 1
    assert [call[0] for call in calls] == STEPS[:3]


def test_an_inference_with_a_python_of_the_callers_folder(inference):
    write_executable(inference.folder / "venv" / "python", STEP)
    process, calls = inference.run(PYTHON="venv/python")
    assert process.returncode == 0, process.stderr
    assert [call[0] for call in calls] == STEPS


def test_the_build_takes_the_python_of_the_active_environment(inference):
    active = write_executable(inference.folder / "venv" / "bin" / "python", STEP)
    process, calls = inference.run(PYTHON="", VIRTUAL_ENV=str(active.parents[1]))
    assert process.returncode == 0, process.stderr
    assert calls[2][:3] == ["build.sh", str(inference.folder), str(active)]


def test_a_model_without_its_twin_names_the_export(inference):
    """With the project's own code and its Python, which the script asks before anything else."""
    file = {"format": "MINDIR", "operators": "3-D", "mindir_version": 3, "checkpoint_sha256": "0"}
    file["sha256"] = hash_file(inference.folder / "my vnet.mindir")
    description = json.dumps(describe(vnet_cfg, 1, {"my vnet.mindir": file}))
    (inference.folder / "my vnet.json").write_text(description)
    inference.checkout.root = ROOT
    process, calls = inference.run(PYTHON=sys.executable)
    assert process.returncode == 1
    twin = inference.folder / "my vnet_lite.mindir"
    assert process.stderr.startswith(f"error: {twin}: no such model; export it: ")
    assert process.stderr.endswith(
        "python export.py --ckpt_file CKPT --file_format MINDIR "
        f"--file_name '{inference.folder / 'my vnet'}'\n"
    )
    assert process.stderr.count("\n") == 1
    assert calls == [] and not list(inference.folder.glob("*.log"))
