"""Starts one host's ranks by msrun or mpirun, ends all when one fails, and prints how they ended.

    python ranks.py start --ranks N --log PATTERN [--first RANK] [--follow_all] -- msrun ... \
        python3 ranks.py run --log PATTERN [--folder PATTERN] [--device_ids 4,5] -- COMMAND...

`run` runs one rank; {rank} in a pattern stands for its number. `start` prints the first rank's log,
limits the time that msrun and mpirun may take to end, and leaves no process behind.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Environment variables: the folder to which ranks write their exit status; this host's first rank;
# the status file, see src/utils/status.py; the launcher's command.
JOB, FIRST_RANK, STATUS_FILE = "VNET_JOB", "VNET_FIRST_RANK", "VNET_STATUS_FILE"
COMMAND = "VNET_COMMAND"
LINES_SHOWN = 20  # of the log of the rank that failed
END_SECONDS = 3  # for msrun or mpirun to end after a rank has failed
LINGER_SECONDS = 60  # the same after all have finished: msrun may wait for its scheduler for ever
KILL_SECONDS = 10  # for a killed process to disappear
SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # of Linux' prctl
# Words of MindSpore's messages when ranks on another host do not respond.
LOST = re.compile("timed out|meta server|AllReduce|unreachable|HCCL|NCCL")
LIBC = ctypes.CDLL(None)  # loaded before a fork: `preexec_fn` should not load libraries


def die_with_parent():
    """Makes the kernel kill this process when its parent ends."""
    LIBC.prctl(SET_PDEATHSIG, signal.SIGKILL)


def exit_code(status):
    """Converts subprocess's return code (-N: ended by signal N) to the shell's (128 + N)."""
    return status if status >= 0 else 128 - status


def describe_exit(name, status):
    """Describes how a process ended, by the return code of subprocess; None: unknown."""
    if status is None:
        return f"{name} disappeared without an exit code"
    if status >= 0:
        return f"{name} ended with exit code {status}"
    reason = ", by a user or for lack of memory" if status == -signal.SIGKILL else ""
    return f"{name} was ended by {signal.Signals(-status).name}{reason}"


def run(args):
    """Runs one rank's command with its log, and writes its exit status for `start`."""
    parent, job = os.getppid(), os.environ[JOB]
    if os.environ.get("MS_ROLE") == "MS_SCHED":  # msrun's scheduler, which does not train
        die_with_parent()
        os.environ.pop(STATUS_FILE, None)
        os.execvp(args.command[0], args.command)
    rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("RANK_ID")
    if rank is None:
        sys.exit(
            "error: neither OMPI_COMM_WORLD_RANK nor RANK_ID is set: is mpirun that of OpenMPI?"
        )
    os.environ["RANK_ID"] = rank
    if rank != os.environ[FIRST_RANK]:  # only the first rank writes the status
        os.environ.pop(STATUS_FILE, None)
    if args.device_ids:
        os.environ["DEVICE_ID"] = args.device_ids.split(",")[int(rank)]
    log = Path(args.log.replace("{rank}", rank))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            args.command,
            cwd=args.folder.replace("{rank}", rank),
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # mpirun sends it to the child too
    Path(job, f"{rank}.pid").write_text(str(os.getpid()))
    while child.poll() is None:
        if os.getppid() != parent:  # msrun or mpirun is gone
            child.kill()
            return 1
        time.sleep(0.1)
    Path(job, rank).write_text(str(child.returncode))
    return exit_code(child.returncode)


def ended_ranks(job):
    """Returns (rank, status) of the ranks that ended, in this order, then of those that vanished.

    A rank vanished if its `run` is gone without a status, which is then None.
    """
    pids = {path.stem: path.read_text() for path in Path(job).glob("*.pid")}
    gone = [rank for rank, pid in pids.items() if pid and not Path("/proc", pid).exists()]
    written = [path for path in Path(job).iterdir() if not path.suffix and path.stat().st_size]
    written.sort(key=lambda path: path.stat().st_mtime_ns)
    ended = {path.name: int(path.read_text()) for path in written}
    return list((ended | {rank: None for rank in gone if rank not in ended}).items())


def print_new_lines(printed):
    """Prints the new complete lines of logs; `printed` is {log: bytes that are printed already}."""
    for log in printed:
        with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
            file.seek(printed[log])
            lines = b"".join(file.read().rpartition(b"\n")[:2])
            sys.stdout.buffer.write(lines)
            printed[log] += len(lines)
    sys.stdout.flush()


def end_children():
    """Kills all remaining descendants; as a subreaper this process has inherited orphans."""
    import psutil  # MindSpore requires it; the Python that starts `run` may not have it

    deadline = time.monotonic() + KILL_SECONDS
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)
    if left:
        print(f"error: processes {[process.pid for process in left]} cannot be ended")


def log_of(args, rank):
    """Returns the log of a rank."""
    return Path(args.log.replace("{rank}", str(rank)))


def start(args):
    """Runs the job until it ends and prints how it ended; returns its exit code."""
    LIBC.prctl(SET_CHILD_SUBREAPER, 1)
    stops, deadline = [], None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stops.append(number))
    ranks = range(args.first, args.first + (args.ranks if args.follow_all else 1))
    logs = {log_of(args, rank): 0 for rank in ranks}
    with tempfile.TemporaryDirectory() as job:
        engine = subprocess.Popen(
            args.command,
            env=os.environ | {JOB: job, FIRST_RANK: str(args.first)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # signals to this process's group do not reach it
            preexec_fn=die_with_parent,
        )
        while engine.poll() is None and (deadline is None or time.monotonic() < deadline):
            print_new_lines(logs)
            ended = ended_ranks(job)
            if deadline is None and (stops or any(status != 0 for _, status in ended)):
                deadline = time.monotonic() + END_SECONDS
                if stops:
                    engine.terminate()
            elif deadline is None and len(ended) == args.ranks:
                deadline = time.monotonic() + LINGER_SECONDS
            time.sleep(0.2)
        ended = ended_ranks(job)
        end_children()
    print_new_lines(logs)
    return print_end(args, stops, ended, engine.returncode)


def report_failure(code, message):
    """Writes the failure to the status file, where the first rank has not: it was killed."""
    path = Path(os.environ.get(STATUS_FILE, ""))
    if not path.name or not path.parent.is_dir():  # launchers remove the folder after the start
        return
    entries = {"pid": os.getpid()}
    with contextlib.suppress(OSError, ValueError):
        entries = json.loads(path.read_text("utf-8"))
    if entries.get("state") == "failed":
        return
    entries |= {"state": "failed", "exit_code": code, "error": message}
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    with contextlib.suppress(OSError):
        new.write_text(json.dumps(entries, ensure_ascii=False) + "\n", "utf-8")
        new.replace(path)


def print_end(args, stops, ended, status):
    """Prints how the job ended; returns its exit code."""
    failed = [(rank, status) for rank, status in ended if status != 0]
    if len(ended) == args.ranks and not (stops or failed):
        print("all ranks have finished")
        return 0
    if stops:
        status, message = -stops[0], f"stopped by {signal.Signals(stops[0]).name}"
    elif failed:
        rank, status = failed[0]
        log = log_of(args, rank).resolve()
        lines = log.read_text(errors="replace").splitlines()[-400:]
        message = describe_exit(f"rank {rank}", status)
        if args.hosts > 1 and LOST.search("\n".join(lines)):
            message += " since ranks on another host do not respond: see the logs there, or "
            message += "check the network"
        message = "\n".join([f"{message}; the end of {log}:", *lines[-LINES_SHOWN:]])
    else:
        message = describe_exit(Path(args.command[0]).name, status) + ", before its ranks"
    print(f"error: {message}")
    report_failure(exit_code(status or 1), message.partition("\n")[0])
    command = os.environ.get(COMMAND)
    again = f": RESUME=1 {command}" if command else ", run the same command with RESUME=1"
    print(f"to continue a training that had begun{again}")
    return exit_code(status or 1)


def main():
    parser = argparse.ArgumentParser(
        description="Run the ranks of a training on this host", allow_abbrev=False
    )
    parser.add_argument("mode", choices=("start", "run"))
    parser.add_argument("--log", required=True, help="log of a rank; {rank} is its number")
    parser.add_argument("--ranks", type=int, help="number of ranks on this host")
    parser.add_argument("--hosts", type=int, default=1, help="number of hosts of this training")
    parser.add_argument("--first", type=int, default=0, help="number of this host's first rank")
    parser.add_argument("--follow_all", action="store_true", help="print the logs of all ranks")
    parser.add_argument(
        "--folder", default=".", help="working folder of a rank; {rank} is its number"
    )
    parser.add_argument("--device_ids", help="device of each rank (default: DEVICE_ID)")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    sys.exit(start(args) if args.mode == "start" else run(args))


if __name__ == "__main__":
    main()
