"""Settings wherever pytest is started: a cell of a lesson may take 15 minutes, a guard against a hang."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """nbval waits 2000 s for a cell by default, also when the kernel has died."""
    if getattr(config.option, "nbval_cell_timeout", None) == 2000:
        config.option.nbval_cell_timeout = 900
