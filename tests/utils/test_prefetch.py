"""Results computed one item ahead."""

import threading

import pytest

from src.utils.prefetch import Prefetch
from tests.helpers import wait_until


def test_results_come_in_order_and_one_ahead():
    begun = []

    def square(number):
        begun.append(number)
        return number**2

    with Prefetch(square, range(4)) as squares:
        wait_until(lambda: begun == [0])  # before anything is asked for
        assert squares.peek() == 0
        for number, future in enumerate(squares):
            assert future.result() == number**2
            wait_until(lambda number=number: len(begun) == min(number + 2, 4))
    assert begun == [0, 1, 2, 3]


def test_an_error_is_raised_where_its_result_is_used():
    with Prefetch(lambda number: 1 // number, [1, 0, -1]) as quotients:
        futures = list(quotients)
        assert futures[0].result() == 1 and futures[2].result() == -1
        with pytest.raises(ZeroDivisionError):
            futures[1].result()
    with pytest.raises(ZeroDivisionError), Prefetch(lambda number: 1 // number, [0]) as quotients:
        quotients.peek()


def test_nothing_to_do():
    with Prefetch(abs, []) as nothing:
        assert list(nothing) == []
        with pytest.raises(ValueError, match="no items"):
            nothing.peek()


def test_an_error_of_the_block_leaves_no_thread():
    before = threading.active_count()
    with pytest.raises(KeyError), Prefetch(abs, range(9)) as results:
        for _ in results:
            raise KeyError
    assert threading.active_count() == before
