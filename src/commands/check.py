"""Acceptance test of a machine: checks that everything this project does works on its device.

    bash scripts/check_device.sh TARGET [DEVICE_NUM]

Each group of checks runs in its own process, since a process has one device and a faulty driver may
end it; so does the CPU reference. Prints a table and writes it as JSON.
"""

from argparse import ArgumentParser, Namespace

from ..utils.errors import DataError, UsageError
from .arguments import DEVICES


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("target", metavar="TARGET", choices=DEVICES, help=" or ".join(DEVICES))
    parser.add_argument(
        "device_num",
        metavar="DEVICE_NUM",
        type=int,
        nargs="?",
        default=1,
        help="number of devices; above 1: check training on all of them, too (default: 1)",
    )
    parser.add_argument("--small", action="store_true", help="smaller checks, for the tests")


def execute(args: Namespace) -> None:
    """Runs the checks.

    Raises:
        DataError: one failed.
    """
    if args.device_num < 1:
        raise UsageError(f"DEVICE_NUM {args.device_num}: expected at least 1")
    from ..acceptance.machine import check_machine

    if failed := check_machine(args.target, args.device_num, args.small):
        raise DataError(f"{failed} check(s) failed, see the table")
