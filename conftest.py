"""Settings that hold wherever pytest is started: a lesson's cell may take five minutes, then its kernel is dropped."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """nbval waits 2000 s for a cell by default, also when the kernel has died."""
    if getattr(config.option, "nbval_cell_timeout", None) == 2000:
        config.option.nbval_cell_timeout = 300
