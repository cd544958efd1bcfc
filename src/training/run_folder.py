"""A run's folder: made for a new training, found for a resume, held by one process.

dirResult/vnet.TASK.DATE/
    config.json  history.csv  progress.png
    ckpt/        see src/checkpoint.py
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from easydict import EasyDict

from ..config import CONFIG_NAME, config_of_run, save_config, training_config
from ..devices.ranks import Ranks
from ..utils.errors import DataError, reason_of
from ..utils.files import Lock

DATE = r"\d{8}_\d{6}(_\d+)?"


def new_run_folder(config: EasyDict) -> Path:
    """Makes `dirResult/vnet.TASK.DATE/ckpt` (UTC) and saves the configuration there.

    Returns:
        The run's folder.

    Raises:
        DataError: the folder cannot be made.
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
                f"{folder}: cannot be made ({reason_of(error)}); choose another dirResult"
            ) from None
        save_config(config, folder / CONFIG_NAME)
        return folder
    raise DataError(f"{config.dirResult}: no free name for a run like vnet.{config.task}.{stamp}")


def newest_run(config: EasyDict) -> Path:
    """The run of this task that was started last.

    Raises:
        DataError: there is none.
    """
    runs = [
        path.parent
        for path in Path(config.dirResult).glob(f"vnet.{config.task}.*/{CONFIG_NAME}")
        if re.fullmatch(rf"vnet\.{config.task}\.{DATE}", path.parent.name)
    ]
    if not runs:
        raise DataError(f"{config.dirResult}: no run vnet.{config.task}.* to resume")
    return max(runs, key=lambda run: (run.name, run.stat().st_mtime))


def configured_run(
    resume: str | Path | None,
    device_target: str,
    overrides: list[str],
    ranks: Ranks = Ranks(),  # noqa: B008, it is frozen
) -> tuple[EasyDict, Path | None]:
    """What a command line asks for: a configuration, and the run it goes on with.

    Args:
        resume: folder of a run, "" for the newest, None for a new run.
        device_target: "Ascend", "GPU" or "CPU".
        overrides: `--set` texts; on a resume they change the run's own configuration.
        ranks: only the first needs to see the run.

    Returns:
        The configuration, the same on every rank, and the folder of the run to resume, None for a
        new one or where this rank is not the first.

    Raises:
        UsageError: wrong overrides, or ones that a resumed run must not change.
        DataError: no such run, or the ranks were asked for different things.
    """
    config = training_config(device_target, overrides)
    asked = {"overrides": overrides, "resumes": resume is not None}
    run_folder = None
    if resume is not None and ranks.is_first:
        run_folder = Path(resume) if resume else newest_run(config)
        config = config_of_run(run_folder, overrides)
    first = json.loads(ranks.text_from_first(json.dumps({"config": config, "asked": asked})))
    if first["asked"] != asked:
        raise DataError(
            f"rank {ranks.rank} was asked for {asked}, rank 0 for {first['asked']}; start every "
            "host with the same arguments, and RESUME=1 on all or none"
        )
    return EasyDict(first["config"]), run_folder


@contextmanager
def held(run_folder: str | Path) -> Iterator[None]:
    """Holds a run's folder while it is trained; the lock goes with the process, however it ends.

    Raises:
        DataError: another process trains this run.
    """
    with Lock(Path(run_folder)) as lock:
        if not lock.acquire(wait=False):
            raise DataError(f"{run_folder}: another process is training this run")
        yield
