"""One group of checks in this process, which `groups.start_group` or a launcher of ranks started.

python -m src.acceptance GROUP TARGET DEVICE_NUM full|small FOLDER
"""

import sys
from pathlib import Path

from ..utils.command_line import run


def main() -> None:
    """Runs the group; MindSpore is imported only now, when the process is set up."""
    from .groups import run_group

    group, target, device_num, size, folder = sys.argv[1:]
    run_group(group, target, int(device_num), size == "small", Path(folder))


if __name__ == "__main__":
    run(main)
