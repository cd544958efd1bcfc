"""Exchange of values between the ranks of a training, which `device.start_communication` joined.

All of it is AllReduce in float32, the only collective that MindSpore has on CPU, GPU and Ascend. A
broadcast is a sum to which all ranks but one add zeros.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import mindspore as ms
import numpy as np
from mindspore import ops

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process: rank `rank` of `count`. With a single rank nothing is communicated."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank reads and writes the run folder."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Returns this rank's share of `items`, every `count`-th item."""
        return items[self.rank :: self.count]

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Returns the sum over all ranks, float32; all ranks call this with arrays of one shape."""
        array = np.array(array, np.float32, order="C")
        if self.count == 1:
            return array
        return ops.AllReduce()(ms.Tensor(array)).asnumpy().copy()

    def mean(self, value: float) -> float:
        """Returns the mean of a number over all ranks."""
        return float(self.sum(np.array([value]))[0]) / self.count

    def gather(self, share: Sequence[float], total: int) -> np.ndarray:
        """Gathers one number per item from all ranks; all ranks call this.

        Args:
            share: this rank's numbers, for the items of `Ranks.share` in order.
            total: number of items of all ranks.

        Returns:
            (total,) float32, in the order of the items.
        """
        table = np.zeros(total, np.float32)
        table[self.rank :: self.count] = share
        return self.sum(table)

    def average(self, parameters: Iterable[ms.Parameter]) -> None:
        """Sets parameters to their mean over all ranks."""
        if self.count > 1:
            for parameter in parameters:
                mean = self.sum(parameter.asnumpy()) / self.count
                parameter.set_data(ms.Tensor(mean, parameter.dtype))

    def copy_from_first(self, parameters: Iterable[ms.Parameter]) -> None:
        """Sets parameters to their values on rank 0; integers must be below 2**24."""
        if self.count > 1:
            for parameter in parameters:
                value = parameter.asnumpy() if self.is_first else np.zeros(parameter.shape)
                parameter.set_data(ms.Tensor(self.sum(value), parameter.dtype))

    def text_from_first(self, text: str | None) -> str:
        """Returns rank 0's text on every rank; that of other ranks is ignored and may be None."""
        return self.gather_texts((text or "") if self.is_first else "")[0]

    def gather_texts(self, text: str) -> list[str]:
        """Returns the texts of all ranks, of which one at least is not empty; all call this."""
        content = np.frombuffer(text.encode(), np.uint8)
        sizes = self.gather([content.size], self.count).astype(int)
        table = np.zeros((self.count, sizes.max()), np.uint8)
        table[self.rank, : content.size] = content
        rows = self.sum(table).astype(np.uint8)
        return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]
