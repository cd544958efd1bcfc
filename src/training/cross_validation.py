"""Cross-validation: trains and evaluates a network for each fold, in processes of their own.

All that a later call needs to go on is in the files of `src.training.folds`.
"""

import json
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import datetime
from pathlib import Path

from easydict import EasyDict

from ..checkpoint_file import CROSS_VALIDATION, ENSEMBLE, write_ensemble
from ..config import training_config, vnet_cfg
from ..data_manager import Case, find_cases
from ..promise12.splits import draw_splits, list_cases
from ..report.painter import PROCESSES, Painter
from ..report.results import REPORT
from ..report.tables import zoo_lines
from ..utils.errors import DataError, UsageError, last_error
from ..utils.files import LOCK_FILE, open_lock, write_files, write_json
from ..utils.process import PACKAGE, core_count, module_command, term_as_exit
from ..utils.status import STATUS_FILE, write_status
from .folds import (
    EVALUATION,
    Fold,
    check_unedited,
    final_checkpoints,
    pooled_metrics,
    write_pooled_results,
)
from .progress import TimeLeft, duration_text

log = logging.getLogger(__name__)

SET_HERE = ("fold", "dirResult", "dirPredictionImage")  # keys that each fold gets its own of
SPLIT = "split"  # folder of the splits
POLL_S = 1.0
PROGRESS_S = 60.0  # between two lines about the progress


def cross_validate(
    data_path: str | Path,
    count: int,
    out_path: str | Path,
    overrides: list[str],
    device_target: str = "auto",
    device_id: int = 0,
    split_seed: int = 1,
    parallel: int = 1,
    language: str = "en",
) -> None:
    """Trains and evaluates a network for each fold of the cases, or goes on with that.

    Args:
        data_path: folder with `img/` and `gt/`, all of whose cases take part.
        count: number of folds.
        out_path: of the files, see `src.training.folds`.
        overrides: of the configuration, see `override_config`.
        device_target, device_id: of the trainings; with `parallel` the first device number.
        split_seed: of the draw of the folds.
        parallel: number of folds at the same time. On a CPU they share the cores; on Ascend and GPU
            each has a device.
        language: of the reports that are not yet written, one of `src.report.texts.LANGUAGES`.

    Raises:
        UsageError: other arguments than those that `out_path` was started with, or wrong ones.
        DataError: a file cannot be used, a training or evaluation failed, or another process
            works on `out_path`.
    """
    from ..devices.device import choose_device

    if parallel < 1:
        raise UsageError(f"--parallel {parallel}: expected at least 1")
    data, out = Path(data_path).absolute(), Path(out_path).absolute()
    cases = list_cases(data)
    splits = draw_splits(cases, folds=count, seed=split_seed)
    target = choose_device(device_target)
    config = training_config(target, overrides)
    for key in SET_HERE:
        if config[key] != vnet_cfg[key]:
            raise UsageError(f"{key}={config[key]}: each fold has its own; leave it out")
    request = {
        "data_path": str(data),
        "folds": count,
        "split_seed": split_seed,
        "device_target": target,
        "cases": cases,
        "configuration": dict(config),
    }
    _check_place(out)
    with open_lock(out / LOCK_FILE) as lock:
        if not lock.acquire(wait=False):
            raise DataError(f"{out}: another cross-validation is running there")
        _check_request(out / CROSS_VALIDATION, request)
        _write_splits(out / SPLIT, splits)
        folds = [
            Fold(number, out / f"fold{number}", EasyDict({**config, "fold": number}))
            for number in range(count)
        ]
        write_status("running", results=str(out))
        found = find_cases(data, cases)
        check_unedited(folds, found)
        _Work(folds, data, out, target, device_id, parallel, language).run()
        _finish(folds, found, out, language)


def _check_place(out: Path) -> None:
    """Raises a DataError for a folder that holds other files than those of a cross-validation."""
    if not out.is_dir() or (out / CROSS_VALIDATION).is_file():
        return
    if found := sorted(set(out.iterdir()) - {out / LOCK_FILE}):
        raise DataError(
            f"{found[0]}: not of a cross-validation; choose a new folder for --out_path"
        )


def _check_request(path: Path, request: dict) -> None:
    """Writes the request of a new cross-validation; an earlier one must be the same.

    Raises:
        UsageError: it differs.
        DataError: the earlier one cannot be read.
    """
    if not path.is_file():
        write_json(path, request)
        return
    try:
        earlier = json.loads(path.read_text("utf-8"))
        saved = {**vnet_cfg, **earlier["configuration"]}  # of an earlier or later version, too
        before = {**earlier, "configuration": {key: saved[key] for key in vnet_cfg}}
        differing = [key for key in request if before[key] != request[key]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path}: not of a cross-validation ({error!r}); choose another --out_path"
        ) from None
    if not differing:
        return
    key, was, now = differing[0], before[differing[0]], request[differing[0]]
    if key == "configuration":
        key = next(name for name in now if was[name] != now[name])
        was, now = was[key], now[key]
    elif key == "cases":
        was, now = (sorted(set(a) - set(b)) for a, b in ((was, now), (now, was)))
    raise UsageError(
        f"{path.parent}: was started with {key}={was}, not {key}={now}; give the same arguments to "
        "go on, or another --out_path"
    )


def _write_splits(folder: Path, splits: dict[str, list[str]]) -> None:
    """Writes the splits of the folds.

    Raises:
        DataError: a file of an earlier call has other cases.
    """
    files = {
        folder / name: "".join(f"{line}\n" for line in lines).encode()
        for name, lines in splits.items()
    }
    for path, content in files.items():
        if path.is_file() and path.read_bytes() != content:
            raise DataError(
                f"{path}: not the fold that is drawn now (edited, or of a version that did not "
                "keep the cases of a patient together); choose another --out_path"
            )
    write_files(files)


class _Work:
    """What is left to do of the folds, some at the same time.

    Args:
        folds: all of them.
        data: folder with `img/` and `gt/`.
        out: of the cross-validation.
        target, device_id, parallel, language: see `cross_validate`.
    """

    def __init__(
        self,
        folds: list[Fold],
        data: Path,
        out: Path,
        target: str,
        device_id: int,
        parallel: int,
        language: str,
    ) -> None:
        self.folds, self.data, self.out, self.target = folds, data, out, target
        self.language = language
        self.parallel = min(parallel, len(folds))
        self.devices: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.parallel):
            self.devices.put(device_id if target == "CPU" else device_id + slot)
        self.environment = {k: v for k, v in os.environ.items() if k != STATUS_FILE}
        self.environment["PYTHONUNBUFFERED"] = "1"
        if self.parallel > 1 and target == "CPU":
            threads = max(1, core_count() // self.parallel)
            self.environment.setdefault("OMP_NUM_THREADS", str(threads))
        self.processes: set[subprocess.Popen] = set()
        self.stopped = threading.Event()

    def run(self) -> None:
        """Trains and evaluates all folds; logs the progress.

        Raises:
            DataError: a training or evaluation failed; the others are stopped.
        """
        pace = Pace(self.folds)
        with term_as_exit(), ThreadPoolExecutor(self.parallel) as pool:
            futures = [pool.submit(self.work_on, fold) for fold in self.folds]
            try:
                left = set(futures)
                while left:
                    done, left = wait(left, POLL_S, FIRST_EXCEPTION)
                    for future in sorted(done, key=futures.index):  # the first fault counts
                        future.result()
                    if line := pace.line(time.time()):
                        log.info(line)
            finally:
                self.stop(futures)

    def stop(self, futures: Sequence) -> None:
        """Ends the processes that still run; a training can be resumed."""
        self.stopped.set()
        for future in futures:
            future.cancel()
        for process in list(self.processes):
            process.terminate()

    def work_on(self, fold: Fold) -> None:
        """Trains and evaluates a fold, as far as that is not done.

        Raises:
            DataError: the training or the evaluation failed.
        """
        fold.create()
        if fold.metrics() is not None:
            log.info(f"fold {fold.number}: done before")
            return
        device = self.devices.get()
        try:
            self.train(fold, device)
            self.evaluate(fold, device)
        finally:
            self.devices.put(device)

    def train(self, fold: Fold, device: int) -> None:
        if fold.final_checkpoint() is None:
            words = ["--device_id", device, "--resume", fold.folder]
            for kind in ("train", "val"):
                words += [f"--{kind}_split_file_path", self.split(kind, fold)]
            self.start("train", fold, words)
        if fold.final_checkpoint() is None and not self.stopped.is_set():
            raise DataError(
                f"fold {fold.number}: {fold.folder} has no checkpoint of its last epoch"
            )

    def evaluate(self, fold: Fold, device: int) -> None:
        words = ["--dev_id", device, "--ckpt_path", fold.final_checkpoint()]
        words += ["--eval_split_file_path", self.split("val", fold), "--language", self.language]
        self.start("eval", fold, [*words, "--set", f"dirPredictionImage={fold.results}"])

    def split(self, kind: str, fold: Fold) -> Path:
        return self.out / SPLIT / f"{kind}_fold{fold.number}.csv"

    def start(self, command: str, fold: Fold, words: list) -> None:
        """Runs a command in a process, and waits for its end.

        Raises:
            DataError: it failed.
        """
        path = fold.folder / f"{command}.log"
        if self.stopped.is_set():
            return
        log.info(f"fold {fold.number}: {command}, log {path}")
        words = [command, "--device_target", self.target, "--data_path", self.data, *words]
        begin = path.stat().st_size if path.is_file() else 0  # after the output of earlier calls
        code = self.run_process(list(map(str, words)), path)
        if code != 0 and not self.stopped.is_set():
            end = describe_end(code, path.read_bytes()[begin:].decode(errors="replace"))
            raise DataError(
                f"fold {fold.number}: {command} {end}; the whole log is {path}; start again with "
                "the same arguments to go on"
            )

    def run_process(self, words: list[str], path: Path) -> int:
        """Runs `vnet WORDS`, whose output is appended to a file; returns the exit code."""
        with path.open("ab") as file:
            process = subprocess.Popen(
                module_command(PACKAGE, *words, ends_with_parent=True),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )
        self.processes.add(process)
        if self.stopped.is_set():  # since it was asked above
            process.terminate()
        try:
            return process.wait()
        finally:
            self.processes.discard(process)


def describe_end(code: int, output: str) -> str:
    """Says how a process failed, such as "ended with exit code 1, error: no such split".

    Args:
        code: of `subprocess`, -N where signal N ended it.
        output: of the process.
    """
    if code == -signal.SIGKILL:  # its last line is no reason
        return "was ended by SIGKILL, by a user or for lack of memory"
    how = (
        f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    )
    return ", ".join(filter(None, (how, last_error(output))))


class Pace:
    """How far the folds are, and when the last of them will be trained.

    Args:
        folds: all of them.
    """

    def __init__(self, folds: Sequence[Fold]) -> None:
        self.folds = folds
        self.before = sum(self.done())
        self.time_left = TimeLeft(sum(fold.config.epochs for fold in folds))
        self.looked_s = -PROGRESS_S

    def done(self) -> list[int]:
        """The epochs of each fold; of one that has ended all, however early it stopped."""
        return [
            fold.config.epochs if fold.final_checkpoint() else fold.epochs_done()
            for fold in self.folds
        ]

    def line(self, now_s: float) -> str:
        """Returns a line about the progress; "" soon after a call, or where nothing has changed.

        Args:
            now_s: as `time.time` returns.
        """
        if now_s - self.looked_s < PROGRESS_S:
            return ""
        self.looked_s = now_s
        done = self.done()
        left = self.time_left.epochs - sum(done)
        if sum(done) == self.before or not left:
            return ""
        left_s = self.time_left.seconds(sum(done), now_s)
        end = ""
        if left_s is not None:
            at = datetime.fromtimestamp(now_s + left_s)
            end = f"; trained about {at:%a %H:%M} (in {duration_text(left_s)})"
        complete = [fold.final_checkpoint() is not None for fold in self.folds]
        running = [
            f"fold {fold.number}: epoch {epochs} of {fold.config.epochs}"
            for fold, epochs, is_complete in zip(self.folds, done, complete, strict=True)
            if fold.folder.is_dir() and not is_complete
        ]
        return (
            f"{', '.join(running) or 'evaluating'}; folds trained: {sum(complete)} of "
            f"{len(self.folds)}; epochs left: {left}{end}"
        )


def _finish(folds: list[Fold], cases: list[Case], out: Path, language: str) -> None:
    """Writes the results of all cases, and the list of the networks."""
    if not (out / ENSEMBLE).is_file() or pooled_metrics(out / EVALUATION, folds) is None:
        (out / ENSEMBLE).unlink(missing_ok=True)
        check_unedited(folds, cases)
        with Painter(PROCESSES) as painter:
            rows = write_pooled_results(out / EVALUATION, folds, cases, painter, language)
        for fold in folds:
            own = [row["dice"] for row in rows if row["fold"] == fold.number]
            log.info(f"fold {fold.number}: dice {sum(own) / len(own):.4f} of {len(own)} cases")
        for line in zoo_lines(rows):
            log.info(line)
        write_ensemble(out, final_checkpoints(folds))
    log.info(f"metrics of all cases, shown in {out / EVALUATION / REPORT}")
    log.info(f"{out}: the ensemble of the folds' networks, for --ckpt_path and release.py")
