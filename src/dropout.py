"""The channels that dropout drops in a training sample."""

import numpy as np

DROPOUT_STREAM = 1  # random stream of the seed; src.dataset and src.augment have others


def draw_dropout_mask(seed: int, sample_index: int, channels: int, rate: float) -> np.ndarray:
    """Draws the channel dropout of a sample, from (seed, sample, channel) only.

    Args:
        seed: of the training.
        sample_index: see `src.dataset`.
        channels: number of channels with dropout.
        rate: probability with which a channel is dropped.

    Returns:
        (channels,) float32 factors: 0 for a dropped channel, else 1 / (1 - rate).

    Raises:
        ValueError: a rate below 0, or of 1 or more.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"a dropout of {rate}, expected 0 to below 1")
    draw = np.random.default_rng((seed, DROPOUT_STREAM, sample_index)).random(channels)
    return np.where(draw < rate, 0, 1 / (1 - rate)).astype(np.float32)
