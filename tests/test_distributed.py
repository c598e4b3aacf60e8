"""Two real processes under torchrun give what one process gives."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_loop import Blocks, Rows, Toy, losses, short, stack, weights
from torch import Tensor, nn

from tinyomni.training import checkpoint, distributed
from tinyomni.training.distributed import Batches, sharded_map
from tinyomni.training.log import read_log
from tinyomni.training.loop import fit
from tinyomni.training.stage import Stage

# rows 1 and 3 of a batch belong to the second process, in its first and second micro-batch, row 0 to the first process
ORDER = Batches(256, 32)
BAD = {ORDER[3][1]: math.nan, ORDER[5][0]: math.nan, ORDER[7][3]: 5e3}
HALVES = {"checkpoint_freq": 6, "keep_last": 5}


class Sometimes(Toy):
    """Some batches use parameters that others leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Linear(8, 3)
        nn.init.constant_(self.extra.weight, 0.1)
        nn.init.zeros_(self.extra.bias)

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        loss, metrics = super().forward(batch)
        some = batch["number"] % 32 == 0
        if some.any():
            loss = loss + self.extra(batch["x"][some]).square().sum() / batch["mask"].sum()
        return loss, metrics


def run(folder: Path, stage: Stage, **more: Any) -> None:
    fit(stage, Rows(), short(**{"grad_accum_steps": 2, **more}), folder, collate=stack)


def done_by(rank: int) -> Callable[[Tensor], Tensor]:
    return lambda items: 10 * items + rank


def halfway(old: Path, new: Path) -> None:
    """The same run as it was after 6 of its 12 steps."""
    shutil.copytree(old, new)
    shutil.rmtree(checkpoint.path_of(new, 12))


def both(folder: Path) -> None:
    """What each of the two processes runs."""
    run(folder / "plain", Toy(), eval_every=4, **HALVES)
    run(folder / "bad", Toy(BAD), steps=8)
    run(folder / "sometimes", Sometimes())
    run(folder / "muon", Blocks(), optimizer="muon")
    own = torch.full((3,), float(dist.get_rank()))
    distributed.broadcast(own)
    (folder / f"same {dist.get_rank()}").write_text(str(own.tolist()))
    shares = [sharded_map(done_by(dist.get_rank()), torch.arange(2.0 * n).view(n, 2)).tolist() for n in (1, 2, 3)]
    (folder / f"shares {dist.get_rank()}").write_text(str(shares))
    run(folder / "from one", Toy(), **HALVES)
    run(folder / "dropout", Toy(dropout=0.3), **HALVES)
    if distributed.start().is_main:
        halfway(folder / "dropout", folder / "dropout again")
    dist.barrier()
    run(folder / "dropout again", Toy(dropout=0.3), **HALVES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """What one process left, what two left, and what the two printed."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    run(one / "plain", Toy(), eval_every=4, **HALVES)
    run(one / "bad", Toy(BAD), steps=8)
    run(one / "sometimes", Sometimes())
    run(one / "muon", Blocks(), optimizer="muon")
    run(one / "from one", Toy(), **HALVES)
    halfway(one / "from one", two / "from one")
    script = two / "script.py"
    script.write_text(
        "import sys, pathlib, torch\ntorch.set_num_threads(1)\nfrom test_distributed import both\n"
        "both(pathlib.Path(sys.argv[1]))\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*torchrun, "--log-dir", two / "logs", script, two],
        env={**os.environ, "PYTHONPATH": paths, "TINYOMNI_SHAPES": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert found.returncode == 0, found.stderr[-5000:]
    return one, two, found.stderr


@pytest.mark.parametrize("name", ["plain", "bad", "sometimes", "muon", "from one"])
def test_two_processes_give_the_curve_of_one(name: str, folders: tuple[Path, Path, str]) -> None:
    one, two, _ = folders
    assert len(losses(one / name)) == (5 if name == "bad" else 12)
    assert losses(two / name) == pytest.approx(losses(one / name), rel=1e-5)
    for key in ("step", "lr", "tokens"):
        assert [entry.get(key) for entry in read_log(two / name / "log.jsonl")] == [
            entry.get(key) for entry in read_log(one / name / "log.jsonl")
        ]
    found = [checkpoint.load(checkpoint.path_of(folder / name, 8 if name == "bad" else 12)) for folder in (one, two)]
    for key, tensor in found[0][0].items():
        torch.testing.assert_close(found[1][0][key], tensor, atol=2e-6, rtol=1e-4)
    assert [metadata["result"]["processes"] for _, metadata in found] == [1, 2]
    assert [len(metadata["random"]) for _, metadata in found] == [1, 2]


def test_what_is_changed_by_hand_can_be_made_the_same(folders: tuple[Path, Path, str]) -> None:
    assert [(folders[1] / f"same {rank}").read_text() for rank in (0, 1)] == ["[0.0, 0.0, 0.0]"] * 2


def test_each_process_does_a_share_and_all_have_the_whole(folders: tuple[Path, Path, str]) -> None:
    expected = [[[0, 10]], [[0, 10], [21, 31]], [[0, 10], [20, 30], [41, 51]]]
    for rank in (0, 1):
        assert json.loads((folders[1] / f"shares {rank}").read_text()) == expected
    assert sharded_map(done_by(0), torch.ones(3, 1)).tolist() == [[10]] * 3  # alone


def test_a_batch_that_is_bad_on_one_process_is_skipped_on_both(folders: tuple[Path, Path, str]) -> None:
    skips = [entry for entry in read_log(folders[1] / "bad" / "log.jsonl") if "skipped" in entry]
    assert [entry["step"] for entry in skips] == [4, 6, 8]
    assert "another process" in skips[0]["skipped"] and "nan" in skips[1]["skipped"] and "norm" in skips[2]["skipped"]
    assert checkpoint.load(checkpoint.path_of(folders[1] / "bad", 8))[1]["result"]["skipped"] == 3


def test_the_first_process_validates_for_both(folders: tuple[Path, Path, str]) -> None:
    one, two = (
        [e["validation"]["loss"] for e in read_log(f / "plain" / "log.jsonl") if "validation" in e] for f in folders[:2]
    )
    assert len(one) == 3 and two == pytest.approx(one, rel=1e-5)


def test_one_process_resumes_what_two_began(folders: tuple[Path, Path, str], tmp_path: Path) -> None:
    one, two, _ = folders
    halfway(two / "plain", tmp_path / "run")
    stage = Toy()
    run(tmp_path / "run", stage, eval_every=4, **HALVES)
    assert losses(tmp_path / "run") == pytest.approx(losses(one / "plain"), rel=1e-5)
    assert losses(tmp_path / "run")[:6] == losses(two / "plain")[:6]
    whole = Toy()
    checkpoint.load_weights(whole, one / "plain", "last")
    torch.testing.assert_close(weights(stage), weights(whole), atol=2e-6, rtol=1e-4)


def test_two_that_resume_are_bit_identical(folders: tuple[Path, Path, str]) -> None:
    """Each process has its own dropout, and resumes with it."""
    two = folders[1]
    assert losses(two / "dropout again") == losses(two / "dropout")
    states = checkpoint.load(checkpoint.path_of(two / "dropout", 12))[1]["random"]
    assert states[0]["torch"] != states[1]["torch"]


def test_only_the_first_process_prints(folders: tuple[Path, Path, str]) -> None:
    assert folders[2].splitlines() == ["toy: resuming from step 6 of 12"] * 2  # "from one" and "dropout again"


def test_without_torchrun_there_is_one_process() -> None:
    group = distributed.start("cpu")
    assert (group.rank, group.size, group.is_main, dist.is_initialized()) == (0, 1, True, False)
    assert group.sum(1, 2) == [1, 2] and group.any(True) and group.gather("x") == ["x"] and group.broadcast(3) == 3
    stage = Toy()
    assert group.wrap(stage) is stage
