"""How time and memory grow with length, batch and width: slopes on log-log axes, beside those that theory expects

1 is linear, 2 quadratic. A slope is that of the largest sizes; at small ones a fixed cost hides it. Memory is what is
kept for the backward pass without the weights, or the weights, or the cache: it is counted, not sampled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from harness import Case, timer
from torch import Tensor, nn

from tinyomni.attention import KVCache, attend, attention
from tinyomni.audio import AudioEncoderTiny
from tinyomni.codec import RVQ
from tinyomni.config import TINY
from tinyomni.layers import DecoderBlock, SwiGLU
from tinyomni.thinker import ThinkerLM

ROUNDS, LAST = 7, 3  # runs of each size; sizes that the slope is taken from
TIME, MEMORY = "time", "memory"


@dataclass
class Sweep:
    """One quantity over growing sizes. `prepare(size, device)` gives what is timed, or how many bytes it is."""

    label: str
    kind: str
    axis: str
    sizes: tuple[int, ...]
    expected: float
    prepare: Callable[[int, str], Callable[[], object]]
    costs: list[float] = field(default_factory=list)

    def measure(self, device: str) -> float:
        """The slope, from costs that are kept for the figure."""
        runs, now = [self.prepare(size, device) for size in self.sizes], timer(device)
        if self.kind == MEMORY:
            self.costs = [float(run()) for run in runs]  # type: ignore[arg-type]
            return slope(self.sizes[-LAST:], self.costs[-LAST:])
        self.costs = [math.inf for _ in runs]
        for number in range(ROUNDS + 1):
            for place, run in enumerate(runs):
                start = now()
                run()
                if number:  # the first round warms up
                    self.costs[place] = min(self.costs[place], now() - start)
        return slope(self.sizes[-LAST:], self.costs[-LAST:])


def slope(sizes: tuple[int, ...], costs: list[float]) -> float:
    """Of the straight line through log(cost) over log(size), by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(max(cost, 1e-9)) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return rise / sum((a - mean_x) ** 2 for a in x)


def kept_bytes(run: Callable[[], Tensor], model: nn.Module | None = None) -> int:
    """What autograd keeps from the forward pass until the backward pass, without the weights."""
    weights = {each.untyped_storage().data_ptr() for each in (model.parameters() if model is not None else ())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other gets its address
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(each.untyped_storage().nbytes() for place, each in kept.items() if place not in weights)


def no_grad(run: Callable[[], object]) -> Callable[[], object]:
    """The same without gradients."""
    return torch.no_grad()(run)


def qkv(tokens: int, device: str, grad: bool = False) -> list[Tensor]:
    """Of TINY's Thinker."""
    return [torch.randn(1, 4, tokens, 64, device=device, requires_grad=grad) for _ in range(3)]


def cached_step(tokens: int, device: str) -> Callable[[], object]:
    """One token through a block that has `tokens` in its cache."""
    block = DecoderBlock(256, 4, 1024, tokens + 1).to(device).eval()
    cache, x = KVCache(1, 1, 4, tokens + 1, 64, device), torch.randn(1, 1, 256, device=device)
    cache.size = tokens
    return no_grad(lambda: block(x, cache=cache))


def convolutions(frames: int, device: str) -> Callable[[], object]:
    """Those of the audio encoder."""
    down, mel = AudioEncoderTiny().down.to(device).eval(), torch.randn(1, 1, frames, 128, device=device)
    return no_grad(lambda: down(mel))


def rvq(frames: int, device: str) -> Callable[[], object]:
    """Vectors to codes."""
    book, x = RVQ().to(device).eval(), torch.randn(1, frames, 128, device=device)
    return no_grad(lambda: book.encode(x))


def thinker(batch: int, device: str, memory: bool = False) -> Callable[[], object]:
    """Forward, 32 tokens."""
    model, ids = ThinkerLM().to(device).eval(), torch.randint(4, 1300, (batch, 32), device=device)
    return partial(kept_bytes, lambda: model(ids), model) if memory else no_grad(lambda: model(ids))


def mlp(width: int, device: str) -> Callable[[], object]:
    """64 tokens through a SwiGLU four times as wide inside."""
    model, x = SwiGLU(width, 4 * width).to(device), torch.randn(64, width, device=device)
    return no_grad(lambda: model(x))


def attention_memory(form: Callable[..., object], tokens: int, device: str) -> Callable[[], object]:
    """What attention keeps for the backward pass."""
    q, k, v = qkv(tokens, device, grad=True)
    return partial(kept_bytes, lambda: form(q, k, v, causal=True))


def cache_bytes(tokens: int, device: str) -> Callable[[], object]:
    """Keys and values of TINY's Thinker."""
    cfg = TINY.thinker
    cache = KVCache(cfg.layers, 1, cfg.kv_heads, tokens, cfg.d_model // cfg.heads, device)
    return lambda: cache.keys.nbytes + cache.values.nbytes


def weight_bytes(width: int, device: str) -> Callable[[], object]:
    """Of a decoder block."""
    return lambda: 4 * sum(each.numel() for each in DecoderBlock(width, 4, 4 * width, 8).parameters())


SWEEPS = (
    Sweep("attention", TIME, "tokens", (256, 512, 1024, 2048, 4096), 2,
          lambda n, device: no_grad(partial(attend, *qkv(n, device), causal=True))),
    Sweep("cached step", TIME, "tokens", (2048, 8192, 32_768, 65_536, 131_072), 1, cached_step),
    Sweep("convolutions", TIME, "mel frames", (100, 200, 400, 800), 1, convolutions),
    Sweep("RVQ encode", TIME, "frames", (250, 500, 1000, 2000, 4000), 1, rvq),
    Sweep("Thinker", TIME, "batch", (1, 2, 4, 8, 16), 1, thinker),
    Sweep("MLP", TIME, "width", (128, 256, 512, 1024), 2, mlp),
    Sweep("attention, weights kept", MEMORY, "tokens", (256, 512, 1024, 2048), 2, partial(attention_memory, attention)),
    Sweep("attention, fused", MEMORY, "tokens", (256, 512, 1024, 2048), 1, partial(attention_memory, attend)),
    Sweep("KV cache", MEMORY, "tokens", (128, 256, 512, 1024), 1, cache_bytes),
    Sweep("Thinker, activations", MEMORY, "batch", (1, 2, 4, 8), 1, partial(thinker, memory=True)),
    Sweep("decoder block, weights", MEMORY, "width", (64, 128, 256, 512), 2, weight_bytes),
)  # fmt: skip


def cases(device: str) -> list[Case]:
    """The ratio is that of the slopes: above 1, the cost grows faster than expected."""
    return [Case(f"{each.kind}: {each.label}, {each.axis} {each.sizes[-LAST]:,} → {each.sizes[-1]:,}",
                 partial(each.measure, device), lambda each=each: each.expected, "theory", 1.15, "slope")
            for each in SWEEPS]  # fmt: skip


def draw(path: Path) -> None:
    """Both kinds side by side, each line relative to its largest size, over a thin line of the expected slope."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from tinyomni.lessons.show import STYLE

    with mpl.rc_context(fname=STYLE):
        mpl.rcParams["svg.hashsalt"] = path.stem  # the same file from the same numbers
        figure = Figure(figsize=(11, 5.2), layout="constrained")
        for axes, kind, unit in zip(figure.subplots(1, 2), (TIME, MEMORY), ("ms", "MB"), strict=True):
            scale, markers = (1e3 if kind == TIME else 2**-20), iter("osD^vP")
            for each in (sweep for sweep in SWEEPS if sweep.kind == kind):
                sizes = [size / each.sizes[-1] for size in each.sizes]
                costs = [cost * scale for cost in each.costs]
                name = f"{each.label}: {slope(each.sizes[-LAST:], each.costs[-LAST:]):.2f} ({each.expected:g})"
                axes.plot(sizes, [costs[-1] * size**each.expected for size in sizes], "-", color="0.75", linewidth=1)
                axes.plot(sizes, costs, "-", marker=next(markers), label=name)
            axes.set(xscale="log", yscale="log", xlabel="size, relative to the largest", ylabel=f"{kind}, {unit}")
            axes.legend(title="slope (expected)", fontsize=8, title_fontsize=8)
        figure.suptitle("Attention alone costs the square of the length; a cache makes its step linear")
        figure.savefig(path, metadata={"Date": None})
