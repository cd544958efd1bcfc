"""Runs one rank of a training and tells job.py, which watches them all, how it ended.

    python3 scripts/rank.py [--folder PATTERN] [--log PATTERN] [--device_ids 4,5] -- COMMAND...

OpenMPI's variable, or else RANK_ID, says which rank; {rank} in a pattern and {device_id} as a
word of the command stand for its numbers. msrun starts this with the PATH's Python, hence the
standard library only. Without job.py, whose end it notices, it ends the whole job.
"""

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

JOB = "VNET_JOB"  # environment variable, the same in all processes of a job
KILL_SECONDS = 10  # from SIGKILL until a process counts as one that cannot be ended


def exit_code(status):
    """The shell's exit code for what subprocess says: minus N where signal N ended the process."""
    return status if status >= 0 else 128 - status


def job_address(job):
    """Where job.py listens: a Unix socket that has no file."""
    return f"\0vnet-{job}"


def processes_of(job):
    """The ids of a job's processes, this one left out."""
    mark = f"{JOB}={job}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        pid = int(environment.parent.name)
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            if pid != os.getpid() and mark in environment.read_bytes().split(b"\0"):
                yield pid


def end_processes(job, term_seconds):
    """Ends all processes of a job, wherever they have gone: SIGTERM, and later SIGKILL.

    Returns the ids of those that even so do not end.
    """
    begin = time.monotonic()
    asked = set()
    while pids := set(processes_of(job)):
        waited_s = time.monotonic() - begin
        if waited_s > term_seconds + KILL_SECONDS:
            return sorted(pids)
        kill = waited_s >= term_seconds
        for pid in pids if kill else pids - asked:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
        asked |= pids
        time.sleep(0.1)
    return []


def die_with_parent():
    """Lets the kernel kill this process when its parent ends (prctl PR_SET_PDEATHSIG)."""
    LIBC.prctl(1, signal.SIGKILL)


LIBC = ctypes.CDLL(None)  # loaded before the fork, after which little is allowed


def log_path():
    """The file that standard output goes to, None where it is none."""
    if stat.S_ISREG(os.fstat(1).st_mode):
        return str(Path("/proc/self/fd/1").readlink())
    return None


def parse_arguments():
    parser = argparse.ArgumentParser(description="Run one rank of a training")
    parser.add_argument("--folder", default=".", help="changed to; {rank} is the rank")
    parser.add_argument("--log", help="appended to; {rank} is the rank")
    parser.add_argument("--device_ids", help="device of each rank (default: DEVICE_ID)")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def main():
    args = parse_arguments()
    environment = dict(os.environ)
    if environment.get("MS_ROLE") == "MS_SCHED":  # msrun's meeting point, which trains nothing
        rank = "scheduler"
    else:
        rank = int(environment.get("OMPI_COMM_WORLD_RANK") or environment["RANK_ID"])
        environment["RANK_ID"] = str(rank)
        if args.device_ids:
            environment["DEVICE_ID"] = args.device_ids.split(",")[rank]
        if args.log:
            log = args.log.replace("{rank}", str(rank))
            print(f"the log of rank {rank} is {log}", flush=True)
            os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), 1)
            os.dup2(1, 2)
        os.chdir(args.folder.replace("{rank}", str(rank)))
    device_id = environment.get("DEVICE_ID", "0")
    command = [device_id if word == "{device_id}" else word for word in args.command]

    job = environment[JOB]
    watcher = socket.socket(socket.AF_UNIX)
    try:
        watcher.connect(job_address(job))
    except OSError:
        sys.exit(f"error: rank {rank}: its job has ended already")
    hello = {"rank": rank, "log": log_path()}
    watcher.sendall(json.dumps(hello).encode() + b"\n")
    child = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the child ends by it, in its own time
    while child.poll() is None:
        if select.select([watcher], [], [], 0.2)[0]:  # job.py never writes: it is gone
            print(f"error: rank {rank}: job.py is gone, the job ends", file=sys.stderr, flush=True)
            end_processes(job, term_seconds=0)  # at once, since others of the job do the same
            sys.exit(1)
    with contextlib.suppress(OSError):
        watcher.sendall(f"{child.returncode}\n".encode())
    sys.exit(exit_code(child.returncode))


if __name__ == "__main__":
    main()
