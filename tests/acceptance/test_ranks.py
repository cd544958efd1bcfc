"""Ranks that end up with other results than the first do not pass."""

import numpy as np
import pytest

from src.acceptance.ranks import compare_ranks
from src.acceptance.table import Table


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        (None, None),
        ("a weight of another bit", "weights after three steps on different batches"),
        ("a sum", "all-reduce of ones"),
        ("no file", "rank 1"),
    ],
)
def test_a_rank_that_differs_fails(tmp_path, fault, failing):
    weights = np.arange(5, dtype=np.float32)
    for rank in range(2):
        own = {"sum": np.array([2.0, 2.0]), "all-reduce ms": 3.0, "size": 9, "weight a": weights}
        if rank == 1 and fault == "a weight of another bit":
            own["weight a"] = np.nextafter(weights, 9, dtype=np.float32)
        if rank == 1 and fault == "a sum":
            own["sum"] = np.array([2.0, 1.0])
        if not (rank == 1 and fault == "no file"):
            np.savez(tmp_path / f"rank_{rank}.npz", **own)
    table = Table(quiet=True)
    compare_ranks(tmp_path, 2, table)
    failed = [row["check"] for row in table.rows if row["verdict"] == "failed"]
    assert failed == ([failing] if failing else [])
