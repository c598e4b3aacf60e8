"""The public list of planted bugs: this tracer leads to the line of each and names the fix, or the list says that it
does not. `benchmarks/planted_bugs.py` compares it with other tools on the same list.

Bugs that keep every shape cannot be seen by a tracer: one test shows two, and what catches them instead.
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from tinyomni import attention, dry_run, talker
from tinyomni.dry_run import build, run

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from bugs import BUGS, OTHERS, Bug, dry_run_inputs, planted
from planted_bugs import attempt

NO_LINE = ("swapped order",)
"""The ledger knows where tokens are counted, not where their order was made."""
SLOW = ("swapped order", "only the last token normalized", "a frame too long", "start frame spoken")
"""A whole generation each: these run in the benchmark only."""


@pytest.fixture(scope="module")
def model() -> object:
    """One model for all bugs: only its code is changed, and back again."""
    return build()


@pytest.mark.parametrize(
    "bug", [bug for bug in BUGS if bug.title not in SLOW], ids=lambda bug: f"{bug.title} ({bug.model})"
)
@pytest.mark.filterwarnings("ignore")
def test_the_line_and_the_fix_are_named(bug: Bug, model: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "build", lambda: model)
    library = bug.target.partition(".")[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    verdict, text = attempt(bug, "this tracer")
    assert verdict.said and verdict.fix, text
    assert verdict.line == (bug.title not in NO_LINE), text
    assert re.search(f"(?s){bug.also}", text), text


def test_bugs_that_keep_the_shape_are_out_of_reach_and_met_by_comparisons() -> None:
    """Heads merged without a permute, a shift made twice: every shape is right. The comparison with an independent
    implementation catches the first, the Talker's causality test the second."""
    x = torch.randn(1, 4, 6, 64)
    right = attention.merge_heads(x)
    wrong = x.reshape(1, 6, 256)
    assert right.shape == wrong.shape and not torch.equal(right, wrong)
    codes = torch.arange(12).reshape(1, 6, 2)
    twice = talker.previous(talker.previous(codes))
    assert twice.shape == codes.shape and not torch.equal(twice, talker.previous(codes))
    bug = Bug("shifted twice", "training", "tinyomni.talker:previous", "codes[:, :1]), codes[:, :-1]",
              "codes[:, :2]), codes[:, :-2]", "")  # fmt: skip
    with planted(bug):
        assert run(bug.model, build(), dry_run_inputs(bug)).ok


def test_there_are_enough_bugs() -> None:
    libraries = {bug.target.partition(".")[0] for bug in OTHERS}
    assert len(BUGS) >= 40 and len(libraries) >= 3 and len({(bug.title, bug.model) for bug in BUGS}) == len(BUGS)
