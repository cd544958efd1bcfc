"""Segments images without reference masks.

    python predict.py --device_target CPU --ckpt_path RUN/ckpt/best.ckpt --input scan.nii.gz \
        --output_path masks [--save_probability] [--set flip_average=true]

--input takes image files, folders of images, and folders of one DICOM series each. Each mask has
the geometry and format of its image; volumes.csv lists the prostate volumes in ml, and report.html
shows them.
"""

import argparse

from src.cli import add_channel_argument, add_device_arguments, add_set_argument, run


def main():
    """Parses the arguments and predicts."""
    parser = argparse.ArgumentParser(description="Segment prostate MR volumes with V-Net")
    add_device_arguments(parser, "--dev_id")
    parser.add_argument("--ckpt_path", required=True, help="checkpoint to predict with")
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH")
    parser.add_argument("--output_path", help="default: dirPredictionImage of the configuration")
    parser.add_argument("--save_probability", action="store_true")
    add_channel_argument(parser)
    add_set_argument(parser)
    args = parser.parse_args()

    # MindSpore takes seconds to import; --help and wrong arguments need not wait for it.
    from src.config import config_of_checkpoint
    from src.device import start_device
    from src.evaluation import find_images, load_network, predict

    config = config_of_checkpoint(args.ckpt_path, args.overrides)
    config.dirPredictionImage = args.output_path or config.dirPredictionImage
    images = find_images(args.input)
    start_device(args.device_target, args.dev_id)
    network = load_network(args.ckpt_path, config, args.device_target)
    predict(network, images, config, {"checkpoint": args.ckpt_path}, args.save_probability)


if __name__ == "__main__":
    run(main)
