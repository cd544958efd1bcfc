"""`python -m vnet_mindspore COMMAND ...`, the same as `vnet COMMAND ...`."""

from .commands import main

if __name__ == "__main__":
    main()
