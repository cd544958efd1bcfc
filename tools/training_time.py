"""Estimates how long a training takes on this machine, from a few steps on synthetic volumes.

python tools/training_time.py --cases 40 --val_cases 10 --preset accurate
python tools/training_time.py ... --continue    the rest of the newest run, if there is one
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.commands.arguments import (
    add_config_arguments,
    add_device_arguments,
    own_overrides_of,
)
from src.utils.command_line import new_parser, run


def main():
    """Parses the arguments and prints the estimate."""
    parser = new_parser(__doc__)
    add_device_arguments(parser, "--device_id")
    for name, what in (("cases", "training"), ("val_cases", "validation")):
        parser.add_argument(
            f"--{name}", type=int, required=True, metavar="N", help=f"number of {what} cases"
        )
    parser.add_argument(
        "--continue",
        action="store_true",
        dest="go_on",
        help="estimate the epochs that are left of the newest run of the task and fold",
    )
    add_config_arguments(parser, "labels", "channel", has_preset=True)
    args = parser.parse_args()

    from src.api import estimate_training

    print(
        estimate_training(
            args.cases,
            args.val_cases,
            device_target=args.device_target,
            device_id=args.device_id,
            preset=args.preset,
            overrides=own_overrides_of(args),
            continues=args.go_on,
        )
    )


if __name__ == "__main__":
    run(main)
