"""Runs that are killed, on a full disk, or with damaged files: all end with the same numbers."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_loop import Rows, Toy, losses, run, short, stack, weights
from torch import Tensor, nn

from tinyomni.errors import InputError
from tinyomni.training import checkpoint, guard
from tinyomni.training.checkpoint import CorruptCheckpoint, load, load_weights, path_of, read_pointer, save
from tinyomni.training.log import read_log
from tinyomni.training.loop import fit
from tinyomni.training.recipe import RunDir


class Random(Toy):
    """Draws from every random generator; may stop at a step, as if the power went."""

    def __init__(self, stop: int = 0, factor: float = 1.0) -> None:
        super().__init__(dropout=0.2)
        self.stop, self.calls, self.factor = stop, 0, factor

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        self.calls += self.training
        if self.stop and self.calls == self.stop:
            raise KeyboardInterrupt
        loss, metrics = super().forward(batch)
        if self.factor != 1:
            loss = (loss.half() * self.factor).float()
        return loss * (1 + random.random() + np.random.rand()), metrics


SETTINGS = {"steps": 20, "checkpoint_freq": 4, "eval_every": 6}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, weights(run(folder, Random(), **SETTINGS)[1])


def same(folder: Path, stage: nn.Module, whole: tuple[Path, Tensor]) -> None:
    """Bit for bit the same losses, validations, weights; the log has every step once."""
    keys = ("step", "loss", "grad_norm", "lr", "validation")
    assert [[entry.get(key) for key in keys] for entry in read_log(folder / "log.jsonl")] == [
        [entry.get(key) for key in keys] for entry in read_log(whole[0] / "log.jsonl")
    ]
    assert torch.equal(weights(stage), whole[1])
    assert read_pointer(folder, "best").name == read_pointer(whole[0], "best").name  # type: ignore[union-attr]


@pytest.mark.parametrize("stop", [1, 3, 5, 9, 13, 20])
def test_a_run_that_stopped_resumes_as_if_it_had_not(stop: int, tmp_path: Path, whole: tuple[Path, Tensor]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Random(stop), **SETTINGS)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')  # a line that was cut off
    result, stage = run(tmp_path, Random(), **SETTINGS)
    same(tmp_path, stage, whole)
    assert result.samples == 20 * 32 and result.tokens == sum(
        e.get("tokens", 0) for e in read_log(tmp_path / "log.jsonl")
    )


def test_fp16_resumes_with_its_scaler(tmp_path: Path) -> None:
    for folder, stop in (("a", 0), ("b", 9)):
        if stop:
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / folder, Random(stop, factor=10), precision="fp16", **SETTINGS)
        result, _ = run(tmp_path / folder, Random(factor=10), precision="fp16", **SETTINGS)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") and result.overflows > 0


@pytest.mark.parametrize("stop", [0, 14])
def test_a_run_killed_before_it_named_its_last_checkpoint(
    stop: int, tmp_path: Path, whole: tuple[Path, Tensor]
) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        run(tmp_path, Random(stop), **SETTINGS)
    (tmp_path / "result.json").unlink(missing_ok=True)
    older = checkpoint.list_checkpoints(tmp_path)[1]
    for name in ("last", "best"):
        checkpoint.set_pointer(tmp_path, name, older)
    stage = run(tmp_path, Random(), **SETTINGS)[1]
    load_weights(stage, tmp_path, "last")
    same(tmp_path, stage, whole)


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_checkpoint import Random, Rows, SETTINGS, fit, short, stack
from tinyomni.errors import InputError
from tinyomni.training import checkpoint, guard
from tinyomni.training.log import read_log
folder, kills = Path(sys.argv[1]), 0
fit(Random(), Rows(), short(steps=1), folder / "first", collate=stack)  # loads what is slow to load before the forks
chance = random.Random(int(sys.argv[2]))
while not (folder / "result.json").exists():
    # longer and longer, so that a slow machine ends as well
    moment = chance.uniform(0.005, 0.03 + 0.01 * kills)
    child = os.fork()
    if not child:
        # the child's own timer: a parent that a busy machine holds up would come when all is done
        signal.setitimer(signal.ITIMER_REAL, moment)
        fit(Random(), Rows(), short(**SETTINGS), folder, collate=stack)
        os._exit(0)
    kills += os.waitpid(child, 0)[1] == signal.SIGALRM  # no handler: the kernel ends the process where it is
    for path in checkpoint.list_checkpoints(folder):
        checkpoint.load(path)  # whole, or this raises
    done = [entry["step"] for entry in read_log(folder / "log.jsonl")]
    saved = int(checkpoint.list_checkpoints(folder)[0].name[5:]) if checkpoint.list_checkpoints(folder) else 0
    assert not done or done[-1] - saved <= SETTINGS["checkpoint_freq"], (done, saved)
    assert kills < 400
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_any_moment_resumes(tmp_path: Path, whole: tuple[Path, Tensor]) -> None:
    """Processes that the kernel ends wherever they are, with no chance to tidy up, until one reaches the end."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths, "TINYOMNI_SHAPES": "0"}
    found = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), "7"], env=environment, capture_output=True, text=True, timeout=900
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) >= 1
    stage = Random()
    load_weights(stage, tmp_path, "last")
    same(tmp_path, stage, whole)
    assert not list(tmp_path.glob("tmp-*")) and "corrupt" not in found.stderr


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        (checkpoint.TENSORS, cut, "must have .* bytes, got"),
        (checkpoint.TENSORS, flip, "damaged: checksum mismatch"),
        (checkpoint.TENSORS, Path.unlink, "tensors.safetensors is missing"),
        (checkpoint.METADATA, cut, "checkpoint.json is damaged or truncated"),
        (checkpoint.METADATA, Path.unlink, "checkpoint.json is missing"),
        (checkpoint.METADATA, lambda path: path.write_text("{}"), "checkpoint.json is damaged: checksum mismatch"),
    ],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(
    file: str,
    damage: Callable[[Path], Any],
    words: str,
    tmp_path: Path,
    whole: tuple[Path, Tensor],
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    damage(path_of(folder, 20) / file)
    with pytest.raises(CorruptCheckpoint, match=words):
        load(path_of(folder, 20))
    capfd.readouterr()
    _, stage = run(folder, Random(), **SETTINGS)
    messages = capfd.readouterr().err
    assert (
        "Renamed to step-00000020.corrupt; trying the one before" in messages
        and "resuming from step 16 of 20" in messages
    )
    same(folder, stage, whole)


def test_where_all_are_damaged_it_starts_from_scratch_and_says_so(
    tmp_path: Path, whole: tuple[Path, Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    count = len(checkpoint.list_checkpoints(folder))
    for path in checkpoint.list_checkpoints(folder):
        cut(path / checkpoint.TENSORS)
    capfd.readouterr()
    _, stage = run(folder, Random(), **SETTINGS)
    messages = capfd.readouterr().err
    assert messages.count("Renamed to") == count and "starts from scratch" in messages
    same(folder, stage, whole)


def test_a_full_disk_leaves_the_one_before_complete(
    tmp_path: Path, whole: tuple[Path, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = checkpoint.write_synced, 0

    def full(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += path.name == checkpoint.TENSORS
        if calls == 4:
            real(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(checkpoint, "write_synced", full)
    with pytest.raises(OSError, match=r"disk full, step 12 needs 0\.0 MB .*00000008 is complete.*Free some space"):
        run(tmp_path, Random(), **SETTINGS)
    monkeypatch.undo()
    assert not list(tmp_path.glob("tmp-*"))
    load(path_of(tmp_path, 8))
    same(tmp_path, run(tmp_path, Random(), **SETTINGS)[1], whole)


def test_an_error_that_is_no_full_disk_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, data: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "write_synced", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        save(tmp_path, 1, {"model.w": torch.ones(2)}, {})
    assert caught.value.__cause__ is None and not list(tmp_path.glob("tmp-*"))


def test_a_disk_without_room_for_a_folder_is_full_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match="disk full, step 1 needs"):
        save(tmp_path, 1, {"model.w": torch.ones(2)}, {})


def test_a_checkpoint_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def renamed(old: Path, new: Path) -> None:
        calls.append(f"rename to {Path(new).name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("sync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", renamed)
    save(tmp_path, 1, {"x": torch.zeros(1)}, {})
    assert calls == [*["sync"] * 3, "rename to step-00000001", "sync", "sync", "rename to last", "sync"]


def test_other_settings_another_model_and_other_data_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"other settings: lr was 0.01, got 0.02, seed was 0, got 3.*another folder"):
        run(tmp_path, lr=0.02, seed=3)
    with pytest.raises(ValueError, match=r"samples was 256, got 128"):
        fit(Toy(), torch.utils.data.Subset(Rows(), range(128)), short(), tmp_path, collate=stack)
    wide = Toy()
    wide.net[0] = nn.Linear(8, 33)
    with pytest.raises(
        ValueError, match=r"another model: 2 names or shapes .* net.0.bias: expected \(33,\) for Toy, got \(32,\)"
    ):
        run(tmp_path, wide)
    assert (tmp_path / "log.jsonl").read_bytes() == before
    result, _ = run(tmp_path, grad_accum_steps=2, checkpoint_freq=7, keep_last=5, eval_every=3, patience=9, max_skips=4)
    assert result.steps == 12


def test_a_run_from_before_a_setting_existed_goes_on_with_its_default(tmp_path: Path) -> None:
    run(tmp_path)
    tensors, metadata = load(path_of(tmp_path, 12))
    for name in ("step", "bytes", "sha256", "metadata_sha256"):
        del metadata[name]
    del metadata["must_match"]["min_lr_ratio"]
    save(tmp_path, 12, tensors, metadata)
    assert run(tmp_path)[0].steps == 12
    with pytest.raises(InputError, match=r"other settings: min_lr_ratio was 0.05, got 0.1"):
        run(tmp_path, min_lr_ratio=0.1)


def test_changed_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("a.txt", "b.txt", "c.png", "._a.txt"):
        (tmp_path / "data" / name).write_text("old")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.txt").write_text("old")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    digests = [RunDir(tmp_path, data=tmp_path / "data").data_digest()]
    (tmp_path / "data" / "._a.txt").write_text("of macOS")
    assert RunDir(tmp_path, data=tmp_path / "data").data_digest() == digests[0] is not None
    for name, text in (("b.txt", "new"), ("c.png", "longer"), ("linked/d.txt", "new")):
        (tmp_path / "data" / name).write_text(text)
        digests.append(RunDir(tmp_path, data=tmp_path / "data").data_digest())
    assert len(set(digests)) == 4 and RunDir(tmp_path).data_digest() is None
    fit(Toy(), Rows(), short(), tmp_path / "run", collate=stack, data=digests[0])
    with pytest.raises(InputError, match=r"other settings: data was .*, got .*another folder"):
        fit(Toy(), Rows(), short(), tmp_path / "run", collate=stack, data=digests[1])


def test_a_finished_run_can_be_lengthened_and_an_unfinished_one_cannot(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", steps=12)
    result, _ = run(tmp_path / "run", steps=20)
    assert result.steps == 20 and "a finished run of 12 steps is lengthened to 20" in capfd.readouterr().err
    assert [entry["step"] for entry in read_log(tmp_path / "run" / "log.jsonl") if "loss" in entry] == [*range(1, 21)]
    with pytest.raises(InputError, match="steps was 20, got 12"):
        run(tmp_path / "run", steps=12)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Random(9), **SETTINGS)
    with pytest.raises(InputError, match="steps was 20, got 30"):
        run(tmp_path / "stopped", Random(), **{**SETTINGS, "steps": 30})


def test_a_run_lengthened_by_a_cycle_is_the_one_that_was_never_finished(tmp_path: Path) -> None:
    _, whole = run(tmp_path / "whole", Random(), steps=20, cycle=12)
    run(tmp_path / "run", Random(), steps=12)
    with pytest.raises(InputError, match="cycle was None, got 10"):
        run(tmp_path / "run", Random(), steps=20, cycle=10)  # the finished one was longer
    _, lengthened = run(tmp_path / "run", Random(), steps=20, cycle=12)
    assert torch.equal(weights(whole), weights(lengthened))
    with pytest.raises(InputError, match="restarts was 1, got 2"):
        run(tmp_path / "run", Random(), steps=28, cycle=12, restarts=2)  # what was averaged is not known any more


@pytest.mark.parametrize("cycle", [None, 12])
def test_a_run_lengthened_by_restarts_averages_them(tmp_path: Path, cycle: int | None) -> None:
    means = [Random(), Random()]
    more = {"steps": 20, "cycle": 12, "restarts": 2, "restart_lr": 0.005}
    run(tmp_path / "whole", Random(), **more)
    run(tmp_path / "run", Random(), steps=12, cycle=cycle)
    run(tmp_path / "run", Random(), **more)
    for mean, name in zip(means, ("whole", "run"), strict=True):
        checkpoint.load_weights(mean, tmp_path / name, "last")
    assert torch.equal(weights(means[0]), weights(means[1]))
    last = Random()
    checkpoint.restore_model(last, load(path_of(tmp_path / "run", 20))[0])
    assert not torch.equal(weights(means[1]), weights(last))


def test_drawn_data_grow_with_a_run_that_is_lengthened_and_never_shrink(tmp_path: Path) -> None:
    def train(steps: int, rows: int) -> int:
        data = torch.utils.data.Subset(Rows(), range(rows))
        return fit(Toy(), data, short(steps=steps), tmp_path / "run", collate=stack).steps

    assert train(4, 64) == 4 and train(6, 96) == 6
    with pytest.raises(InputError, match="samples was 96, got 32"):
        train(8, 32)
    with pytest.raises(InputError, match="samples was 96, got 128"):
        train(6, 128)  # the same run on other data


class Signalled(Random):
    """Sends itself a signal in the middle of a step, or two."""

    def __init__(self, number: int, times: int) -> None:
        super().__init__()
        self.number, self.times = number, times

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        found = super().forward(batch)
        if self.training and self.calls == 7:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        return found


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_ends_the_run_after_it(number: int, tmp_path: Path, whole: tuple[Path, Tensor]) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as end:
        run(tmp_path / "run", Signalled(number, 1), **SETTINGS)
    assert end.value.number == number and signal.getsignal(number) is before  # type: ignore[attr-defined]
    assert read_pointer(tmp_path / "run", "last").name == "step-00000007"  # type: ignore[union-attr]
    _, stage = run(tmp_path / "run", Random(), **SETTINGS)
    same(tmp_path / "run", stage, whole)
    with pytest.raises(KeyboardInterrupt):  # the second signal does not wait for the end of the step
        run(tmp_path / "twice", Signalled(number, 2), **SETTINGS)
    assert read_pointer(tmp_path / "twice", "last").name == "step-00000006"  # type: ignore[union-attr]


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_signal_in_the_last_step_changes_nothing(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt):  # it would end the tests as well
        run(tmp_path, Signalled(signal.SIGINT, 1), **{**SETTINGS, "steps": 7})
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 7


class SignalledWithItsWorkers(Signalled):
    """As a terminal or a cluster does it: every process of the run gets the signal."""

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        if self.training and self.calls == 6:
            workers = multiprocessing.active_children()
            assert workers
            for worker in workers:
                # from another process: to one from its parent torch's workers end without a complaint
                subprocess.run(["kill", f"-{self.number}", str(worker.pid)], check=True)
                worker.join(0.5)
        return super().forward(batch)


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_ends_the_run_after_the_step(
    number: int, tmp_path: Path, whole: tuple[Path, Tensor]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", SignalledWithItsWorkers(number, 1), **SETTINGS, num_workers=1)
    assert read_pointer(tmp_path / "run", "last").name == "step-00000007"  # type: ignore[union-attr]
    _, stage = run(tmp_path / "run", Random(), **SETTINGS, num_workers=1)
    same(tmp_path / "run", stage, whole)


@pytest.mark.skipif(os.name == "nt", reason="needs locks")
def test_a_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tinyomni.training.guard import locked\n"
        "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match=rf"process {other.pid} already trains in .*--out"):
            run(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [guard.LOCK]
        other.kill()
    assert run(tmp_path)[0].steps == 12


def test_keep_last_checkpoints_are_kept_beside_the_best(tmp_path: Path) -> None:
    class Early(Toy):
        def validate(self) -> dict[str, float]:
            self.count = getattr(self, "count", 0) + 1
            return {"loss": float(self.count)}

    run(tmp_path, Early(), steps=40, checkpoint_freq=5, eval_every=4, keep_last=3)
    kept = [path.name for path in checkpoint.list_checkpoints(tmp_path)]
    assert kept == [f"step-{step:08d}" for step in (40, 35, 30, 4)]
    assert read_pointer(tmp_path, "best").name == kept[3] and read_pointer(tmp_path, "last").name == kept[0]  # type: ignore[union-attr]


def test_every_kind_of_tensor_is_restored(tmp_path: Path) -> None:
    tied = torch.randn(4, 3)
    tensors = {
        "tied a": tied,
        "tied b": tied,
        "turned": tied.T,
        "half": tied.bfloat16(),
        "number": torch.tensor(3.5),
        "whole": torch.arange(3),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 2),
    }
    save(tmp_path, 3, tensors, {"more": [1, "ä"]})
    found, metadata = load(path_of(tmp_path, 3))
    assert metadata["more"] == [1, "ä"] and metadata["step"] == 3
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
    save(tmp_path, 3, {"x": tied}, {})
    assert list(load(path_of(tmp_path, 3))[0]) == ["x"]


def test_the_random_numbers_continue() -> None:
    state = json.loads(json.dumps(checkpoint.random_state(torch.device("cpu"))))
    drawn = [(random.random(), np.random.randn(), torch.rand(2).tolist())]
    checkpoint.restore_random(state, torch.device("cpu"))
    drawn.append((random.random(), np.random.randn(), torch.rand(2).tolist()))
    assert drawn[0] == drawn[1]


def test_the_random_numbers_of_a_gpu_continue_too_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu, restored = torch.device("cpu"), torch.device("cuda"), []
    numbers = torch.arange(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: numbers)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append((state.tolist(), device)))
    on_cpu, on_gpu = (json.loads(json.dumps(checkpoint.random_state(device))) for device in (cpu, gpu))
    checkpoint.restore_random(on_gpu, gpu)
    assert restored == [(numbers.tolist(), gpu)]
    checkpoint.restore_random(on_gpu, cpu)  # a run may go on without the GPU that it began on,
    checkpoint.restore_random(on_cpu, gpu)  # or with one that it had not
    checkpoint.restore_random(on_cpu, cpu)
    assert len(restored) == 1


def test_no_weights_where_nothing_was_trained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Was this stage trained"):
        load_weights(Toy(), tmp_path)


def test_every_changed_bit_of_the_metadata_is_noticed(tmp_path: Path) -> None:
    metadata = {"loss": 0.125, "settings": {"lr": 1e-3, "name": "x"}, "best": None, "history": [1, 2, 3]}
    file = save(tmp_path, 7, {"model.w": torch.ones(2)}, metadata) / checkpoint.METADATA
    whole = file.read_bytes()
    _, expected = load(file.parent)
    for place in range(len(whole)):
        for bit in range(8):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            try:
                _, found = load(file.parent)
            except CorruptCheckpoint:
                continue
            assert found == expected  # a space that became another one


def test_the_order_of_the_metadata_is_no_damage(tmp_path: Path) -> None:
    file = save(tmp_path, 7, {"model.w": torch.ones(2)}, {"loss": 0.5, "best": None}) / checkpoint.METADATA
    written = json.loads(file.read_bytes())
    file.write_text(json.dumps(dict(reversed(written.items()))))
    assert load(file.parent)[1] == written


def test_metadata_that_no_parser_likes_is_a_corrupt_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 7, {"model.w": torch.ones(2)}, {})
    for text in ("[" * 100_000, "9" * 10_000, "[]", "null", '{"step": NaN}', "\ufeff{}"):
        (path / checkpoint.METADATA).write_text(text, encoding="utf-8")
        with pytest.raises(CorruptCheckpoint, match=r"checkpoint\.json is damaged"):
            load(path)


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "tmp-00000003").mkdir()
    (tmp_path / "tmp-00000003" / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / "tmp-last").write_bytes(b"step-0")
    path = save(tmp_path, 2, {"model.a": torch.ones(2)}, {})
    assert load(save(tmp_path / "not" / "there", 2, {"model.a": torch.ones(2)}, {}))[1]["step"] == 2
    shutil.rmtree(tmp_path / "not")
    checkpoint.clear_temporary(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["last", path.name]


def test_checkpoints_are_listed_from_the_newest_and_the_best_is_kept(tmp_path: Path) -> None:
    paths = [save(tmp_path, step, {"model.a": torch.ones(2) * step}, {}) for step in (9, 10, 2, 100)]
    assert [each.name for each in paths] == ["step-00000009", "step-00000010", "step-00000002", "step-00000100"]
    (tmp_path / "step-00000200.corrupt").mkdir()
    newest = [paths[3], paths[1], paths[0], paths[2]]
    assert checkpoint.list_checkpoints(tmp_path) == newest
    checkpoint.set_pointer(tmp_path, "best", paths[2])
    checkpoint.prune(tmp_path, 2)
    assert checkpoint.list_checkpoints(tmp_path) == [*newest[:2], paths[2]]
    assert read_pointer(tmp_path, "last") == paths[3] and read_pointer(tmp_path, "none") is None
    again = save(tmp_path, 100, {"model.a": torch.zeros(2)}, {"more": 1})
    tensors, metadata = load(again)
    assert not tensors["model.a"].any() and (metadata["step"], metadata["more"]) == (100, 1)


def test_weights_are_the_best_ones_and_their_mean_where_there_is_one(tmp_path: Path) -> None:
    stage, one = torch.nn.Linear(2, 1, bias=False), torch.ones(1, 2)

    def loaded(which: str) -> float:
        checkpoint.load_weights(stage, tmp_path, which)
        return float(stage.weight.detach().mean())

    best = save(tmp_path, 1, {"model.weight": one}, {})
    save(tmp_path, 2, {"model.weight": 2 * one}, {})
    assert loaded("best") == 2  # without a best one, the last
    checkpoint.set_pointer(tmp_path, "best", best)
    assert (loaded("best"), loaded("last")) == (1, 2)
    save(tmp_path, 3, {"model.weight": one, f"{checkpoint.PREFIX}weight": 9 * one}, {})
    assert loaded("last") == 9
    save(tmp_path, 4, {"model.weight": one, "model.more": one}, {})
    with pytest.raises(InputError, match=r"1 names or shapes differ\. The first is more: expected none"):
        loaded("last")


def test_a_pointer_that_is_no_name_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, 7, {"model.w": torch.ones(2)}, {})
    assert read_pointer(tmp_path, "last") == path_of(tmp_path, 7)
    for content in (b"", b"step-7", b"../elsewhere", b"step-0000000\xff", b"step-00000007/.."):
        (tmp_path / "last").write_bytes(content)
        with pytest.raises(CorruptCheckpoint, match="last is damaged: expected the name of a checkpoint"):
            read_pointer(tmp_path, "last")
