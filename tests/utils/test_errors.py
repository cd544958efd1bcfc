"""Reasons in one line, with what to do."""

import errno
import os

import pytest

from src.utils.errors import last_error, list_few, reason_of


def system_error(number):
    return OSError(number, os.strerror(number), "x.mhd")


@pytest.mark.parametrize(
    ("error", "line", "reason"),
    [
        (system_error(errno.ENOSPC), 0, "No space left on device; free some space"),
        (system_error(errno.EACCES), 0, "Permission denied; check the permissions there"),
        (system_error(errno.EROFS), 0, "Read-only file system; choose a folder where you may"),
        (system_error(errno.ENOTDIR), 0, "Not a directory; check which of these names are"),
        (system_error(errno.EIO), 0, "Input/output error"),
        (OSError("no number"), 0, "no number"),
        (RuntimeError("first\n  second \n"), 0, "first"),
        (RuntimeError("first\n  second \n"), -1, "second"),
        (RuntimeError(""), -1, "RuntimeError"),
        (RuntimeError(" \n "), 0, "RuntimeError"),
        (MemoryError(), 0, "MemoryError"),
    ],
)
def test_a_reason_is_one_line(error, line, reason):
    found = reason_of(error, line)
    assert found.startswith(reason)
    assert "\n" not in found


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("", ""),
        ("a\nb\n\n", "b"),
        ("error: first\nerror: second\nterminated\n", "error: second"),
        ("Traceback\n  error: x\nValueError: y", "ValueError: y"),
    ],
)
def test_the_line_that_says_why_a_command_failed(output, line):
    assert last_error(output) == line


def test_of_many_names_a_few_are_listed():
    assert list_few(["a", "b"]) == "a, b"
    assert list_few(iter("abcde")) == "a, b, c and 2 more"
    assert list_few("abcde", 5) == "a, b, c, d, e"
