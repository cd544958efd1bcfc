"""This process among those that train together, and what they tell each other.

Everything travels by AllReduce in float32, the one collective that MindSpore has on CPU, GPU and
Ascend alike. A sum to which all but one add zeros is a broadcast.
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
    """Rank `rank` of `count`; alone, nothing is sent."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that reads and writes the run's folder."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's part of `items`, every `count`-th."""
        return items[self.rank :: self.count]

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum over all ranks, float32; every rank calls this with an array of this shape."""
        array = np.array(array, np.float32, order="C")
        if self.count == 1:
            return array
        return ops.AllReduce()(ms.Tensor(array)).asnumpy().copy()

    def mean(self, value: float) -> float:
        """The mean over all ranks of a number."""
        return float(self.sum(np.array([value]))[0]) / self.count

    def gather(self, share: Sequence[float], total: int) -> np.ndarray:
        """The numbers that the ranks have of `share(items)`, for all `total` items, in order."""
        table = np.zeros(total, np.float32)
        table[self.rank :: self.count] = share
        return self.sum(table)

    def average(self, parameters: Iterable[ms.Parameter]) -> None:
        """Sets parameters to their mean over the ranks."""
        if self.count > 1:
            for parameter in parameters:
                mean = self.sum(parameter.asnumpy()) / self.count
                parameter.set_data(ms.Tensor(mean, parameter.dtype))

    def copy_from_first(self, parameters: Iterable[ms.Parameter]) -> None:
        """Sets parameters to their values on rank 0; whole numbers must be below 2**24."""
        if self.count > 1:
            for parameter in parameters:
                value = parameter.asnumpy() if self.is_first else np.zeros(parameter.shape)
                parameter.set_data(ms.Tensor(self.sum(value), parameter.dtype))

    def text_from_first(self, text: str | None) -> str:
        """A text of rank 0, on every rank."""
        if self.count == 1:
            return text
        content = np.frombuffer(text.encode(), np.uint8) if self.is_first else np.zeros(0)
        size = int(self.sum(np.array([content.size]))[0])
        if not self.is_first:
            content = np.zeros(size)
        return self.sum(content).astype(np.uint8).tobytes().decode()
