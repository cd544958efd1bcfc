"""What the entry points have in common on the command line."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable

from .errors import DataError, UsageError, reason_of
from .log import log_to_standard_streams
from .process import output_error, prepare_matplotlib, prepare_streams
from .status import write_status

MODEL_FORMATS = ("MINDIR", "ONNX", "AIR")
RESEARCH_ONLY = "Not a medical device; for research."
MINDIR_VERSIONS = (3, 1)  # what MindSpore 2.10 writes; what MindSpore Lite 2.0 reads


def new_parser(description: str | None, prog: str | None = None) -> ArgumentParser:
    """An argument parser that shows its description line by line and ends with the disclaimer.

    Args:
        description: usually the docstring of the command's module.
        prog: what the usage line calls the command; without it the script's name.
    """
    return ArgumentParser(
        prog=prog,
        description=description,
        epilog=RESEARCH_ONLY,
        formatter_class=RawDescriptionHelpFormatter,
    )


def run(main: Callable[[], None]) -> None:
    """Runs an entry point: its errors become one line and an exit code, 2 for usage and 1 else.

    A reader of the output that goes away, such as `head`, does not end the work.
    """
    prepare_streams()
    prepare_matplotlib()
    log_to_standard_streams()
    write_status("starting")
    try:
        main()
        lost = output_error()
    except UsageError as error:
        sys.exit(_line(error, 2))
    except DataError as error:
        sys.exit(_line(error, 1))
    except ModuleNotFoundError as error:
        remedy = "pip install -r requirements.txt, or activate the environment that has it"
        sys.exit(_line(f"{sys.executable} has no module {error.name}; {remedy}", 1))
    except OSError as error:
        sys.exit(_line(f"{error.filename or 'a file'}: {reason_of(error)}", 1))
    except UnicodeEncodeError as error:
        remedy = "no name of a file or folder for this; rename it, or start with LC_ALL=C.UTF-8"
        name = error.object[max(0, error.start - 40) : error.end + 40]
        sys.exit(_line(f"{name}: {remedy}", 1))
    except (MemoryError, RuntimeError) as error:
        reason = reason_of(error) if str(error) else "out of memory"
        if "memory" not in reason.lower():
            raise
        sys.exit(_line(f"{reason}; a smaller batch_size or VolSize needs less", 1))
    except KeyboardInterrupt:
        sys.exit(_line("interrupted", 130))
    if lost is not None:
        sys.exit(_line(f"standard output: {reason_of(lost)}; the work itself is done", 1))
    write_status("finished")


def _line(error, code):
    sys.stdout.flush()
    message = " ".join(str(error).split())
    write_status("failed", exit_code=code, error=message)
    print(f"error: {message}", file=sys.stderr)
    return code
