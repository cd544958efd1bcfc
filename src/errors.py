"""What can go wrong in a user's hands. `src.cli.run` turns these into one line and an exit code."""


class UsageError(Exception):
    """The command line or the configuration is wrong (exit code 2)."""


class DataError(Exception):
    """A file, a device or a run is at fault (exit code 1)."""
