"""What the entry points have in common on the command line."""

import difflib
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable

from .errors import DataError, UsageError, reason_of
from .log import log_to_standard_streams
from .process import lost_output, prepare_matplotlib, prepare_streams

DEVICES = ("Ascend", "GPU", "CPU")
MODEL_FORMATS = ("MINDIR", "ONNX", "AIR")
RESEARCH_ONLY = "Not a medical device; for research."
MINDIR_VERSIONS = (3, 1)  # what MindSpore 2.10 writes; what MindSpore Lite 2.0 reads


def new_parser(description: str, prog: str | None = None) -> ArgumentParser:
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


def add_device_arguments(parser: ArgumentParser, id_flag: str) -> None:
    """`--device_target` and the zoo's name for the device number."""
    parser.add_argument(
        "--device_target",
        choices=DEVICES,
        default="Ascend",
        help="device that computes (default: Ascend)",
    )
    parser.add_argument(id_flag, type=int, default=0, help="number of the device (default: 0)")


def add_set_argument(parser: ArgumentParser) -> None:
    """`--set key=value`, as often as wanted."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a configuration key (src/config.py), e.g. --set VolSize=64,64,32",
    )


def add_labels_argument(parser: ArgumentParser) -> None:
    """`--labels 1,2`, short for `--set labels=1,2`."""
    _add_override(
        parser, "labels", "1,2", "mask values that together are the prostate (default: 1)"
    )


def add_channel_argument(parser: ArgumentParser) -> None:
    """`--channel 0`, short for `--set channel=0`."""
    _add_override(parser, "channel", "N", "which volume of 4-D files is the T2 image, from 0")


def _add_override(parser, key, metavar, words):
    parser.add_argument(
        f"--{key}",
        action="append",
        default=[],
        type=lambda text: f"{key}={text}",
        metavar=metavar,
        dest="overrides",
        help=words,
    )


def add_preset_argument(parser: ArgumentParser) -> None:
    """`--preset NAME`; what --set says comes on top."""
    parser.add_argument(
        "--preset",
        help="settings that serve together: accurate, or its smaller twin compact (src/config.py)",
    )


def add_model_arguments(parser: ArgumentParser) -> None:
    """What preprocess.py and postprocess.py both need: the cases, and the model for them."""
    parser.add_argument("--data_path", default="./promise", help="folder with img/ and gt/")
    parser.add_argument("--split_file_path", default="./split/val.csv")
    parser.add_argument(
        "--mindir_path",
        default="./vnet.mindir",
        help="exported model, whose .json beside it says how volumes are prepared",
    )
    add_labels_argument(parser)
    add_channel_argument(parser)
    add_set_argument(parser)


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known one nearest to it, or all of them."""
    known = list(known)
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.3)
    return f"; did you mean {found[0]!r}?" if found else f"; known: {', '.join(known)}"


def run(main: Callable[[], None]) -> None:
    """Runs an entry point: its errors become one line and an exit code, 2 for usage and 1 else.

    A reader of the output that goes away, such as `head`, does not end the work.
    """
    prepare_streams()
    prepare_matplotlib()
    log_to_standard_streams()
    try:
        main()
        lost = lost_output()
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


def _line(error, code):
    sys.stdout.flush()
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
