"""Golden values that `vnet check` and the tests compare with; scripts in tests/golden made them."""

from pathlib import Path

GOLDEN = Path(__file__).parent
