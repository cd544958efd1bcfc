"""Users who start the launchers of scripts/, with stand-ins for the programs that these start."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT, alive, wait_until, write_executable

RANKS = str(ROOT / "scripts" / "ranks.py")
TRAIN = str(ROOT / "train.py")
# Settings of a training of seconds.
SETTINGS = ["width=2", "VolSize=32,16,16", "dstRes=2.5,2.5,2.5", "batch_size=1", "cache_dir=off"]
SETTINGS += ["save_interval=1"]
# Further arguments that a shell could take apart.
FURTHER = ["--set", "VolSize=32,32,16", "--note", "two words; $HOME *", ""]

# Stands for Python where it would run train.py; anything else runs in the real one.
PYTHON = """#!/bin/sh
case "$1" in
  */train.py) exec "{real}" "{folder}/train_stand_in.py" "$@" ;;
esac
exec "{real}" "$@"
"""

# Records its call, prints, then ends as ENDINGS says for its rank, {"1": [seconds, exit code]}, or
# goes on for 60 s, a scheduler as long as its workers.
TRAIN_STAND_IN = """
import json, os, signal, subprocess, sys, time
rank = "scheduler" if os.environ.get("MS_ROLE") == "MS_SCHED" else os.environ["RANK_ID"]
call = {"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid()}
call["parent"] = os.getppid()
call["stdin_at_end"] = sys.stdin.read() == ""
if rank in os.environ.get("STUBBORN", "").split(","):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    call["grandchild"] = subprocess.Popen(["sleep", "60"], preexec_fn=os.setsid).pid
path = os.path.join(os.environ["RECORDS"], rank + ".json")
with open(path + ".new", "w") as file:
    json.dump(call, file)
os.rename(path + ".new", path)
if rank != "scheduler":
    print("run: results/infer/vnet.x" if rank == "0" else f"run: rank {rank} of 2")
    print("\\n".join(f"line {number} of rank {rank}" for number in range(30)), flush=True)
if os.environ.get("VNET_STATUS_FILE"):
    with open(os.environ["VNET_STATUS_FILE"], "w") as file:
        json.dump({"state": "running"}, file)
seconds, code = json.loads(os.environ.get("ENDINGS", "{}")).get(rank, [60, 0])
time.sleep(seconds)
print(f"last words of rank {rank}", file=sys.stderr)
sys.exit(code)
"""

STARTER = """#!{real}
import json, os, signal, subprocess, sys, time
argv = sys.argv[1:]
call = {{"argv": argv, "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid()}}
with open(os.environ["RECORDS"] + f"/{{os.path.basename(sys.argv[0])}}.json", "w") as file:
    json.dump(call, file)
def option(name):
    return argv[argv.index(name) + 1]
def start(log, **variables):
    os.makedirs(os.path.dirname(log), exist_ok=True)
    output = {{"stdout": open(log, "w"), "stderr": subprocess.STDOUT}}
    return subprocess.Popen(command, env=os.environ | variables, **output, {group})
"""

# Ends like the real one: at a failure it kills its workers. With LINGER it then waits for its
# scheduler, as the real one may.
MSRUN = (
    STARTER.replace("{group}", "start_new_session=True")
    + """
count, local = int(option("--worker_num")), int(option("--local_worker_num"))
node = int(option("--node_rank")) if "--node_rank" in argv else 0
command = argv[argv.index("python3"):]
logs = option("--log_dir")
ranks = []
if node == 0:
    scheduler = start(logs + "/scheduler.log", MS_ROLE="MS_SCHED", RANK_ID="0")
for rank in range(local):
    number = str(node * local + rank)
    variables = dict(MS_ROLE="MS_WORKER", RANK_ID=number, DEVICE_ID=str(rank), RANK_SIZE=str(count))
    ranks.append(start(logs + f"/worker_{{number}}.log", **variables))
while (codes := [rank.poll() for rank in ranks]).count(0) < local:
    if any(codes):
        for rank in ranks:
            if rank.poll() is None:
                os.killpg(rank.pid, signal.SIGKILL)
        break
    time.sleep(0.1)
if node == 0 and not os.environ.get("LINGER"):
    scheduler.kill()
elif node == 0:
    scheduler.wait()
sys.exit(any(codes))
"""
)

MPIRUN = (
    STARTER.replace("{group}", "start_new_session=False")
    + """
count = int(option("-n"))
command = argv[argv.index(os.environ["PYTHON"]):]
ranks = []
for rank in range(count):
    variables = dict(OMPI_COMM_WORLD_RANK=str(rank), OMPI_COMM_WORLD_LOCAL_RANK=str(rank))
    ranks.append(start("mpirun_output/rank", **variables))
while (codes := [rank.poll() for rank in ranks]).count(0) < count:
    if any(codes):
        for rank in ranks:
            rank.terminate()
        sys.exit(next(code if code > 0 else 128 - code for code in codes if code))
    time.sleep(0.1)
"""
)


def heed_signals():
    """Undoes what a child inherits: a shell's background job ignores INT, one of nohup's HUP."""
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_DFL)


class Caller:
    """Who starts launchers in a folder of their own."""

    def environment(self, **variables):
        """The variables that a launcher starts with."""
        raise NotImplementedError

    def start(self, script, *arguments, **variables):
        """Starts the launcher as a terminal would; its stdin is a pipe that never ends."""
        return subprocess.Popen(
            ["bash", str(ROOT / "scripts" / script), *arguments],
            cwd=self.folder,
            env=self.environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heed_signals,
        )

    def run(self, script, *arguments, **variables):
        """Runs the launcher to its end; the time-out only ends one that hangs."""
        process = self.start(script, *arguments, **variables)
        process.stdout_text, process.stderr_text = process.communicate(timeout=120)
        return process


class RanksCaller(Caller):
    """A user's folder with a space in its name: data, split, rank table, and tools on PATH."""

    def __init__(self, folder):
        self.root = folder
        self.folder = folder / "my folder"
        self.records = folder / "records"
        self.tools = folder / "my tools"
        self.records.mkdir()
        for name, text in {"python3": PYTHON, "msrun": MSRUN, "mpirun": MPIRUN}.items():
            text = text.format(real=sys.executable, folder=self.tools)
            write_executable(self.tools / name, text)
        (self.tools / "train_stand_in.py").write_text(TRAIN_STAND_IN)
        (self.folder / "my data").mkdir(parents=True)
        (self.folder / "train set.csv").write_text("Case00.mhd\n")
        self.table = {"version": "1.0", "server_count": "1", "status": "completed"}
        self.write_table(["5", "4", "7"])

    def write_table(self, device_ids, file="table.json"):
        devices = [
            {"device_id": device, "device_ip": f"10.1.0.{device}", "rank_id": str(rank)}
            for rank, device in enumerate(device_ids)
        ]
        server = {"server_id": "10.0.0.1", "device": devices[::-1]}
        table = self.table | {"server_list": [server]}
        (self.folder / file).write_text(json.dumps(table))

    def environment(self, **variables):
        base = {
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "PYTHON": str(self.tools / "python3"),
            "RECORDS": str(self.records),
            "TEST_OF": str(self.root),
        }
        return base | {name: str(value) for name, value in variables.items()}

    def call(self, name):
        """What a stand-in recorded: a rank, "scheduler", "msrun" or "mpirun"."""
        path = self.records / f"{name}.json"
        wait_until(path.exists)
        return json.loads(path.read_text())

    def processes(self):
        """Ids of all processes that came from this test, the launcher's own among them."""
        return list(processes(self.root))

    def no_process_left(self):
        wait_until(lambda: not self.processes())

    def job_pid(self):
        """The process of ranks.py that watches all ranks."""
        for pid in self.processes():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[1:3] == [RANKS.encode(), b"start"]:
                return pid
        raise AssertionError("no ranks.py")


def train_command(caller, target):
    """The words after Python of one rank's whole command."""
    return [
        TRAIN,
        *("--device_target", target),
        *("--run_distribute", "1", "--device_num", "3"),
        *("--data_path", str(caller.folder / "my data")),
        *("--train_split_file_path", str(caller.folder / "train set.csv")),
        *FURTHER,
    ]


def processes(folder):
    """The id of each process that a launcher left running, and its program and rank.

    The launcher was started with TEST_OF=folder in its environment.
    """
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        pid = int(process.name)
        if f"TEST_OF={folder}".encode() in variables and pid != os.getpid() and alive(pid):
            rank = next((v.decode() for v in variables if v.startswith(b"RANK_ID=")), "")
            program = Path(command[1].decode()).name if len(command) > 1 else ""
            is_scheduler = b"MS_ROLE=MS_SCHED" in variables
            found[pid] = "scheduler" if is_scheduler else f"{program} {rank}"
    return found
