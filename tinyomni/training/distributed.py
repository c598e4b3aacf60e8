"""Several processes: the process group, and which samples of each batch a process computes.

    torchrun --nproc-per-node 4 -m tinyomni train …

starts four processes and tells each its rank in environment variables. Every process holds the whole model and computes
its part of each batch; DistributedDataParallel averages the gradients. Without torchrun one process computes it all.
"""

import atexit
import contextlib
import dataclasses
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler

from tinyomni.data.bucketing import bucketed_batches
from tinyomni.errors import InputError

MOST_SHUFFLED = 100_000_000  # samples whose random order is kept in memory: 4 GB
LAST_WORK_SECONDS = 0.5  # many times what a thread waits for a core on a busy machine

# ---- the processes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProcessGroup:
    """This process among all: `rank` of `size`, with its device. Only the main process writes files and prints."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process: all get the same answer, so that all skip a batch or none does."""
        return self.sum(float(flag))[0] > 0

    def barrier(self) -> None:
        """Wait for all processes."""
        self.any(False)

    def broadcast(self, value: Any) -> Any:
        """The main process's value; that of the others is ignored."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wrap(self, stage: nn.Module) -> nn.Module:
        """The stage in DistributedDataParallel, where there is more than one process."""
        if self.size == 1:
            return stage
        ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(WithUnused(stage), device_ids=ids, find_unused_parameters=True)

    def no_sync(self, model: nn.Module, skip: bool) -> contextlib.AbstractContextManager[None]:
        """With `skip`, gradients are not averaged in this block: that is done once a step, at the last micro-batch."""
        return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


class WithUnused(nn.Module):
    """A stage, and a parameter that nothing uses.

    A batch need not use every parameter (text without an image leaves the vision projector unused), so DDP has to look
    for unused ones. Where it finds none, every process warns about the time this took: here it finds one.
    """

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage
        self.unused = nn.Parameter(torch.zeros(1, device=next(stage.parameters()).device))

    def forward(self, batch: Any) -> Any:
        """What the stage returns."""
        return self.stage(batch)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU. MPS must be named: some losses do not run on it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    wrong = InputError(f"Training: device must be 'auto', 'cpu', 'cuda' or 'mps', got {name!r}")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise wrong from error
    if device.type not in ("cpu", "cuda", "mps"):  # torch knows more, such as meta
        raise wrong
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"Training: device={name}, but torch sees no GPU. `tinyomni doctor` says more.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("Training: device=mps, but torch sees no Apple GPU")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and device.index >= (count := torch.cuda.device_count()):
        raise InputError(f"Training: device={device}, but torch sees {count} GPU(s), cuda:0 … cuda:{count - 1}")
    return device


def start(device: str = "auto") -> ProcessGroup:
    """Join the processes that torchrun started: NCCL between GPUs, gloo between CPUs. May be called again."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ProcessGroup(0, 1, choose_device(device))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        atexit.register(leave)
    return ProcessGroup(dist.get_rank(), dist.get_world_size(), chosen)


def leave() -> None:
    """Leave the group, and give gloo's threads time to let go of the last tensors that were sent.

    DDP keeps the group, and so its threads, alive. A tensor that Python knows needs the interpreter's lock to be
    released, and a thread that asks for it after the interpreter has ended aborts the process ("terminate called
    without an active exception"). Nothing tells when the threads are done, so this waits.
    """
    dist.destroy_process_group()
    time.sleep(LAST_WORK_SECONDS)


def broadcast(*tensors: Tensor) -> None:
    """Overwrite each tensor with the main process's: for what changes outside of autograd, which DDP does not see."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor.data, 0)


def sharded_map(function: Callable[[Tensor], Tensor], items: Tensor) -> Tensor:
    """`function(items)`, which treats each item along the first axis alone: every process computes a part of them."""
    if not dist.is_initialized():
        return function(items)
    size, rank = dist.get_world_size(), dist.get_rank()
    share = -(-len(items) // size)
    own = items[rank * share : (rank + 1) * share]
    done = items.new_zeros(share, *items.shape[1:])  # the last may have fewer items, or none
    done[: len(own)] = function(own)
    all_done = items.new_empty(size * share, *items.shape[1:])
    dist.all_gather_into_tensor(all_done, done)
    return all_done[: len(items)]


# ---- the data: a step's number determines its samples ---------------------------------------------------------------


class Batches:
    """The global batches. Their order follows from (seed, epoch) alone, so a step's number determines its samples.

    With `lengths`, a batch holds samples of similar length. With `in_order`, samples keep the order of the data. What
    does not fill a batch at the end of an epoch is dropped; another epoch drops others, unless they are in order.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int = 0,
        lengths: Sequence[float] | None = None,
        in_order: bool = False,
    ) -> None:
        if samples < batch_size:
            raise InputError(
                f"Training: batch_size={batch_size} needs as many samples, got {samples}; lower batch_size"
            )
        if lengths is None and not in_order and samples > MOST_SHUFFLED:
            raise InputError(
                f"Training: expected at most {MOST_SHUFFLED:,} samples in random order, got {samples:,}; "
                "lower steps or batch_size"
            )
        if lengths is not None and len(lengths) != samples:
            raise ValueError(f"Batches: expected {samples} lengths, one for each sample, got {len(lengths)}")
        self.samples, self.batch_size, self.seed, self.lengths = samples, batch_size, seed, lengths
        self.in_order = in_order
        self.epoch = -1
        self.order: list[list[int]] = []

    def __getitem__(self, step: int) -> list[int]:
        """The samples of a step, counted from 0."""
        epoch, index = divmod(step, self.samples // self.batch_size)
        if self.in_order and self.lengths is None:
            return list(range(index * self.batch_size, (index + 1) * self.batch_size))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self.shuffled(epoch)
        return self.order[index]

    def shuffled(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch."""
        if self.lengths is not None:
            batches = bucketed_batches(self.lengths, self.batch_size, self.seed, epoch)
            return [batch for batch in batches if len(batch) == self.batch_size]
        order = list(range(self.samples))
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        full = self.samples - self.samples % self.batch_size
        return [order[at : at + self.batch_size] for at in range(0, full, self.batch_size)]


class MicroBatchSampler(Sampler[list[int]]):
    """The micro-batches of this process, from step `start` on: nothing before it is read."""

    def __init__(self, batches: Batches, start: int, steps: int, grad_accum_steps: int, group: ProcessGroup) -> None:
        self.batches, self.steps, self.group = batches, range(start, steps), group
        self.grad_accum_steps = grad_accum_steps
        if batches.batch_size % (grad_accum_steps * group.size):
            parts = f"grad_accum_steps × processes = {grad_accum_steps} × {group.size}"
            raise InputError(f"Training: batch_size={batches.batch_size} must be divisible by {parts}")

    def __iter__(self) -> Iterator[list[int]]:
        parts = self.grad_accum_steps * self.group.size
        for step in self.steps:
            for number in range(self.grad_accum_steps):
                yield self.batches[step][number * self.group.size + self.group.rank :: parts]


def count_samples(batch: Any) -> int:
    """How many samples a batch holds: the first axis of the first tensor in it."""
    if isinstance(batch, Tensor):
        return len(batch)
    parts = (
        list(batch.values())
        if isinstance(batch, Mapping)
        else [getattr(batch, f.name) for f in dataclasses.fields(batch)]
        if dataclasses.is_dataclass(batch)
        else list(batch)
        if isinstance(batch, (list, tuple))
        else []
    )
    for part in parts:
        if found := count_samples(part):
            return found
    return 0


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in it on the device: tensors, dicts, lists, tuples, dataclasses are looked into."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(
            batch, **{f.name: to_device(getattr(batch, f.name), device) for f in dataclasses.fields(batch) if f.init}
        )
    return batch
