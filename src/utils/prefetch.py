"""Computes the next item of a sequence in a thread while the current one is used."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Prefetch(Generic[T, R]):
    """Results of a function for items, in order; the first is begun at once, then one ahead.

    A context manager that waits for the thread at its end. At most two results exist at a time:
    the one in use and the next.

    Args:
        function: called with each item, in one thread.
        items: its arguments.
    """

    def __init__(self, function: Callable[[T], R], items: Iterable[T]) -> None:
        self._function, self._items = function, iter(items)
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._next = self._begin()

    def __iter__(self) -> "Iterator[Future[R]]":
        """Yields the future of each result, whose `result` raises what the function raised."""
        while self._next is not None:
            current = self._next
            current.exception()  # waits; the next item must not be begun before
            self._next = self._begin()
            yield current

    def peek(self) -> R:
        """Returns the first result, before the iteration; raises what the function raised.

        Raises:
            ValueError: there are no items.
        """
        if self._next is None:
            raise ValueError("no items, expected at least one")
        return self._next.result()

    def _begin(self) -> "Future[R] | None":
        for item in self._items:
            return self._thread.submit(self._function, item)
        return None

    def __enter__(self) -> "Prefetch[T, R]":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
