"""Shape checks are on for the whole test run; TINYOMNI_SHAPES=0 runs it without them."""

import os

import pytest
import torch

from tinyomni.tracing import check_shapes

if os.environ.get("TINYOMNI_SHAPES", "1") != "0":
    check_shapes()

torch.set_num_threads(1)
os.environ.pop("TINYOMNI_PROGRAM", None)  # messages name commands as `tinyomni …`, also under course.py


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers for each test, in any order."""
    torch.manual_seed(0)
