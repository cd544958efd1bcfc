"""The table of results: each check with what was expected, what was found and the verdict."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike

from ..devices.device import mindspore_reason


class Table:
    """The results of the checks, printed at once and collected for the report.

    Attributes:
        rows: a dictionary of "check", "expected", "found" and "verdict" for each check.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.rows: list[dict[str, str]] = []
        self.quiet = quiet

    def add(self, check: str, expected: object, found: object, passed: bool | None) -> None:
        """Adds a check; with `passed` None it could not run, and `found` says why."""
        verdict = "skipped" if passed is None else "passed" if passed else "failed"
        self.add_row(
            {"check": check, "expected": str(expected), "found": str(found), "verdict": verdict}
        )

    def add_row(self, row: dict[str, str]) -> None:
        """Adds a check of another table."""
        self.rows.append(row)
        if not self.quiet:
            print(
                "{verdict:8} {check:50} expected {expected}; found {found}".format(**row),
                flush=True,
            )

    def near(self, check: str, found: ArrayLike, golden: ArrayLike, tolerance: float) -> None:
        """Adds a check that differences are small relative to the largest golden value."""
        golden = np.asarray(golden, np.float64)
        difference = np.abs(np.asarray(found, np.float64) - golden).max()
        share = difference / max(np.abs(golden).max(), 1e-30)
        self.add(
            check, f"difference below {tolerance:.0e}", f"{share:.1e}", bool(share < tolerance)
        )

    @contextmanager
    def record_errors(self, check: str) -> Iterator[None]:
        """Turns an exception in the block into a failed check, so that the others still run."""
        try:
            yield
        except Exception as error:  # MindSpore and its plug-ins raise exceptions of many types
            self.add(check, "no error", mindspore_reason(error), False)

    def count(self, verdict: str) -> int:
        """Returns how many checks have a verdict: "passed", "failed" or "skipped"."""
        return sum(row["verdict"] == verdict for row in self.rows)
