"""The command line of all entry points: argument parser, error messages, exit codes."""

import os
import re
import shlex
import signal
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable

from .errors import DataError, UsageError, reason_of
from .log import log_to_standard_streams
from .process import output_error, prepare_matplotlib, prepare_numpy, prepare_streams
from .status import write_status

RESEARCH_ONLY = "Not a medical device; for research."
TERMINATED = 128 + signal.SIGTERM  # exit code
# In the messages of Python, MindSpore and its devices; not "illegal memory access".
NO_MEMORY = re.compile(r"(?i)memory.*(enough|alloc)|(out of|alloc\w*|insufficient) .*memory")
LAUNCHED = "VNET_COMMAND"  # environment variable: the command of a launcher, for a shell

_runs = False  # whether `run` has started this process's work


def new_parser(description: str | None, prog: str | None = None) -> ArgumentParser:
    """Returns an argument parser that keeps the line breaks of its description.

    Its help ends with the disclaimer. Abbreviated arguments are refused: the launchers look for the
    whole names.

    Args:
        description: usually the docstring of the command's module.
        prog: name of the command in the usage line; None: that of the script.
    """
    return ArgumentParser(
        prog=prog,
        description=description,
        epilog=RESEARCH_ONLY,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run(main: Callable[[], None]) -> None:
    """Runs an entry point; an error is printed as one line and sets the exit code.

    The exit code is 2 for a `UsageError`, 130 for Ctrl-C, 143 for SIGTERM where it is handled, and
    1 for other errors. When the reader of standard output exits, such as `head`, the work
    continues.
    """
    global _runs
    _runs = True
    prepare_streams()
    log_to_standard_streams()
    write_status("starting")
    try:
        prepare_numpy()
        prepare_matplotlib()
        main()
        lost = output_error()
    except UsageError as error:
        sys.exit(_report_error(error, 2))
    except DataError as error:
        sys.exit(_report_error(error, 1))
    except ModuleNotFoundError as error:
        remedy = "pip install -r requirements.txt, or activate the environment that has it"
        sys.exit(_report_error(f"{sys.executable} has no module {error.name}; {remedy}", 1))
    except OSError as error:
        sys.exit(_report_error(f"{error.filename or 'a file'}: {reason_of(error)}", 1))
    except UnicodeEncodeError as error:
        remedy = "not a file name in this locale; rename the file, or start with LC_ALL=C.UTF-8"
        name = error.object[max(0, error.start - 40) : error.end + 40]
        sys.exit(_report_error(f"{name}: {remedy}", 1))
    except (MemoryError, RuntimeError) as error:
        lines = (str(error) or "out of memory").partition("C++ Call Stack")[0].splitlines()
        lacks_memory = isinstance(error, MemoryError)
        about = [line.strip("- ") for line in lines if lacks_memory or NO_MEMORY.search(line)]
        if not about:
            raise
        reason = next((line for line in about if not line.endswith(":")), about[0])
        sys.exit(_report_error(f"{reason}; a smaller batch_size or VolSize needs less", 1))
    except SystemExit as end:
        if end.code == TERMINATED:
            _exit(_report_error("terminated", TERMINATED))
        if end.code:  # of argparse, which has printed why
            write_status("failed", exit_code=2, error="wrong arguments, see standard error")
        raise
    except KeyboardInterrupt:
        _exit(_report_error("interrupted", 130))
    if lost is not None:
        sys.exit(_report_error(f"standard output: {reason_of(lost)}; the work itself is done", 1))
    write_status("finished")


def _exit(code):
    """Ends the process; at once if MindSpore's import was cut, whose libraries would abort it."""
    if "mindspore" not in sys.modules and any(n.startswith("mindspore.") for n in sys.modules):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def own_command() -> str:
    """Returns the command that started this process, for a shell; that of its launcher, if any.

    It is "" where there is none: in a notebook, or in a process of a cross-validation.
    """
    if not _runs or sys.argv[0] == "-c":
        return ""
    return os.environ.get(LAUNCHED) or shlex.join(sys.orig_argv)


def _report_error(error, code):
    """Prints an error as one line, writes it to the status file, and returns `code`."""
    sys.stdout.flush()
    message = " ".join(str(error).split())
    write_status("failed", exit_code=code, error=message)
    print(f"error: {message}", file=sys.stderr)
    return code
