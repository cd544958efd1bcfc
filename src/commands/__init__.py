"""The commands: each is a module here and a word after `vnet`; most have a script, too.

A command's module has its description as docstring, `add_arguments(parser)` and `execute(args)`.
It imports MindSpore only in `execute`, so that `--help` and wrong arguments are answered at once.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from .. import __version__
from ..utils.command_line import new_parser, run
from ..utils.errors import UsageError, nearest

COMMANDS = {
    "prepare": "bring PROMISE12 or your own volumes into img/ and gt/, and check them",
    "split": "split the cases into training and validation, or into folds",
    "train": "train a V-Net",
    "cross_validate": "train and evaluate a V-Net for each fold of the cases",
    "eval": "evaluate a checkpoint on cases with reference masks",
    "predict": "segment images without reference masks",
    "export": "export a checkpoint as MINDIR, ONNX, VNET or AIR",
    "release": "pack a checkpoint for others",
    "preprocess": "write the input volumes of the C++ program",
    "postprocess": "evaluate the output of the C++ program",
    "check": "check that everything works on a device of this machine",
}


def main() -> None:
    """Runs `vnet COMMAND ...`."""
    run(_run_vnet)


def run_script(command: str) -> None:
    """Runs a command from its script at the top level, such as train.py."""
    run(lambda: _run_command(command, Path(sys.argv[0]).name, sys.argv[1:]))


def command_parser(command: str, prog: str) -> argparse.ArgumentParser:
    """Returns the argument parser of a command.

    Args:
        command: a key of `COMMANDS`.
        prog: name of the command in the usage line.
    """
    module = import_module(f".{command}", __name__)
    parser = new_parser(module.__doc__, prog)
    module.add_arguments(parser)
    return parser


def _run_command(command: str, prog: str, arguments: Sequence[str]) -> None:
    parser = command_parser(command, prog)
    _check_words(parser, arguments)
    args = parser.parse_args(arguments)
    import_module(f".{command}", __name__).execute(args)


def _check_words(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Raises a UsageError for an empty argument, such as an unset variable of a shell.

    As a path it would be the current folder.
    """
    flag = ""
    for word in arguments:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            flag = name
        is_empty = not word or (word.startswith("--") and equals and not value)
        if is_empty and parser.get_default(flag.lstrip("-")) != "":
            raise UsageError(f"{flag}: an empty value; name something or leave it out".lstrip(": "))


def vnet_parser() -> argparse.ArgumentParser:
    """Returns the argument parser of `vnet`, which does not parse the command's own arguments."""
    summaries = "\n".join(f"  {name:<14} {summary}" for name, summary in COMMANDS.items())
    parser = new_parser(
        f"V-Net for prostate MR volumes on MindSpore.\n\ncommands:\n{summaries}\n\n"
        "`vnet COMMAND --help` describes a command.",
        "vnet",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"vnet_mindspore {__version__}",
        help="print the version and exit",
    )
    parser.add_argument("command", metavar="COMMAND", help="one of the commands above")
    arguments = parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    arguments.required = False  # or argparse asks for them where the command is missing
    return parser


def _run_vnet() -> None:
    args = vnet_parser().parse_args()
    if args.command not in COMMANDS:
        raise UsageError(f"vnet {args.command}: no such command{nearest(args.command, COMMANDS)}")
    _run_command(args.command, f"vnet {args.command}", args.arguments)
