"""The learning rate of every step: linear warm-up, then cosine."""

import numpy as np


def learning_rates(
    lr: float, total_steps: int, warmup_step: int, warmup_ratio: float
) -> np.ndarray:
    """Returns the learning rate of every training step.

    Rises linearly from `warmup_ratio * lr` to `lr` during `warmup_step` steps, at most the first
    half of the training, then falls to almost 0 along half a cosine.

    Args:
        lr: the highest rate.
        total_steps: number of global steps of the training.
        warmup_step: number of steps of the warm-up.
        warmup_ratio: first rate divided by `lr`.

    Returns:
        (total_steps,) float32.

    Raises:
        ValueError: a number out of range.
    """
    for name, value, holds in (
        ("lr", lr, 0 < lr < np.inf),
        ("total_steps", total_steps, total_steps >= 1),
        ("warmup_step", warmup_step, warmup_step >= 0),
        ("warmup_ratio", warmup_ratio, 0 <= warmup_ratio <= 1),
    ):
        if not holds:
            raise ValueError(f"{name} is {value}, out of range")
    warmup = min(warmup_step, total_steps // 2)
    step = np.arange(total_steps)
    rising = warmup_ratio + (1 - warmup_ratio) * step / max(warmup, 1)
    falling = 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(total_steps - warmup, 1)))
    return (lr * np.where(step < warmup, rising, falling)).astype(np.float32)
