"""Who computes what: the batch of each step, and the share of it that each process takes.

    torchrun --nproc-per-node 4 -m tinyomni train …

starts four processes and tells each its number in environment variables. Every process holds the whole model and takes
its share of each batch; DistributedDataParallel averages the gradients. Without torchrun one process does it all.
"""

import atexit
import contextlib
import dataclasses
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler

# ---- the processes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, with its device. Only the `first` writes files and prints."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Rank 0."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """Sums over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process: all of them get the same answer, so that all skip a batch or none."""
        return self.total(float(flag))[0] > 0

    def from_first(self, value: Any) -> Any:
        """What rank 0 gives; the others' value is not looked at."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wrap(self, stage: nn.Module) -> nn.Module:
        """The stage with gradients averaged over the processes."""
        if self.size == 1:
            return stage
        ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(Padded(stage), device_ids=ids, find_unused_parameters=True)

    def alone(self, model: nn.Module, alone: bool) -> contextlib.AbstractContextManager[None]:
        """No averaging in this block: gradients are averaged once a step, after the last micro-batch."""
        return model.no_sync() if alone and isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


class Padded(nn.Module):
    """A stage, and a parameter that nothing uses.

    A batch need not use every parameter (text without a picture leaves the vision projector alone), so DDP has to look
    for unused ones. Where it finds none, every process complains about the time this took: here it finds one.
    """

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage
        self.unused = nn.Parameter(torch.zeros(1, device=next(stage.parameters()).device))

    def forward(self, batch: Any) -> Any:
        """The stage's."""
        return self.stage(batch)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU. MPS has to be asked for: some losses do not run on it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"Training: device {name} was asked for, but torch sees no GPU. `tinyomni doctor` says more.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("Training: device mps was asked for, but torch sees no Apple GPU")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
    return device


def start(device: str = "auto") -> World:
    """Join the processes that torchrun started: NCCL between GPUs, gloo between CPUs. May be called again."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World(0, 1, choose_device(device))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return World(dist.get_rank(), dist.get_world_size(), chosen)


def same_everywhere(*tensors: Tensor) -> None:
    """Give every process the first one's values: for what is changed by hand, since DDP only sees to gradients."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor.data, 0)


def each_a_share(function: Callable[[Tensor], Tensor], items: Tensor) -> Tensor:
    """`function(items)`, item by item along the first axis, all of one size: each process does a share of them."""
    if not dist.is_initialized():
        return function(items)
    size, rank = dist.get_world_size(), dist.get_rank()
    share = -(-len(items) // size)
    own = items[rank * share : (rank + 1) * share]
    done = items.new_zeros(share, *items.shape[1:])  # the last may have less to do, or nothing
    done[: len(own)] = function(own)
    all_done = items.new_empty(size * share, *items.shape[1:])
    dist.all_gather_into_tensor(all_done, done)
    return all_done[: len(items)]


# ---- the data: a step number says which samples come ----------------------------------------------------------------


class Batches:
    """The global batches. Their order comes from (seed, epoch) alone, so a step number is a place in the data.

    With `lengths`, a batch holds samples of like length. `in_order`, they come as they stand in the data. What does not
    fill a batch at the end of an epoch is left out; another epoch leaves out others, unless they come in order.
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
            raise ValueError(f"Data: {samples} samples do not fill a batch of {batch_size}; lower batch_size")
        if lengths is not None and len(lengths) != samples:
            raise ValueError(f"Data: {len(lengths)} lengths came for {samples} samples")
        self.samples, self.batch_size, self.seed, self.lengths = samples, batch_size, seed, lengths
        self.in_order = in_order
        self.epoch = -1
        self.order: list[list[int]] = []

    def __getitem__(self, step: int) -> list[int]:
        """The samples of a step, counted from 0."""
        epoch, place = divmod(step, self.samples // self.batch_size)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self.shuffled(epoch)
        return self.order[place]

    def shuffled(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch."""
        if self.lengths is not None:
            from tinyomni.data.corpora import bucketed

            batches = bucketed(self.lengths, self.batch_size, self.seed, epoch)
            return [batch for batch in batches if len(batch) == self.batch_size]
        order = list(range(self.samples))
        if not self.in_order:
            random.Random(f"{self.seed} {epoch}").shuffle(order)
        full = self.samples - self.samples % self.batch_size
        return [order[at : at + self.batch_size] for at in range(0, full, self.batch_size)]


class Share(Sampler[list[int]]):
    """The micro-batches of this process, from step `start` on: nothing before it is read."""

    def __init__(self, batches: Batches, start: int, steps: int, accumulate: int, world: World) -> None:
        self.batches, self.start, self.steps, self.accumulate, self.world = batches, start, steps, accumulate, world
        if batches.batch_size % (accumulate * world.size):
            raise ValueError(
                f"Training: batch_size {batches.batch_size} does not divide into {accumulate} micro-batches on each of "
                f"{world.size} processes"
            )

    def __iter__(self) -> Iterator[list[int]]:
        parts = self.accumulate * self.world.size
        for step in range(self.start, self.steps):
            for number in range(self.accumulate):
                yield self.batches[step][number * self.world.size + self.world.rank :: parts]


def size(batch: Any) -> int:
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
        if found := size(part):
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
