"""Trains a V-Net.

    python train.py --device_target CPU --data_path data --train_split_file_path split/train.csv \
        --val_split_file_path split/val.csv --set epochs=100 --set batch_size=2
    python train.py ... --resume                 goes on with the newest run
    python train.py ... --resume RUN_FOLDER      goes on with this one

All that comes of it lies in results/infer/vnet.TASK.DATE/ (src/config.py: dirResult, task).
"""

import argparse

from src.cli import add_device_arguments, add_set_argument, run


def main():
    """Parses the zoo's arguments and ours, and trains."""
    parser = argparse.ArgumentParser(description="Train V-Net on prostate MR volumes")
    add_device_arguments(parser, "--device_id")
    parser.add_argument("--run_distribute", type=int, choices=(0,), default=0, help="only 0 yet")
    parser.add_argument("--device_num", type=int, choices=(1,), default=1, help="only 1 yet")
    parser.add_argument("--data_path", default="./promise", help="folder with img/ and gt/")
    parser.add_argument("--train_split_file_path", default="./split/train.csv")
    parser.add_argument("--val_split_file_path", help="without it there is no validation")
    parser.add_argument("--resume", nargs="?", const="", metavar="RUN_FOLDER")
    add_set_argument(parser)
    args = parser.parse_args()

    # MindSpore takes seconds to import; --help and wrong arguments need not wait for it.
    from src.device import start_device
    from src.run_folder import configured_run
    from src.training import train

    config, run_folder = configured_run(args.resume, args.device_target, args.overrides)
    start_device(args.device_target, args.device_id)
    train(
        config,
        args.device_target,
        args.data_path,
        args.train_split_file_path,
        args.val_split_file_path,
        run_folder,
    )


if __name__ == "__main__":
    run(main)
