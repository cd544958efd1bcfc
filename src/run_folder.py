"""A run's folder: made for a new training, found for a resume.

dirResult/vnet.TASK.DATE/
    config.json  history.csv  progress.png
    ckpt/        see src/checkpoint.py
"""

import time
from pathlib import Path

from src.config import CONFIG_NAME, load_config, overridden, save_config, training_config
from src.errors import DataError


def new_run_folder(config):
    """Makes `dirResult/vnet.TASK.DATE/ckpt` and saves the configuration there.

    Returns:
        The run's folder.
    """
    stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime())
    for attempt in range(100):
        name = f"vnet.{config.task}.{stamp}" + (f"_{attempt}" if attempt else "")
        folder = Path(config.dirResult, name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        (folder / "ckpt").mkdir()
        save_config(config, folder / CONFIG_NAME)
        return folder
    raise DataError(f"{config.dirResult}: no free name for a run like vnet.{config.task}.{stamp}")


def newest_run(config):
    """The run of this task that was started last.

    Raises:
        DataError: there is none.
    """
    runs = [
        path.parent for path in Path(config.dirResult).glob(f"vnet.{config.task}.*/{CONFIG_NAME}")
    ]
    if not runs:
        raise DataError(f"{config.dirResult}: no run vnet.{config.task}.* to resume")
    return max(runs, key=lambda run: (run.name.rsplit(".", 1)[1], run.stat().st_mtime))


def configured_run(resume, device_target, overrides):
    """What a command line asks for: a configuration, and the run it goes on with.

    Args:
        resume: folder of a run, "" for the newest, None for a new run.
        device_target: "Ascend", "GPU" or "CPU".
        overrides: `--set` texts; on a resume they change the run's own configuration.

    Returns:
        (configuration, folder of the run to resume or None).

    Raises:
        UsageError: wrong overrides.
        DataError: no such run.
    """
    config = training_config(device_target, overrides)
    if resume is None:
        return config, None
    run_folder = Path(resume) if resume else newest_run(config)
    if not (run_folder / CONFIG_NAME).is_file():
        raise DataError(f"{run_folder}: no {CONFIG_NAME}, not the folder of a run")
    return overridden(load_config(run_folder / CONFIG_NAME), overrides), run_folder
