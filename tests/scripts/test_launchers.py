"""The launchers for several devices, started for real; stand-ins record what would have trained.

The stand-ins for msrun and mpirun start their ranks as the real ones do, so that commands,
environments and folders of ranks on Ascend and GPU are checked without such hardware.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT, alive
from tests.launchers import FURTHER, RANKS, TRAIN, RanksCaller, train_command

pytestmark = pytest.mark.launchers


@pytest.fixture
def caller(tmp_path):
    caller = RanksCaller(tmp_path)
    yield caller
    for pid in caller.processes():
        os.kill(pid, signal.SIGKILL)


# Launcher -> its arguments for three ranks, default device, command of the ranks' starter.
ARGUMENTS = {
    "train_distribute.sh": ["table.json", "3", "my data", "train set.csv"],
    "train_distribute_gpu.sh": ["3", "0,2,5", "my data", "train set.csv"],
    "train_msrun.sh": ["3", "my data", "train set.csv"],
}
FINISHED = json.dumps(dict.fromkeys("012", [0.3, 0]))


def log_of(caller, script, rank):
    """Where a rank's own log is."""
    if script == "train_distribute.sh":
        return caller.folder / f"train_parallel{rank}" / "train_distribute.log"
    if script == "train_distribute_gpu.sh":
        return caller.folder / "log_output" / "1" / f"rank.{rank}" / "stdout"
    return caller.folder / "train_msrun_logs" / f"worker_{rank}.log"


# ------------------------------------------------------------------------- whole commands


def test_ascend_by_rank_table(caller):
    process = caller.run(
        "train_distribute.sh",
        *ARGUMENTS["train_distribute.sh"],
        *FURTHER,
        ENDINGS=FINISHED,
        WAIT=1,
        RANK_TABLE_FILE="of earlier work",
    )
    assert process.returncode == 0, process.stderr_text
    python, log = str(caller.tools / "python3"), "train_parallel{rank}/train_distribute.log"
    msrun = caller.call("msrun")
    port = msrun["argv"].index("--master_port") + 1
    assert 1024 <= int(msrun["argv"].pop(port)) < 65536
    assert msrun["argv"] == [
        *("--worker_num", "3", "--local_worker_num", "3"),
        *("--master_addr", "127.0.0.1", "--master_port"),
        *("--log_dir", "train_distribute_logs", "--join", "True", "--tail_worker_log", "3"),
        *("python3", RANKS, "run", "--log", log, "--folder", "train_parallel{rank}"),
        *("--device_ids", "1,0,2", "--", python, *train_command(caller, "Ascend")),
    ]
    # The table has 5, 4, 7; CANN counts the visible devices in ascending order.
    for rank, device in enumerate(["1", "0", "2"]):
        call = caller.call(rank)
        assert call["argv"] == train_command(caller, "Ascend")
        folder = caller.folder / f"train_parallel{rank}"
        assert call["cwd"] == str(folder)
        zoo = {"RANK_ID": str(rank), "DEVICE_ID": device, "RANK_SIZE": "3", "DEVICE_NUM": "3"}
        zoo |= {"ASCEND_RT_VISIBLE_DEVICES": "4,5,7", "MS_ROLE": "MS_WORKER"}
        assert zoo.items() <= call["env"].items()
        assert "RANK_TABLE_FILE" not in call["env"]
        assert call["stdin_at_end"]
        assert [path.name for path in folder.iterdir()] == ["train_distribute.log"]
        words = (folder / "train_distribute.log").read_text().splitlines()
        assert words[-1] == f"last words of rank {rank}"
    assert caller.call("scheduler")["env"]["MS_ROLE"] == "MS_SCHED"
    assert not (caller.records / "mpirun.json").exists()
    log = (caller.folder / "train_distribute.log").read_text()
    assert log.splitlines()[-2:] == ["last words of rank 0", "all ranks have finished"]
    assert "line 0 of rank 1" not in log
    assert process.stdout_text.endswith(log)


def test_gpu_by_mpirun(caller):
    process = caller.run(
        "train_distribute_gpu.sh",
        *ARGUMENTS["train_distribute_gpu.sh"],
        *FURTHER,
        ENDINGS=FINISHED,
        WAIT=1,
        RANK_ID=9,  # of some earlier work in the same shell
        MS_ROLE="MS_SCHED",
        CUDA_VISIBLE_DEVICES="5,0,1,2",  # as a cluster's scheduler sets it
    )
    assert process.returncode == 0, process.stderr_text
    python, log = str(caller.tools / "python3"), "log_output/1/rank.{rank}/stdout"
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    train = train_command(caller, "GPU")
    mpirun = caller.call("mpirun")
    assert mpirun["argv"] == [
        *("-n", "3", *as_root, "--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"),
        *(python, RANKS, "run", "--log", log, "--", python, *train),
    ]
    zoo = {"DEVICE_NUM": "3", "RANK_SIZE": "3", "CUDA_VISIBLE_DEVICES": "0,2,5"}
    for rank in range(3):
        call = caller.call(rank)
        assert call["argv"] == train
        assert call["cwd"] == mpirun["cwd"] == str(caller.folder)
        own = {"RANK_ID": str(rank), "OMPI_COMM_WORLD_RANK": str(rank)}
        assert (zoo | own).items() <= call["env"].items()
        assert "MS_ROLE" not in call["env"]
        assert call["stdin_at_end"]
    log = (caller.folder / "train_distribute_gpu.log").read_text()
    assert {f"last words of rank {rank}" for rank in range(3)} <= set(log.splitlines())
    assert log.endswith("all ranks have finished\n")
    assert not (caller.records / "msrun.json").exists()


@pytest.mark.parametrize("target", ["Ascend", "CPU"])
def test_any_device_by_msrun(caller, target):
    process = caller.run(
        "train_msrun.sh",
        *ARGUMENTS["train_msrun.sh"],
        *FURTHER,
        ENDINGS=FINISHED,
        WAIT=1,
        MASTER_PORT=18765,
        **({} if target == "Ascend" else {"DEVICE_TARGET": target}),
    )
    assert process.returncode == 0, process.stderr_text
    python, log = str(caller.tools / "python3"), "train_msrun_logs/worker_{rank}.log"
    msrun = caller.call("msrun")
    assert msrun["argv"] == [
        *("--worker_num", "3", "--local_worker_num", "3"),
        *("--master_addr", "127.0.0.1", "--master_port", "18765", "--node_rank", "0"),
        *("--log_dir", "train_msrun_logs", "--join", "True", "--tail_worker_log", "3"),
        *("python3", RANKS, "run", "--log", log, "--", python, *train_command(caller, target)),
    ]
    assert msrun["env"]["PATH"].startswith(f"{caller.tools}:")
    for rank in range(3):
        call = caller.call(rank)
        assert call["argv"] == train_command(caller, target)
        assert call["cwd"] == msrun["cwd"] == str(caller.folder)
        expected = {"RANK_ID": str(rank), "RANK_SIZE": "3", "DEVICE_NUM": "3"}
        expected |= {"MS_ROLE": "MS_WORKER", "DEVICE_ID": str(rank)}
        assert expected.items() <= call["env"].items()
    log = (caller.folder / "train_msrun.log").read_text()
    assert log.splitlines()[-2:] == ["last words of rank 0", "all ranks have finished"]
    assert "line 0 of rank 1" not in log


@pytest.mark.parametrize("script", ["train_distribute.sh", "train_distribute_gpu.sh"])
def test_on_cpu_the_zoos_launchers_take_msrun(caller, script):
    process = caller.run(
        script, *ARGUMENTS[script], *FURTHER, ENDINGS=FINISHED, WAIT=1, DEVICE_TARGET="CPU"
    )
    assert process.returncode == 0, process.stderr_text
    assert caller.call("msrun")["argv"][:4] == ["--worker_num", "3", "--local_worker_num", "3"]
    for rank in range(3):
        call = caller.call(rank)
        assert call["argv"] == train_command(caller, "CPU")
        own = log_of(caller, script, rank)
        assert call["cwd"] == str(own.parent if script == "train_distribute.sh" else caller.folder)
        assert own.read_text().splitlines()[-1] == f"last words of rank {rank}"
        assert "ASCEND_RT_VISIBLE_DEVICES" not in call["env"]
    log = (caller.folder / f"{Path(script).stem}.log").read_text()
    assert ("last words of rank 2" in log) == (script == "train_distribute_gpu.sh")
    assert not (caller.records / "mpirun.json").exists()


def test_resume_and_relative_paths(caller):
    """For all launchers the same function of common.sh makes the command."""
    script = "train_msrun.sh"
    further = ["--val_split_file_path", "val.csv", "--resume", "train_parallel0/run 1"]
    further += ["--val_split_file_path=../val.csv", "--config", "a.yaml", "--config=b.yaml"]
    further += ["--set", "cache_dir=c", "--set=cache_dir=c d", "--set", "cache_dir=auto"]
    further += ["--resume", "--set", "task=a/b", "--resume=/x"]
    process = caller.run(script, *ARGUMENTS[script], *further, ENDINGS=FINISHED, WAIT=1, RESUME=1)
    assert process.returncode == 0, process.stderr_text
    argv = caller.call(1)["argv"]
    expected = ["--resume", "--val_split_file_path", str(caller.folder / "val.csv"), "--resume"]
    expected += [str(caller.folder / "train_parallel0" / "run 1")]
    expected += [f"--val_split_file_path={caller.folder.parent / 'val.csv'}", "--config"]
    expected += [str(caller.folder / "a.yaml"), f"--config={caller.folder / 'b.yaml'}"]
    expected += [
        "--set",
        f"cache_dir={caller.folder / 'c'}",
        f"--set=cache_dir={caller.folder / 'c d'}",
    ]
    expected += ["--set", "cache_dir=auto"]
    assert argv[-len(expected) - 4 :] == [*expected, *further[-4:]]
    begin = argv.index("--train_split_file_path")
    assert argv[begin + 2 :] == [*expected, *further[-4:]]


@pytest.mark.parametrize("script", ARGUMENTS)
def test_nothing_of_an_earlier_run_is_lost(caller, script):
    own = [log_of(caller, script, rank) for rank in range(3)]
    main = caller.folder / f"{Path(script).stem}.log"
    checkpoint = caller.folder / "train_parallel0" / "results" / "last.ckpt"
    for path in [*own, main, checkpoint]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("earlier")
    assert caller.run(script, *ARGUMENTS[script], ENDINGS=FINISHED, WAIT=1).returncode == 0
    assert checkpoint.read_text() == "earlier"
    kept = [*own, main]
    if script == "train_distribute_gpu.sh":
        folder = caller.folder / "log_output.1"
        kept = [folder / path.relative_to(folder.with_name("log_output")) for path in own]
    else:
        kept = [Path(f"{path}.1") for path in own]
    assert {path.read_text() for path in [*kept, Path(f"{main}.1")]} == {"earlier"}
    assert main.read_text().endswith("all ranks have finished\n")


# --------------------------------------------------------------------- how a job can end


@pytest.mark.parametrize("script", ARGUMENTS)
def test_the_launcher_returns_when_training_has_begun(caller, script):
    process = caller.run(script, *ARGUMENTS[script])
    assert process.returncode == 0
    assert process.stderr_text == ""
    job = caller.job_pid()
    assert f"process {job}, log {caller.folder / Path(script).stem}.log\n" in process.stdout_text
    calls = [caller.call(rank) for rank in range(3)]
    ranks = [call["pid"] for call in calls]
    # One rank tells the launcher, in a file that the launcher has removed by now.
    status_files = [call["env"].get("VNET_STATUS_FILE") for call in calls]
    assert status_files[1:] == [None, None] and not Path(status_files[0]).parent.exists()
    if script != "train_distribute_gpu.sh":
        assert "VNET_STATUS_FILE" not in caller.call("scheduler")["env"]
    os.killpg(os.getpgid(job), signal.SIGHUP)  # what closing the terminal sends
    time.sleep(0.5)
    assert all(map(alive, [job, *ranks]))
    os.kill(ranks[1], signal.SIGKILL)  # and now nobody waits for it
    caller.no_process_left()
    output = (caller.folder / f"{Path(script).stem}.log").read_text()
    assert "error: rank 1 was ended by SIGKILL" in output
    assert f"; the end of {log_of(caller, script, 1)}:\n" in output


def test_a_second_launcher_in_the_same_folder_is_refused(caller):
    script = "train_distribute.sh"
    first = caller.start(script, *ARGUMENTS[script], WAIT=1, ENDINGS=json.dumps({"0": [4, 0]}))
    for rank in range(3):
        caller.call(rank)
    begin = sorted(path.name for path in caller.folder.rglob("*"))
    second = caller.run(script, *ARGUMENTS[script])
    assert (second.returncode, second.stdout_text) == (1, "")
    assert second.stderr_text.startswith("error: a training that was started here still runs, see ")
    assert second.stderr_text.count("\n") == 1
    assert sorted(path.name for path in caller.folder.rglob("*")) == begin
    first.terminate()
    first.communicate(timeout=120)
    caller.no_process_left()
    assert caller.run(script, *ARGUMENTS[script], ENDINGS=FINISHED, WAIT=1).returncode == 0


def test_of_two_launchers_at_once_one_is_refused(caller):
    script = "train_msrun.sh"
    both = [caller.start(script, *ARGUMENTS[script]) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert "".join(errors).startswith("error: a training that was started here still runs, see ")
    assert [path.name for path in caller.folder.glob("*.log*")] == ["train_msrun.log"]


def test_another_launcher_leaves_the_logs_of_the_first(caller):
    variables = {"DEVICE_TARGET": "CPU", "ENDINGS": json.dumps({"0": [5, 3]}), "WAIT": 1}
    first = caller.start("train_msrun.sh", *ARGUMENTS["train_msrun.sh"], **variables)
    caller.call(0)
    script = "train_distribute_gpu.sh"
    second = caller.run(script, *ARGUMENTS[script], DEVICE_TARGET="CPU", WAIT=1, ENDINGS=FINISHED)
    assert second.returncode == 0, second.stderr_text
    output, _ = first.communicate(timeout=120)
    assert "worker_0.log:\nline 11 of rank 0\n" in output


def test_a_stopped_job_says_so_in_the_status_file(caller):
    status = caller.folder / "status.json"
    script = "train_distribute_gpu.sh"
    variables = {"WAIT": 1, "VNET_STATUS_FILE": str(status)}
    process = caller.start(script, *ARGUMENTS[script], **variables)
    for rank in range(3):
        caller.call(rank)
    status.write_text(json.dumps({"state": "running", "run_folder": "results"}))
    process.terminate()
    process.communicate(timeout=120)
    assert json.loads(status.read_text()) == {
        "state": "failed",
        "run_folder": "results",
        "exit_code": 143,
        "error": "stopped by SIGTERM",
    }


def test_an_mpirun_that_is_not_openmpis(caller):
    text = (caller.tools / "mpirun").read_text()
    (caller.tools / "mpirun").write_text(text.replace("OMPI_COMM_WORLD_RANK", "PMI_RANK"))
    script = "train_distribute_gpu.sh"
    process = caller.run(script, *ARGUMENTS[script], WAIT=1, RANK_ID=0)
    assert process.returncode == 1
    log = (caller.folder / "mpirun_output" / "rank").read_text()
    assert log.startswith("error: neither OMPI_COMM_WORLD_RANK nor RANK_ID is set: is mpirun ")


# train_msrun.sh and train_distribute.sh start the same engine in the same way; once it lingers.
@pytest.mark.parametrize(
    ("script", "rank"),
    [
        ("train_distribute.sh", 2),
        ("train_distribute_gpu.sh", 0),
        ("train_distribute_gpu.sh", 2),
        ("train_msrun.sh", 0),
    ],
)
def test_a_rank_that_fails_ends_the_others(caller, script, rank):
    variables = {"WAIT": 1, "ENDINGS": json.dumps({str(rank): [0.3, 3]})}
    if (script, rank) == ("train_distribute.sh", 2):
        variables["LINGER"] = 1
    process = caller.run(script, *ARGUMENTS[script], **variables)
    assert process.returncode == 3
    assert not caller.processes()
    log = log_of(caller, script, rank)
    output = process.stdout_text
    message = f"error: rank {rank} ended with exit code 3; the end of {log}:\n"
    tail = [f"line {number} of rank {rank}" for number in range(11, 30)]
    tail += [f"last words of rank {rank}"]
    *shown, last = output.partition(message)[2].splitlines()
    assert shown == tail
    advice, _, command = last.partition(": ")
    assert advice == "to continue a training that had begun"
    assert shlex.split(command) == [
        *("RESUME=1", "WAIT=1", f"PYTHON={caller.tools / 'python3'}"),
        *("bash", str(ROOT / "scripts" / script), *ARGUMENTS[script]),
    ]


def test_an_early_failure_is_told_without_wait(caller):
    process = caller.run(
        "train_distribute.sh",
        *ARGUMENTS["train_distribute.sh"],
        ENDINGS=json.dumps({"1": [0, 2]}),
        START_SECONDS=30,
    )
    # Either the launcher saw training begin first, or it tells of the failure.
    caller.no_process_left()
    if process.returncode:
        assert process.returncode == 2
        assert "error: rank 1 ended with exit code 2; the end of " in process.stderr_text
        assert process.stderr_text.endswith("last words of rank 1\n")


# Who is killed -> exit code of the job, and what the launcher says.
VICTIMS = {
    "train.py": (137, "error: rank 1 was ended by SIGKILL, by a user or for lack of memory"),
    "ranks.py run": (1, "error: rank 1 disappeared without an exit code; the end of "),
    "engine": (137, "was ended by SIGKILL, by a user or for lack of memory, before its ranks"),
    "ranks.py start": (137, ""),
}


@pytest.mark.parametrize("script", ["train_distribute.sh", "train_distribute_gpu.sh"])
@pytest.mark.parametrize("victim", VICTIMS)
def test_kill_9(caller, script, victim):
    variables = {"train.py": {"STUBBORN": "2"}, "ranks.py run": {"LINGER": "1"}}.get(victim, {})
    process = caller.start(script, *ARGUMENTS[script], WAIT=1, **variables)
    calls = [caller.call(rank) for rank in range(3)]
    engine = "mpirun" if "gpu" in script else "msrun"
    pid = {
        "train.py": lambda: calls[1]["pid"],
        "ranks.py run": lambda: calls[1]["parent"],
        "engine": lambda: caller.call(engine)["pid"],
        "ranks.py start": caller.job_pid,
    }[victim]()
    os.kill(pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    code, message = VICTIMS[victim]
    assert process.returncode == code
    assert message in output
    caller.no_process_left()
    assert not alive(calls[2].get("grandchild", 0))


@pytest.mark.parametrize(
    ("script", "sent", "code"),
    [
        ("train_distribute.sh", signal.SIGINT, 130),
        ("train_distribute_gpu.sh", signal.SIGINT, 130),
        ("train_distribute_gpu.sh", signal.SIGTERM, 143),
        ("train_msrun.sh", signal.SIGHUP, 129),
    ],
)
def test_a_stopped_launcher_leaves_no_process(caller, script, sent, code):
    process = caller.start(script, *ARGUMENTS[script], WAIT=1)
    for rank in range(3):
        caller.call(rank)
    os.killpg(process.pid, sent)  # as a terminal does
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code
    assert output.splitlines()[-1].startswith("stopped process ")
    log = (caller.folder / f"{Path(script).stem}.log").read_text()
    assert "error: stopped by SIG" in log
    assert errors == ""
    caller.no_process_left()


def test_an_engine_that_lingers_is_ended(caller):
    """msrun may wait for its scheduler long after all ranks have finished."""
    quick = "import sys, ranks; sys.argv[0] = 'ranks.py'; ranks.LINGER_SECONDS = 1; ranks.main()"
    msrun = [caller.tools / "msrun", "--worker_num", "3", "--local_worker_num", "3"]
    msrun += ["--log_dir", "logs", "python3", RANKS, "run", "--log", "logs/{rank}", "--"]
    process = subprocess.run(
        [sys.executable, "-c", quick, "start", "--log", "logs/{rank}", "--ranks", "3", "--"]
        + [*msrun, caller.tools / "python3", TRAIN],
        cwd=caller.folder,
        env=caller.environment(PYTHONPATH=ROOT / "scripts", LINGER=1, ENDINGS=FINISHED),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("all ranks have finished\n")
    caller.no_process_left()


# ------------------------------------------------------------------------------- bad input

TABLE_USAGE = "RANK_TABLE_FILE DEVICE_NUM DATA_PATH TRAIN_SPLIT_FILE_PATH"
GPU_USAGE = "DEVICE_NUM DEVICE_LIST DATA_PATH TRAIN_SPLIT_FILE_PATH"
MSRUN_USAGE = "WORKER_NUM DATA_PATH TRAIN_SPLIT_FILE_PATH"
DATA = ["my data", "train set.csv"]
LOCAL_HOST = {"NODES": 3, "NODE_RANK": 1, "MASTER_ADDR": "localhost"}
CPU_HOST = {"NODES": 2, "NODE_RANK": 0, "MASTER_ADDR": "192.0.2.1"}  # an address of nobody's


def refused(caller, process, code=2):
    """The one line of a launcher that has not started anything."""
    assert process.returncode == code, process.stderr_text
    assert process.stdout_text == ""
    assert process.stderr_text.count("\n") == 1
    assert not list(caller.records.iterdir())
    assert not list(caller.folder.rglob("*.log"))
    return process.stderr_text


@pytest.mark.parametrize(
    ("script", "arguments", "complaint"),
    [
        ("train_distribute.sh", [], None),
        ("train_distribute.sh", ["table.json", "3", "my data"], None),
        ("train_distribute.sh", ["no.json", "3", *DATA], "RANK_TABLE_FILE 'no.json' is not a"),
        ("train_distribute.sh", ["table.json", "0", *DATA], "DEVICE_NUM '0' is not a number"),
        ("train_distribute.sh", ["table.json", "all", *DATA], "DEVICE_NUM 'all' is not a number"),
        ("train_distribute.sh", ["table.json", "3", "no", DATA[1]], "DATA_PATH 'no' is not a"),
        ("train_distribute.sh", ["table.json", "3", DATA[0], "no"], "TRAIN_SPLIT_FILE_PATH 'no'"),
        ("train_distribute_gpu.sh", ["2", "0,1"], None),
        ("train_distribute_gpu.sh", ["-1", "0", *DATA], "DEVICE_NUM '-1' is not a number from 1"),
        ("train_distribute_gpu.sh", ["2", "0 1", *DATA], "DEVICE_LIST '0 1' is not a list of"),
        ("train_distribute_gpu.sh", ["2", "0,", *DATA], "DEVICE_LIST '0,' is not a list of"),
        ("train_distribute_gpu.sh", ["2", "0,x", *DATA], "DEVICE_LIST '0,x' is not a list of"),
        ("train_distribute_gpu.sh", ["2", "0,1,2", *DATA], "DEVICE_LIST '0,1,2' names 3 device"),
        ("train_distribute_gpu.sh", ["3", "1,0,1", *DATA], "DEVICE_LIST '1,0,1' names device 1 m"),
        ("train_distribute_gpu.sh", ["1", "0", "no", "no"], "DATA_PATH 'no' is not a readable"),
        ("train_msrun.sh", ["2"], None),
        ("train_msrun.sh", ["two", *DATA], "WORKER_NUM 'two' is not a number from 1"),
        ("train_msrun.sh", ["08", *DATA], "WORKER_NUM '08' is not a number from 1"),
        ("train_msrun.sh", ["2", "my data", "no"], "TRAIN_SPLIT_FILE_PATH 'no' is not a readable"),
    ],
)
def test_bad_arguments(caller, script, arguments, complaint):
    names = {
        "train_distribute.sh": TABLE_USAGE,
        "train_distribute_gpu.sh": GPU_USAGE,
        "train_msrun.sh": MSRUN_USAGE,
    }[script]
    usage = f"usage: bash scripts/{script} {names} [further arguments for train.py]"
    line = refused(caller, caller.run(script, *arguments))
    assert line == f"{usage}\n" if complaint is None else line.startswith(f"error: {complaint}")


@pytest.mark.parametrize(
    ("script", "variables", "complaint"),
    [
        ("train_distribute.sh", {"DEVICE_TARGET": "TPU"}, "DEVICE_TARGET 'TPU' is not Ascend, GPU"),
        ("train_distribute.sh", {"DEVICE_TARGET": "GPU"}, "DEVICE_TARGET 'GPU' has no rank table"),
        ("train_distribute_gpu.sh", {"DEVICE_TARGET": "Ascend"}, "DEVICE_TARGET 'Ascend' needs a"),
        ("train_distribute_gpu.sh", {"PYTHON": "/no/such"}, "PYTHON '/no/such' cannot be run"),
        ("train_msrun.sh", {"NODE_RANK": 1}, "NODE_RANK=1 needs NODES, the number of hosts"),
        ("train_msrun.sh", {"NODES": "0"}, "NODES '0' is not a number of hosts"),
        ("train_msrun.sh", {"NODES": "x"}, "NODES 'x' is not a number of hosts"),
        ("train_msrun.sh", {"NODES": "2"}, "WORKER_NUM 3 is not a multiple of NODES=2"),
        ("train_msrun.sh", {"NODES": "3"}, "NODES=3 needs MASTER_ADDR, the address of"),
        ("train_msrun.sh", CPU_HOST | {"NODES": 3, "NODE_RANK": ""}, "NODE_RANK '' is not a num"),
        ("train_msrun.sh", CPU_HOST | {"NODES": 3, "NODE_RANK": 3}, "NODE_RANK '3' is not a numb"),
        ("train_msrun.sh", {"MASTER_PORT": 80}, "MASTER_PORT '80' is not a port from 1024 to"),
        ("train_msrun.sh", {"MASTER_PORT": 65536}, "MASTER_PORT '65536' is not a port from 1024"),
        ("train_msrun.sh", {"MASTER_PORT": "x"}, "MASTER_PORT 'x' is not a port from 1024 to"),
        ("train_msrun.sh", {"MASTER_ADDR": "192.0.2.1"}, "MASTER_ADDR '192.0.2.1' is not this hos"),
        (
            "train_msrun.sh",
            {"MASTER_ADDR": "no.host.invalid"},
            "MASTER_ADDR 'no.host.invalid' is n",
        ),
        ("train_msrun.sh", LOCAL_HOST, "MASTER_ADDR 'localhost' is a loopback address"),
        (
            "train_distribute_gpu.sh",
            {"CUDA_VISIBLE_DEVICES": "0,1,2"},
            "DEVICE_LIST '0,2,5' names ",
        ),
    ],
)
def test_bad_environment(caller, script, variables, complaint):
    line = refused(caller, caller.run(script, *ARGUMENTS[script], **variables))
    assert line.startswith(f"error: {complaint}")


def test_a_port_that_is_taken(caller):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = caller.run("train_msrun.sh", *ARGUMENTS["train_msrun.sh"], MASTER_PORT=port)
    line = refused(caller, process, code=1)
    assert line.startswith(f"error: port {port} of 127.0.0.1 is taken, perhaps by another training")


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ({"status": "initializing"}, "status is 'initializing', expected 'completed'"),
        ({"server_count": "2"}, "server_count is '2', expected '1'"),
    ],
)
def test_a_faulty_rank_table(caller, fault, complaint):
    """One of them: all faults are in tests/devices/test_rank_table.py."""
    caller.table |= fault
    caller.write_table(["0", "1", "2"])
    process = caller.run("train_distribute.sh", *ARGUMENTS["train_distribute.sh"])
    line = refused(caller, process, code=1)
    assert line.startswith(f"error: {caller.folder / 'table.json'}: {complaint}")
    assert not list(caller.folder.glob("train_parallel*"))


@pytest.mark.parametrize(
    ("script", "tool", "complaint"),
    [
        ("train_distribute_gpu.sh", "mpirun", "no mpirun on PATH: install OpenMPI"),
        ("train_msrun.sh", "msrun", "no msrun beside "),
    ],
)
def test_a_missing_engine(caller, script, tool, complaint):
    """On a PATH with all that /usr/bin has, but this."""
    (caller.tools / tool).unlink()
    path = caller.tools.with_name("others")
    path.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name not in ("mpirun", "msrun"):
            (path / program.name).symlink_to(program)
    path = f"{caller.tools}:{path}"
    line = refused(caller, caller.run(script, *ARGUMENTS[script], PATH=path), code=1)
    assert line.startswith(f"error: {complaint}")


def test_a_folder_that_cannot_be_made(caller):
    (caller.folder / "train_parallel1").write_text("a file of that name")
    process = caller.run("train_distribute.sh", *ARGUMENTS["train_distribute.sh"])
    assert process.returncode == 1
    assert process.stderr_text == (
        f"error: cannot make the folder {caller.folder}/train_parallel1: "
        "start from a folder where you may write\n"
    )
    assert not list(caller.records.iterdir())


@pytest.mark.parametrize("script", ARGUMENTS)
def test_help(caller, script):
    process = caller.run(script, "--help")
    assert process.returncode == 0
    usage, _, description = process.stdout_text.partition("\n")
    assert usage.startswith(f"usage: bash scripts/{script} ")
    assert f"bash scripts/{script} " in description and "#" not in description
