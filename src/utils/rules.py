"""Rules for values, each with the text that follows "expected" in an error message."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A condition on a value.

    Attributes:
        words: the condition, such as "at least 1"; empty where any value will do.
        holds: whether a value meets it.
    """

    words: str
    holds: Callable[[Any], bool]


ANYTHING = Rule("", lambda value: True)


def at_least(low: float) -> Rule:
    """`low` or more."""
    return Rule(f"at least {low}", lambda value: value >= low)


def above(low: float) -> Rule:
    """More than `low`."""
    return Rule(f"above {low}", lambda value: value > low)


def between(low: float, high: float) -> Rule:
    """`low`, `high` or a value between them."""
    return Rule(f"between {low} and {high}", lambda value: low <= value <= high)


def at_least_and_below(low: float, high: float) -> Rule:
    """`low` or more, but less than `high`."""
    return Rule(f"at least {low} and below {high}", lambda value: low <= value < high)


def one_of(*choices: str) -> Rule:
    """One of several words."""
    return Rule(f"one of {', '.join(choices)}", lambda value: value in choices)


def not_empty(words: str) -> Rule:
    """A text of some characters."""
    return Rule(words, lambda value: bool(value.strip()))


def positive_sizes(count: int, unit: str) -> Rule:
    """`count` numbers above 0."""
    return Rule(
        f"{count} positive sizes in {unit}",
        lambda value: len(value) == count and all(size > 0 for size in value),
    )


def multiples_of(step: int, count: int) -> Rule:
    """`count` whole numbers above 0, each a multiple of `step`."""
    return Rule(
        f"{count} multiples of {step}",
        lambda value: len(value) == count and all(n > 0 and n % step == 0 for n in value),
    )


def distinct_labels() -> Rule:
    """Values of a mask: above 0, none of them twice."""
    return Rule(
        "different whole numbers above 0",
        lambda value: len(set(value)) == len(value) and all(label > 0 for label in value),
    )


def file_name_part() -> Rule:
    """A word that is safe as part of a file's name."""
    return Rule(
        "letters, digits, space, _ and -",
        lambda value: re.fullmatch(r"[\w -]+", value) is not None,
    )
