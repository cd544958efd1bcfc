"""The folder of a run: created for a new training, found and restored for a resume, locked.

dirResult/vnet.TASK.DATE/
    config.json  history.csv  progress.png  training.json
    ckpt/        see src/checkpoint.py
    tensorboard/ with `tensorboard`, see src/training/event_log.py
"""

import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from easydict import EasyDict

from .. import checkpoint
from ..checkpoint import TrainingCells
from ..config import (
    CONFIG_NAME,
    FIXED_BY_RUN,
    PRESETS,
    config_of_run,
    override_config,
    preset_overrides,
    save_config,
    training_config,
    vnet_cfg,
)
from ..data_manager import edited_cases, find_cases
from ..devices.ranks import Ranks
from ..images.formats import stem
from ..promise12.splits import read_split, split_file
from ..run_record import HISTORY
from ..utils.errors import DataError, UsageError, list_few, reason_of
from ..utils.files import LOCK_FILE, open_lock
from .progress import Progress

log = logging.getLogger(__name__)

DATE = r"\d{8}_\d{6}(_\d+)?"


def new_run_folder(config: EasyDict) -> Path:
    """Creates `dirResult/vnet.TASK.DATE/ckpt` (UTC) and saves the configuration there.

    Returns:
        The run's folder.

    Raises:
        DataError: the folder cannot be created.
    """
    stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime())
    for attempt in range(100):
        name = f"vnet.{config.task}.{stamp}" + (f"_{attempt}" if attempt else "")
        folder = Path(config.dirResult, name)
        try:
            folder.mkdir(parents=True)
            (folder / "ckpt").mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be created ({reason_of(error)}); choose another dirResult"
            ) from None
        save_config(config, folder / CONFIG_NAME)
        return folder
    raise DataError(f"{config.dirResult}: no free name for a run like vnet.{config.task}.{stamp}")


def newest_run(config: EasyDict, fold: int | None = None) -> Path | None:
    """Returns the folder of the run that was started last; None if there is none.

    Args:
        config: `dirResult` and `task`.
        fold: of the run; None: any.
    """
    runs = [
        path.parent
        for path in Path(config.dirResult).glob(f"vnet.{config.task}.*/{CONFIG_NAME}")
        if re.fullmatch(rf"vnet\.{config.task}\.{DATE}", path.parent.name)
    ]
    runs.sort(key=lambda run: (run.name, run.stat().st_mtime), reverse=True)
    return next((r for r in runs if fold is None or config_of_run(r, []).fold == fold), None)


class RunState(NamedTuple):
    """How far the newest run of a task is."""

    folder: Path
    config: EasyDict  # to continue with
    progress: Progress  # the initial one before its first checkpoint
    is_complete: bool  # nothing is left to train


def newest_state(overrides: list[str], has_validation: bool) -> RunState | None:
    """Returns how far the newest run of a task and fold is, None if there is no run.

    Args:
        overrides: of a resume, such as `dirResult`, `task`, `fold` or more epochs; see
            `config_of_run`.
        has_validation: whether there are validation cases; without them nothing stops early.

    Raises:
        DataError: another process trains it, or it cannot be read.
        UsageError: an override that a resume does not allow.
    """
    wanted = override_config(vnet_cfg, overrides)
    folder = newest_run(wanted, wanted.fold)
    if folder is None:
        return None
    config = config_of_run(folder, overrides)
    with lock_run(folder):  # reading completes a checkpoint that was being written
        saved = checkpoint.read_progress(folder / "ckpt")
    progress = Progress(**(saved or {}))
    is_over = progress.epoch >= config.epochs
    stopped = has_validation and progress.has_stalled(config.early_stop)
    return RunState(folder, config, progress, is_over or stopped)


def check_same_preset(state: RunState, preset: str | None, overrides: list[str]) -> None:
    """Raises a DataError if a run's training differs from a preset; logs other differences.

    Args:
        state: of the run, which `newest_state` found with these overrides.
        preset: that a user asks for; None: the run may have any settings.
        overrides: of the preset's settings.
    """
    wanted = override_config(vnet_cfg, [*preset_overrides(preset), *overrides])
    differ = [key for key in PRESETS.get(preset or "", ()) if state.config[key] != wanted[key]]
    for key in differ:
        if key in FIXED_BY_RUN:
            raise DataError(
                f"{state.folder}: was started with {key}={state.config[key]}, --preset {preset} "
                f"has {wanted[key]}; leave --preset out to go on with it, or give this training a "
                "name of its own, --set task=NAME"
            )
    if differ:
        kept = ", ".join(f"{key}={state.config[key]} (not {wanted[key]})" for key in differ)
        log.info(f"--preset {preset}: the run keeps its own {kept}; --set changes them")


def check_same_cases(
    state: RunState, data_path: str | Path, train_split: str | Path, val_split: str | Path | None
) -> None:
    """Raises a DataError if a complete run is of other cases, or of what they were before an edit.

    Args:
        state: of the run.
        data_path: folder with `img/` and `gt/`.
        train_split: file of the split, or a folder with such files.
        val_split: the same for the validation cases, which a run without any may get.
    """
    remedy = "give this training a name of its own, --set task=NAME"
    progress = state.progress
    named: list[str] = []
    for kind, split, ids in (
        ("train", train_split, progress.case_ids),
        ("val", val_split, progress.val_case_ids),
    ):
        if split is None:
            continue
        names = read_split(split_file(split, kind, state.config.fold))
        named += names
        other = sorted({stem(name) for name in names} ^ set(ids))
        if other and ids:
            raise DataError(
                f"{state.folder}: is complete, but of other cases for "
                f"{'training' if kind == 'train' else 'validation'} ({other[0]} differs); {remedy}"
            )
    cases = find_cases(data_path, named) if progress.digests else []
    edited = edited_cases(progress.digests, cases, state.config)
    if edited:
        raise DataError(
            f"{state.folder}: is complete, but with another image or mask of {list_few(edited)}; "
            f"restore the files, or {remedy}"
        )


def configure_run(
    resume: str | Path | bool,
    device_target: str,
    overrides: list[str],
    ranks: Ranks = Ranks(),  # noqa: B008, it is frozen
) -> tuple[EasyDict, Path | None]:
    """Returns the configuration of a run and, for a resume, its folder.

    Args:
        resume: folder of a run, True for the newest, False for a new run.
        device_target: "Ascend", "GPU" or "CPU".
        overrides: `--set` texts; on a resume they change the run's own configuration.
        ranks: only the first reads the run's folder.

    Returns:
        The configuration, the same on every rank, and the folder of the run to resume: None for a
        new run and on all ranks but the first.

    Raises:
        UsageError: an override is wrong, or not allowed for a resumed run.
        DataError: there is no such run, or the ranks were started with different arguments.
    """
    config = training_config(device_target, overrides)
    request = {"overrides": overrides, "resumes": resume is not False}
    run_folder = None
    if resume is not False and ranks.is_first:
        fold = config.fold if any(text.startswith("fold=") for text in overrides) else None
        run_folder = newest_run(config, fold) if resume is True else Path(resume)
        if run_folder is None:
            of_fold = "" if fold is None else f" of fold {fold}"
            raise DataError(f"{config.dirResult}: no run vnet.{config.task}.*{of_fold} to resume")
        config = config_of_run(run_folder, overrides)
    first = json.loads(ranks.text_from_first(json.dumps({"config": config, "request": request})))
    if first["request"] != request:
        raise DataError(
            f"rank {ranks.rank} was started with {request}, rank 0 with {first['request']}; start "
            "every host with the same arguments, and RESUME=1 on all or none"
        )
    return EasyDict(first["config"]), run_folder


@contextmanager
def lock_run(run_folder: str | Path) -> Iterator[None]:
    """Locks a run's folder while it is trained; a process that is killed releases it too.

    Raises:
        DataError: another process trains this run.
    """
    with open_lock(Path(run_folder, LOCK_FILE)) as lock:
        if not lock.acquire(wait=False):
            raise DataError(
                f"{run_folder}: another process is training this run; wait until it has ended"
            )
        yield


def restore_run(
    run_folder: Path,
    config: EasyDict,
    cells: TrainingCells,
    initial_progress: Progress,
) -> Progress:
    """Restores a run from its last checkpoint, and saves the configuration it continues with.

    Args:
        run_folder: the run, locked by this process.
        config: to continue with.
        cells: get the run's values.
        initial_progress: of a new run with the same arguments. Its cases and number of devices
            must be those of the run; a run without a checkpoint starts from it. A run without
            validation cases never stops early, and may get some.

    Returns:
        The run's progress.

    Raises:
        UsageError: all epochs are trained, or the run was stopped early.
        DataError: other training or validation cases, one of them edited, another number of
            devices, another version's processing of images, or a checkpoint that does not match.
    """
    progress = initial_progress
    saved = checkpoint.load_last(run_folder / "ckpt", cells)
    if saved is not None:
        progress = Progress(**saved)
        check_can_continue(run_folder, config, progress, initial_progress)
        progress.val_case_ids = initial_progress.val_case_ids
        progress.fixed = initial_progress.fixed
        progress.processing = initial_progress.processing
        progress.digests |= initial_progress.digests
        if progress.epoch and not (run_folder / HISTORY).is_file():
            log.info(f"note: {run_folder / HISTORY} is gone; a new one begins with this resume")
        log.info(f"resuming {run_folder} after epoch {progress.epoch}")
    else:
        log.info(f"resuming {run_folder} from its beginning: it has no checkpoint yet")
    save_config(config, run_folder / CONFIG_NAME)
    return progress


def check_can_continue(
    run_folder: Path,
    config: EasyDict,
    progress: Progress,
    initial_progress: Progress,
) -> None:
    """Raises an error if a run cannot continue from its progress; arguments as `restore_run`."""
    if progress.case_ids != initial_progress.case_ids:
        differing = sorted(set(progress.case_ids) ^ set(initial_progress.case_ids)) or [
            "their order"
        ]
        raise DataError(
            f"{run_folder}: was started with other training cases ({differing[0]} differs); "
            "resume with the same split"
        )
    changed = _changed_cases(progress, initial_progress)
    if changed:
        raise DataError(
            f"{run_folder}: was started with another image or mask of {list_few(changed)}; restore "
            "the files, or start a new run"
        )
    for key, value in progress.fixed.items():
        if initial_progress.fixed.get(key, value) != value:
            raise DataError(
                f"{run_folder / CONFIG_NAME}: {key}={initial_progress.fixed[key]}, but the run was "
                f"trained with {key}={value}; restore it"
            )
    has_validation = bool(initial_progress.val_case_ids)
    if progress.val_case_ids and not has_validation:
        raise DataError(
            f"{run_folder}: its best.ckpt is chosen by {len(progress.val_case_ids)} validation "
            "case(s), which this resume lacks; give their split, --val_split_file_path"
        )
    others = set(progress.val_case_ids) ^ set(initial_progress.val_case_ids)
    if others and progress.val_case_ids:
        raise DataError(
            f"{run_folder}: its best Dice is of other validation cases ({min(others)} differs); "
            "resume with the same split"
        )
    if progress.processing not in ({}, initial_progress.processing):
        raise DataError(
            f"{run_folder}: was started with a version of this program that prepares images or "
            "masks in another way; resume with that version, or start a new run"
        )
    if progress.device_num != initial_progress.device_num:
        raise DataError(
            f"{run_folder}: was started on {progress.device_num} device(s), not "
            f"{initial_progress.device_num}; resume on as many"
        )
    if progress.epoch >= config.epochs:
        raise UsageError(
            f"{run_folder}: all {config.epochs} epochs are trained; for more, --set epochs=N"
        )
    if has_validation and progress.has_stalled(config.early_stop):
        raise UsageError(
            f"{run_folder}: ended by early stop after epoch {progress.epoch}, "
            f"{progress.validations_since_best} validations without a better Dice than "
            f"{progress.best_dice:.4f}; to go on, --set early_stop=N above that, or 0"
        )


def _changed_cases(progress: Progress, other: Progress) -> list[str]:
    """The cases whose images or masks differ, of those that both know."""
    both = progress.digests.keys() & other.digests.keys()
    return sorted(name for name in both if progress.digests[name] != other.digests[name])


@contextmanager
def open_run(
    run_folder: str | Path | None,
    config: EasyDict,
    cells: TrainingCells,
    initial_progress: Progress,
    ranks: Ranks,
) -> Iterator[tuple[Path | None, Progress]]:
    """Creates or restores a run and locks its folder; only the first rank reads and writes it.

    The other ranks get weights, optimizer and progress from the first, so that only its machine
    needs the run's files.

    Args:
        run_folder: of a run to resume; None: a new one.
        config, cells, initial_progress: see `restore_run`; the cases must be the same on every
            rank.
        ranks: the processes that train together.

    Yields:
        The folder, None on all ranks but the first, and the progress.

    Raises:
        DataError: the ranks were given different cases; see also `restore_run`.
    """
    folder = None
    if ranks.is_first:
        folder = new_run_folder(config) if run_folder is None else Path(run_folder)
    with nullcontext() if folder is None else lock_run(folder):
        progress = initial_progress
        if folder is not None and run_folder is not None:
            progress = restore_run(folder, config, cells, initial_progress)
        progress = Progress(**json.loads(ranks.text_from_first(json.dumps(asdict(progress)))))
        own = initial_progress.case_ids, initial_progress.val_case_ids
        if (progress.case_ids, progress.val_case_ids) != own:
            raise DataError(
                f"rank {ranks.rank} was given other cases than rank 0; give every host the same "
                "splits and data"
            )
        changed = _changed_cases(progress, initial_progress)
        if changed:
            raise DataError(
                f"rank {ranks.rank} was given another image or mask of {list_few(changed)} than "
                "rank 0; give every host the same data"
            )
        ranks.copy_from_first(cells.training_cell.get_parameters())
        if cells.average is not None:
            ranks.copy_from_first(cells.average.get_parameters())
        yield folder, progress
