"""Runs the ranks of one training on this host, and ends all of them when one fails.

    python scripts/job.py --ranks N [--each] [--merge] [--rank_logs FOLDER] [--master_addr A]
        [--master_port P] [--nodes N] [--node_rank R] -- COMMAND...

COMMAND starts the ranks, each under rank.py: once, as msrun and mpirun do for all of them, or with
--each once for every rank. Its word {port} stands for --master_port. The launchers of this folder
start this and may go away; it stays until all is over, whatever becomes of the terminal.
"""

import argparse
import asyncio
import json
import os
import re
import secrets
import signal
import socket
import struct
import sys
from collections import deque
from pathlib import Path

import hosts
from rank import JOB, end_processes, exit_code, job_address

LINES_SHOWN = 20  # of the log of the rank that failed
COPY_SECONDS = 0.2  # between two looks at the ranks' logs
REPORT_SECONDS = 2  # for a rank's own report to arrive, after msrun or mpirun has failed
FINISH_SECONDS = 300  # for all ranks to finish after the first of them has
LINGER_SECONDS = 30  # for msrun or mpirun to end after all of its ranks have
TERM_SECONDS = 5  # from SIGTERM to SIGKILL


class Job:
    """The ranks on this host: what they have said so far, and how all has ended."""

    def __init__(self, args):
        self.args = args
        self.logs = {}  # rank -> its log, open, since a later start may rename it
        self.copied = {}  # a log -> how much of it is copied
        self.finished = set()
        self.has_run = False  # whether rank 0 has said which folder the training is kept in
        self.links = set()  # to other hosts, see hosts.py
        self.ended = asyncio.Future()

    def end(self, code, message, rank=None):
        """Ends the job, for the first cause; later ones follow from it."""
        if not self.ended.done():
            self.ended.set_result((code, message, rank))

    def all_finished(self):
        return len(self.finished) == self.args.ranks

    async def listen_to_rank(self, reader, writer):
        """Hears from a rank.py first who it is, and later how its rank has ended."""
        peer = writer.get_extra_info("socket").getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
        if struct.unpack("3i", peer)[1] != os.geteuid():
            writer.close()
            return
        hello = json.loads(await reader.readline())
        rank, log = hello["rank"], hello["log"]
        if log:
            self.logs[rank] = Path(log).open("rb")  # noqa: SIM115
            first = self.args.node_rank * self.args.ranks
            if rank == first or (self.args.merge and rank != "scheduler"):
                self.copied[self.logs[rank]] = Path(log).stat().st_size
        line = await reader.readline()
        writer.close()
        status = int(line) if line else None
        if status == 0:
            later = asyncio.get_running_loop().call_later
            if rank != "scheduler":
                self.finished.add(rank)
                later(FINISH_SECONDS, self.end_unfinished, rank)
            if self.all_finished():
                later(LINGER_SECONDS, self.end_lingering)
        elif not self.all_finished():
            name = rank if rank == "scheduler" else f"rank {rank}"
            self.end(1 if status is None else exit_code(status), how(name, status), rank)

    def end_unfinished(self, rank):
        """Ends a job whose other ranks may wait in vain for one that has ended without a fault."""
        if not self.all_finished():
            self.end(1, f"other ranks still run {FINISH_SECONDS} s after rank {rank} has finished")

    def end_lingering(self):
        """Waits no longer for msrun or mpirun, unless ranks on other hosts may still need it."""
        if self.links:
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self.end_lingering)
        else:
            self.end(0, "all ranks have finished")

    async def run_command(self, environment):
        """Runs the command that starts the ranks, or one of them."""
        process = await asyncio.create_subprocess_exec(
            *self.args.command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # out of reach of signals that are meant for this process
        )
        status = await process.wait()
        if status != 0 and not self.all_finished():
            await asyncio.sleep(REPORT_SECONDS)
            self.end(exit_code(status), how(Path(self.args.command[0]).name, status))

    async def run_commands(self, environment):
        """Runs all commands; when they are through without a fault, so is the job."""
        variables = [{"RANK_ID": str(rank)} for rank in range(self.args.ranks)]
        await asyncio.gather(
            *(
                self.run_command(environment | own)
                for own in (variables if self.args.each else [{}])
            )
        )
        running = set(self.logs) - self.finished - {"scheduler"}
        if running:
            await asyncio.sleep(REPORT_SECONDS)
            running -= self.finished
        if running:
            self.end(1, f"{Path(self.args.command[0]).name} has ended before ranks {running} have")
        self.end(0, "all ranks have finished")

    def copy_logs(self):
        """Writes whole new lines of the followed logs to standard output."""
        for log, done in self.copied.items():
            log.seek(done)
            lines, newline, _ = log.read().rpartition(b"\n")
            self.copied[log] += len(lines + newline)
            self.has_run |= re.search(rb"^run: ", lines, re.MULTILINE) is not None
            sys.stdout.buffer.write(lines + newline)
        sys.stdout.flush()

    async def follow_logs(self):
        while True:
            self.copy_logs()
            await asyncio.sleep(COPY_SECONDS)

    def log_of(self, rank):
        """The log of a rank, perhaps one of those that mpirun writes; None if there is none."""
        if rank is not None and self.args.rank_logs:
            for log in Path(self.args.rank_logs).resolve().rglob("rank.*/stdout"):
                if int(log.parent.suffix[1:]) == rank:  # which mpirun pads with zeros
                    return log.open("rb")
        return self.logs.get(rank)

    async def run(self):
        """Runs the job to its end; returns its exit code."""
        args, loop = self.args, asyncio.get_running_loop()
        link = (self.links, self.end)
        size = (args.nodes, args.ranks * args.nodes)
        job = secrets.token_hex(16)
        for number in (signal.SIGINT, signal.SIGTERM):
            text = f"stopped by {number.name}"
            loop.add_signal_handler(number, self.end, exit_code(-number), text)
        works = [self.run_commands(os.environ | {JOB: job}), self.follow_logs()]
        if args.nodes > 1 and args.node_rank == 0:
            await hosts.listen(args.master_addr, args.master_port + 1, *size, *link)
        elif args.nodes > 1:
            where = (args.master_addr, args.master_port + 1, args.node_rank)
            works.append(hosts.join(*where, *size, *link))
        await asyncio.start_unix_server(
            lambda *pair: hosts.until_cancelled(self.listen_to_rank(*pair)), job_address(job)
        )
        tasks = [asyncio.create_task(work) for work in works]
        for task in tasks:
            task.add_done_callback(self.fail_on_error)

        try:
            code, message, rank = await self.ended
            log = self.log_of(rank)
            path = Path(f"/proc/self/fd/{log.fileno()}").readlink() if log else None
            there = f" (its log there: {path})" if log else ""
            await hosts.tell(self.links, code, message + there)
        finally:
            stubborn = end_processes(job, TERM_SECONDS)
        self.copy_logs()
        if code == 0:
            print(message)
        elif log:
            print(f"error: {message}; the end of {path}:\n{last_lines(log)}", end="")
        else:
            print(f"error: {message}")
        if code != 0 and self.has_run:
            print("the job is over; RESUME=1 before the same command goes on with this training")
        if stubborn:
            print(f"error: processes {stubborn} of this job cannot be ended")
        return code

    def fail_on_error(self, task):
        """Ends the job when a task of this program fails, which none should."""
        if not task.cancelled() and task.exception():
            self.end(1, f"job.py: {task.exception()!r}")


def how(name, status):
    """In words how a process ended, as subprocess says it; status None: nobody knows."""
    if status is None:
        return f"{name} is gone without a word"
    if status >= 0:
        return f"{name} ended with exit code {status}"
    names = {number.value: number.name for number in signal.Signals}
    reason = ", by hand or for want of memory" if status == -signal.SIGKILL else ""
    return f"{name} was ended by {names.get(-status, f'signal {-status}')}{reason}"


def last_lines(log):
    """The end of a log that is open, whole lines."""
    log.seek(0)
    lines = (line.decode(errors="replace") for line in deque(log, LINES_SHOWN))
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def parse_arguments():
    parser = argparse.ArgumentParser(description="Run the ranks of one training on this host")
    parser.add_argument("--ranks", type=int, required=True, help="how many run on this host")
    parser.add_argument("--each", action="store_true", help="one COMMAND for each rank")
    parser.add_argument(
        "--merge", action="store_true", help="show all ranks' logs, not the first's"
    )
    parser.add_argument("--rank_logs", help="folder of mpirun's logs, one for each rank")
    parser.add_argument("--master_addr", default="127.0.0.1", help="where ranks meet")
    parser.add_argument("--master_port", type=int, default=0, help="0: a free one")
    parser.add_argument("--nodes", type=int, default=1, help="number of hosts")
    parser.add_argument("--node_rank", type=int, default=0, help="which of them this is")
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


async def run_job(args):
    return await Job(args).run()


def main():
    args = parse_arguments()
    ports = [args.master_port] + [args.master_port + 1] * (args.nodes > 1)
    try:
        found = hosts.check_address(args.master_addr, ports, args.nodes, args.node_rank)
    except hosts.HostError as error:
        message, code = error.args
        print(f"error: {message}")
        sys.exit(code)
    args.master_port = args.master_port or found
    args.command = [str(args.master_port) if w == "{port}" else w for w in args.command]
    sys.exit(asyncio.run(run_job(args)))


if __name__ == "__main__":
    main()
