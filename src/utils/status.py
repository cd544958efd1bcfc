"""A small JSON file that says how far a command is, for launchers and job schedulers.

The environment variable VNET_STATUS_FILE names it; without one nothing is written. Its entries:

state       "starting", "running" (all checks before the work have passed), "finished" or "failed"
pid         of the process
run_folder  of a training, from "running" on
results     folder of an evaluation's results, from "running" on
exit_code   of a command that failed
error       its message

A process that is killed writes nothing more: whoever reads the file watches the process, too.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from .errors import DataError
from .files import write_files

STATUS_FILE = "VNET_STATUS_FILE"


def write_status(state: str, **details: str | int | None) -> None:
    """Replaces the status file, if one is asked for; its folder must exist.

    Args:
        state: "starting", "running", "finished" or "failed".
        details: further entries; None is left out.
    """
    path = Path(os.environ.get(STATUS_FILE, ""))
    if not path.name or not path.parent.is_dir():  # launchers remove the folder after the start
        return
    entries = {"state": state, "pid": os.getpid(), **details}
    content = json.dumps({key: value for key, value in entries.items() if value is not None})
    with suppress(DataError):
        write_files({path: f"{content}\n".encode()})
