"""The status file: the state of a command as JSON, for launchers and job schedulers.

The environment variable VNET_STATUS_FILE names the file; if unset, none is written. Entries:

state       "starting", "running" (all checks before the work have passed), "finished" or "failed"
pid         of the process
run_folder  of a training, from "running" on
results     folder of an evaluation's results, from "running" on
exit_code   of a command that failed
error       its message

A process that is killed cannot write its end: readers of the file must watch the process, too.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from .errors import DataError
from .files import write_files

STATUS_FILE = "VNET_STATUS_FILE"


def write_status(state: str, **details: str | int | None) -> None:
    """Replaces the status file, if VNET_STATUS_FILE names one in an existing folder.

    Args:
        state: "starting", "running", "finished" or "failed".
        details: further entries; None is left out.
    """
    path = Path(os.environ.get(STATUS_FILE, ""))
    if not path.name or not path.parent.is_dir():  # launchers remove the folder after the start
        return
    entries = {"state": state, "pid": os.getpid(), **details}
    present = {key: value for key, value in entries.items() if value is not None}
    content = json.dumps(present, ensure_ascii=False)  # of which the launchers read the folder
    with suppress(DataError):
        write_files({path: f"{content}\n".encode(errors="backslashreplace")})
