"""Starts one host's ranks by msrun or mpirun, which end all when one fails; says how it ended.

    python ranks.py start --ranks N --log PATTERN [--first RANK] [--follow_all] -- msrun ... \
        python3 ranks.py run --log PATTERN [--folder PATTERN] [--device_ids 4,5] -- COMMAND...

`run` is one rank; {rank} in a pattern stands for its number. `start` follows the first rank's log,
bounds how long msrun and mpirun may take to end, and leaves no process behind.
"""

import argparse
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Environment variables: the folder where ranks say how they ended; this host's first rank; see
# src/utils/status.py.
JOB, FIRST_RANK, STATUS_FILE = "VNET_JOB", "VNET_FIRST_RANK", "VNET_STATUS_FILE"
LINES_SHOWN = 20  # of the log of the rank that failed
END_SECONDS = 3  # for msrun or mpirun to end once a rank has failed
LINGER_SECONDS = 60  # and once all have finished: msrun waits for its scheduler without a bound
KILL_SECONDS = 10  # until a process counts as one that cannot be ended
SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # of Linux' prctl
# What MindSpore says when ranks of another host do not answer any more.
LOST = re.compile("timed out|meta server|AllReduce|unreachable|HCCL|NCCL")
LIBC = ctypes.CDLL(None)  # loaded before any fork, after which little is allowed


def die_with_parent():
    LIBC.prctl(SET_PDEATHSIG, signal.SIGKILL)


def exit_code(status):
    """The shell's exit code for what subprocess says: minus N where signal N ended the process."""
    return status if status >= 0 else 128 - status


def describe_exit(name, status):
    """In words how a process ended; status None: nobody knows."""
    if status is None:
        return f"{name} is gone without a word"
    if status >= 0:
        return f"{name} ended with exit code {status}"
    reason = ", by hand or for want of memory" if status == -signal.SIGKILL else ""
    return f"{name} was ended by {signal.Signals(-status).name}{reason}"


def run(args):
    """Runs one rank's command, its output in the rank's log, and tells `start` how it ended."""
    parent, job = os.getppid(), os.environ[JOB]
    if os.environ.get("MS_ROLE") == "MS_SCHED":  # msrun's meeting point, which trains nothing
        die_with_parent()
        os.environ.pop(STATUS_FILE, None)
        os.execvp(args.command[0], args.command)
    rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["RANK_ID"]
    os.environ["RANK_ID"] = rank
    if rank != os.environ[FIRST_RANK]:  # one rank tells the launcher how far the training is
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
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # mpirun's, which the child has got as well
    Path(job, f"{rank}.pid").write_text(str(os.getpid()))
    while child.poll() is None:
        if os.getppid() != parent:  # msrun or mpirun is gone
            child.kill()
            return 1
        time.sleep(0.1)
    Path(job, rank).write_text(str(child.returncode))
    return exit_code(child.returncode)


def ended_ranks(job):
    """[rank, status] of those that have ended, the first one first, then those that vanished."""
    pids = {path.stem: path.read_text() for path in Path(job).glob("*.pid")}
    gone = [rank for rank, pid in pids.items() if pid and not Path("/proc", pid).exists()]
    told = [path for path in Path(job).iterdir() if not path.suffix and path.stat().st_size]
    told.sort(key=lambda path: path.stat().st_mtime_ns)
    ended = {path.name: int(path.read_text()) for path in told}
    return list((ended | {rank: None for rank in gone if rank not in ended}).items())


def copy_logs(done):
    """Prints the new whole lines of logs; log -> how much of it is printed."""
    for log in done:
        with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
            file.seek(done[log])
            lines = b"".join(file.read().rpartition(b"\n")[:2])
            sys.stdout.buffer.write(lines)
            done[log] += len(lines)
    sys.stdout.flush()


def end_children():
    """Kills all that is left; the orphans of a child are this process's own children."""
    import psutil  # as msrun does; ranks may be started by a Python that has none

    deadline = time.monotonic() + KILL_SECONDS
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)
    if left:
        print(f"error: processes {[process.pid for process in left]} cannot be ended")


def log_of(args, rank):
    return Path(args.log.replace("{rank}", str(rank)))


def start(args):
    """Runs the job to its end, and says how it ended."""
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
            start_new_session=True,  # out of reach of signals that are meant for this process
            preexec_fn=die_with_parent,
        )
        while engine.poll() is None and (deadline is None or time.monotonic() < deadline):
            copy_logs(logs)
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
    copy_logs(logs)
    return tell_end(args, stops, ended, engine.returncode)


def tell_end(args, stops, ended, status):
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
            message += (
                " as ranks on another host are gone: see the logs there, or is the network cut?"
            )
        message = "\n".join([f"{message}; the end of {log}:", *lines[-LINES_SHOWN:]])
    else:
        message = describe_exit(Path(args.command[0]).name, status) + " before its ranks have"
    print(f"error: {message}")
    print("RESUME=1 before the same command goes on with a training that had begun")
    return exit_code(status or 1)


def main():
    parser = argparse.ArgumentParser(description="Run the ranks of a training on this host")
    parser.add_argument("mode", choices=("start", "run"))
    parser.add_argument("--log", required=True, help="of a rank; {rank} is its number")
    parser.add_argument("--ranks", type=int, help="how many run on this host")
    parser.add_argument("--hosts", type=int, default=1, help="of this training")
    parser.add_argument("--first", type=int, default=0, help="number of this host's first rank")
    parser.add_argument("--follow_all", action="store_true", help="show all logs, not the first's")
    parser.add_argument("--folder", default=".", help="changed to; {rank} is the rank")
    parser.add_argument("--device_ids", help="device of each rank (default: DEVICE_ID)")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    sys.exit(start(args) if args.mode == "start" else run(args))


if __name__ == "__main__":
    main()
