"""Everything that only a GPU can answer, in one run of at most ten minutes, part by part.

    python benchmarks/gpu.py                        # all parts that FILE does not hold yet; --again measures them again
    python benchmarks/gpu.py --only decoding ddp    # some of them
    python benchmarks/gpu.py --device cpu --small   # the same code in small sizes, where there is no GPU

Every part runs in a process of its own, within its own time limit, and is written to FILE (--json) as soon as it ends:
a run that was stopped, or that ran out of time, is taken up again by the same command. A GPU's times are by the clock,
between two synchronizations, the least of several.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyomni.attention import attend, merge_heads
from tinyomni.config import TINY, ThinkerConfig
from tinyomni.generation import generate
from tinyomni.rope import apply_rope
from tinyomni.stability import finite_checks
from tinyomni.thinker import ThinkerLM
from tinyomni.tokenizer import BOS, EOS

sys.path.insert(0, str(Path(__file__).parent / "speed"))
from references import NanoGPT

TOP = Path(__file__).resolve().parent.parent
BASE = ThinkerConfig(layers=12, d_model=768, heads=12, kv_heads=12, intermediate_size=2048, vocab=8192, ctx_len=1024)
"""About 100 million parameters, as many as GPT-2 small."""
SMALL = ThinkerConfig(layers=2, d_model=64, heads=2, kv_heads=2, intermediate_size=128, vocab=600, ctx_len=64)
Findings = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """Where, and how large."""

    device: str
    small: bool
    folder: Path  # of trained stages

    @property
    def cuda(self) -> bool:
        """Whether this is a GPU."""
        return self.device.startswith("cuda")

    def compile(self, function: Any) -> Any:
        """`torch.compile` without a break in the graph. In small sizes it is traced and not built: that takes long."""
        return torch.compile(function, fullgraph=True, backend="eager" if self.small else "inductor")

    def seconds(self, run: Callable[[], object], rounds: int = 5) -> float:
        """The least time of several runs, after one that warms up."""
        found = []
        for _ in range(2 if self.small else rounds + 1):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            found.append(time.perf_counter() - start)
        return min(found[1:])

    def wait(self) -> None:
        """Until the GPU has done all that was asked of it."""
        if self.cuda:
            torch.cuda.synchronize()


def matmul_peak(setup: Setup, dtype: torch.dtype = torch.bfloat16) -> float:
    """Floating-point operations per second of a large matrix product: what can really be had."""
    size = 128 if setup.small else 8192
    a, b = torch.randn(2, size, size, device=setup.device, dtype=dtype)
    return 2 * size**3 / setup.seconds(lambda: a @ b, 10)


def machine(setup: Setup) -> Findings:
    """What this is."""
    name = torch.cuda.get_device_name() if setup.cuda else "CPU"
    return {
        "device": name,
        "torch": torch.__version__,
        "CPU cores": os.cpu_count(),
        "bf16 matmul, TFLOP/s": matmul_peak(setup) / 1e12,
        "fp32 matmul, TFLOP/s": matmul_peak(setup, torch.float32) / 1e12,
    }


# ---- the test suite and the lessons ---------------------------------------------------------------------------------


def pytest(*arguments: str, **environment: str) -> Findings:
    """What pytest counts; raises where a test fails. Checks of shapes are as tests and lessons have them."""
    clean = {name: value for name, value in os.environ.items() if name != "TINYOMNI_SHAPES"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=TOP, env=clean | environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        raise RuntimeError("\n".join([*failed[:10], *lines[-1:], done.stderr[-500:]]))
    return {"pytest": lines[-1].strip("= ")}


def tests(setup: Setup) -> Findings:
    """The tests of the test suite that need this device."""
    return pytest("tests/test_devices.py", "tests/test_tracing.py", "-k", "gpu or cuda" if setup.cuda else "cpu")


def lessons(setup: Setup) -> Findings:
    """Every lesson, all outputs compared, with the GPU visible."""
    found = sorted((TOP / "notebooks").glob("*.ipynb"))
    spread = [] if setup.small else ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "loadfile"]
    return pytest("--nbval", *map(str, found[:1] if setup.small else found), *spread, OMP_NUM_THREADS="1")


# ---- decoding -------------------------------------------------------------------------------------------------------


class StaticDecoder:
    """Greedy decoding in which every step has the same shapes at the same addresses, as a CUDA graph needs.

    It writes into the memory of the model's own `KVCache`; attention always reads all of it, behind a mask. Token and
    position stay on the device, so that the CPU waits for nothing before the last step.
    """

    def __init__(self, thinker: ThinkerLM, batch: int, vocab_limit: int) -> None:
        self.thinker, self.vocab_limit, self.cache = thinker, vocab_limit, thinker.new_cache(batch)
        device = thinker.lm_head.weight.device
        self.places = torch.arange(self.cache.max_seq_len, device=device)
        self.token = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.ids = torch.zeros(batch, self.cache.max_seq_len, dtype=torch.long, device=device)

    def prefill(self, ids: Tensor) -> None:
        """The prompt, by the model itself."""
        self.cache.size = 0
        self.token.copy_(self.choose(self.thinker(ids, cache=self.cache)))
        self.position.fill_(ids.shape[1])

    def choose(self, logits: Tensor) -> Tensor:
        """The most likely id."""
        return logits[:, -1:, : self.vocab_limit].argmax(-1)

    def step(self) -> None:
        """One token further."""
        x, at, visible = (
            self.thinker.tok_emb(self.token),
            self.position,
            (self.places <= self.position)[None, None, None],
        )
        for layer, block in enumerate(self.thinker.blocks):
            attn, keys, values = block.attn, self.cache.keys[layer], self.cache.values[layer]
            q, k, v = attn.qkv(block.norm1(x))
            q, k = (apply_rope(each, attn.cos[at], attn.sin[at]) for each in (q, k))
            keys.index_copy_(2, at, k)
            values.index_copy_(2, at, v)
            x = x + attn.o_proj(merge_heads(attend(q, keys, values, mask=visible)))
            x = x + block.mlp(block.norm2(x))
        self.ids.index_copy_(1, at, self.token)
        self.token.copy_(self.choose(self.thinker.lm_head(self.thinker.norm(x))))
        self.position.add_(1)

    @torch.no_grad()
    def generate(self, ids: Tensor, new: int, step: Callable[[], object]) -> Tensor:
        """`new` ids by `step`, which is `self.step`, compiled or as a graph."""
        self.prefill(ids)
        for _ in range(new):
            step()
        return self.ids[:, ids.shape[1] : ids.shape[1] + new].clone()

    @torch.no_grad()
    def graph(self, step: Callable[[], object]) -> Callable[[], object]:
        """All kernels of a step, recorded once and started together."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            step()
        return recorded.replay


def synchronizations(setup: Setup, run: Callable[[], object]) -> int | None:
    """How often the CPU waits for the GPU."""
    if not setup.cuda:
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in seen)


def decoding(setup: Setup) -> Findings:
    """Greedy decoding, eager, compiled and as a CUDA graph."""
    cfg, prompt, new = (SMALL, 4, 8) if setup.small else (TINY.thinker, 12, 400)
    limit = min(1300, cfg.vocab)
    thinker, found = ThinkerLM(cfg).to(setup.device).eval(), {}
    with finite_checks(False):
        for batch in (2,) if setup.small else (1, 8):
            ids = torch.randint(4, limit, (batch, prompt), device=setup.device)
            ids[:, 0] = BOS
            decoder = StaticDecoder(thinker, batch, limit)
            eager = partial(generate, thinker, ids, max_new_tokens=new, eos=None, vocab_limit=limit)
            compiled = setup.compile(decoder.step)
            steps = {"fixed memory": decoder.step, "compiled": compiled}
            if setup.cuda:
                decoder.generate(ids, 3, compiled)  # compiles, before anything is recorded
                steps |= {"CUDA graph": decoder.graph(decoder.step), "compiled, CUDA graph": decoder.graph(compiled)}
            expected, slow = eager(), setup.seconds(eager, 3)
            found[f"batch {batch}: eager, tokens/s"] = batch * new / slow
            for name, step in steps.items():
                run = partial(decoder.generate, ids, new, step)
                found[f"batch {batch}: {name}, times eager"] = slow / setup.seconds(run, 3)
                found[f"batch {batch}: {name}, same tokens"] = float((run() == expected).float().mean())
            if batch < 8:
                stops = partial(generate, thinker, ids, max_new_tokens=new, eos=EOS, vocab_limit=limit)
                found["waits for the GPU: eager"] = synchronizations(setup, eager)
                found["waits for the GPU: eager, with EOS"] = synchronizations(setup, stops)
                found[f"waits for the GPU: {name}"] = synchronizations(setup, run)
    return found


# ---- a training step ------------------------------------------------------------------------------------------------


def parameters_used(model: nn.Module, table: nn.Module) -> int:
    """Those that every token is multiplied with: all, except a table in which it is looked up."""
    total = sum(each.numel() for each in model.parameters())
    return total if isinstance(model, NanoGPT) else total - sum(each.numel() for each in table.parameters())


def training_step(setup: Setup, cfg: ThinkerConfig, batch: int) -> Findings:
    """bf16, compiled, AdamW: ours beside a nanoGPT of as many weights. FLOPs as PaLM counts them (6N + 12LdT)."""
    length = cfg.ctx_len - 1
    ids = torch.randint(4, cfg.vocab, (batch, length + 1), device=setup.device)
    sizes = (cfg.vocab, cfg.d_model, cfg.layers, cfg.heads, cfg.intermediate_size * 3 // 2, cfg.ctx_len)
    peak, found = matmul_peak(setup), {}
    for name, build in (("ours", partial(ThinkerLM, cfg)), ("nanoGPT", partial(NanoGPT, *sizes))):
        torch._dynamo.reset()
        model = build().to(setup.device)
        forward = setup.compile(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=setup.cuda)

        def step(forward: Any = forward, optimizer: torch.optim.Optimizer = optimizer) -> None:
            with torch.autocast(torch.device(setup.device).type, dtype=torch.bfloat16):
                logits = forward(ids[:, :-1])
            F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()

        if setup.cuda:
            torch.cuda.reset_peak_memory_stats()
        with finite_checks(False):
            speed = batch * length / setup.seconds(step, 10)
        table = model.tok_emb if isinstance(model, ThinkerLM) else model.tokens
        used = parameters_used(model, table)
        flops = speed * (6 * used + 12 * cfg.layers * cfg.d_model * length)
        found |= {f"{name}: million parameters": sum(each.numel() for each in model.parameters()) / 1e6,
                  f"{name}: tokens/s": speed, f"{name}: share of the matmul peak": flops / peak}  # fmt: skip
        if setup.cuda:
            found[f"{name}: GB at most"] = torch.cuda.max_memory_allocated() / 2**30
        del model, forward, optimizer, step
    return found | {"ours, times nanoGPT": found["ours: tokens/s"] / found["nanoGPT: tokens/s"]}


def step_tiny(setup: Setup) -> Findings:
    """A training step of TINY's Thinker."""
    return training_step(setup, *((SMALL, 2) if setup.small else (TINY.thinker, 128)))


def step_base(setup: Setup) -> Findings:
    """A training step of a Thinker of 100 million parameters."""
    return training_step(setup, *((SMALL, 2) if setup.small else (BASE, 32)))


# ---- training -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def timed_loop(waits: list[float], validations: list[float]) -> Iterator[None]:
    """Within this block, the training loop notes how long it waits for each batch, and how long it validates."""
    from tinyomni.training import loop

    class Timed(loop.DataLoader):
        def __iter__(self) -> Iterator[Any]:
            batches = super().__iter__()
            while True:
                start = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    return
                waits.append(time.perf_counter() - start)
                yield batch

    def timed_validate(*arguments: Any, validate: Callable[..., Any] = loop.validate) -> Any:
        start = time.perf_counter()
        metrics = validate(*arguments)
        validations.append(time.perf_counter() - start)
        return metrics

    with mock.patch.object(loop, "DataLoader", Timed), mock.patch.object(loop, "validate", timed_validate):
        yield


def train_stage(setup: Setup, stage: str) -> Findings:
    """Some steps of a stage with its preset for GPUs, and how long all of them would take.

    The data are fewer than the preset's: the time until the first step is scaled up by their number.
    """
    from tinyomni.training import stages
    from tinyomni.training.log import read_log
    from tinyomni.training.recipe import RunDir
    from tinyomni.training.settings import Settings
    from tinyomni.training.train import prepare

    spec, preset = stages.get(stage), "smoke" if setup.small else "gpu"
    run_dir, whole = RunDir(setup.folder, preset), spec.presets[preset]
    shutil.rmtree(run_dir.of(stage), ignore_errors=True)  # of an earlier try
    start = time.perf_counter()
    if not isinstance(whole, Settings):
        prepare(stage, run_dir).run(run_dir)
        return {"projected, seconds": time.perf_counter() - start}
    steps = 4 if setup.small else 80
    changes = {"steps": steps, "eval_every": steps, "checkpoint_freq": steps, "device": setup.device, "warmup": 1}
    if not setup.small:
        changes |= {name: 2000 for name in ("utterances", "spoken") if hasattr(whole, name)}
    waits: list[float] = []
    validations: list[float] = []
    job = prepare(stage, run_dir, {name: str(value) for name, value in changes.items()})
    ready = time.perf_counter() - start
    with timed_loop(waits, validations):
        result = job.run(run_dir)
    assert result is not None
    clock = [entry["seconds"] for entry in read_log(run_dir.of(stage) / "log.jsonl") if "seconds" in entry]
    half = len(clock) // 2
    each = statistics.median(b - a for a, b in zip(clock[half - 1 :], clock[half:], strict=False))
    grown = max((getattr(whole, name) / value for name, value in changes.items() if name == "utterances"), default=1)
    rounds = whole.steps / whole.eval_every
    return {
        "ready after, seconds": ready, "first step, seconds": clock[0], "one step, seconds": each,
        "validation, seconds": statistics.mean(validations),
        "waiting for data": sum(waits[half:]) / (clock[-1] - clock[half - 1]),
        "GB at most": result.peak_memory / 2**30, "precision": result.precision,
        "projected, seconds": ready * grown + each * whole.steps + statistics.mean(validations) * rounds,
    }  # fmt: skip


def few_steps(setup: Setup, name: str, device: str, steps: int, **changes: Any) -> Any:
    """The stage thinker of the preset smoke: its result, and the losses of its steps."""
    from tinyomni.training.log import read_log
    from tinyomni.training.recipe import RunDir
    from tinyomni.training.train import train

    run_dir = RunDir(setup.folder / name, "smoke")
    if "RANK" not in os.environ:  # of two processes, neither may delete what the other has begun
        shutil.rmtree(run_dir.folder, ignore_errors=True)
    changes |= {"steps": steps, "eval_every": steps, "device": device} | ({"batch_size": 2} if setup.small else {})
    result = train("thinker", run_dir, {key: str(value) for key, value in changes.items()})
    entries = read_log(run_dir.of("thinker") / "log.jsonl")
    return result, [entry["loss"] for entry in entries if "loss" in entry]


DDP_STEPS = 4


def ddp_worker(setup: Setup) -> Findings:
    """One of the two processes: gloo, since NCCL wants a GPU for each."""
    torch.distributed.init_process_group("gloo")
    _, losses = few_steps(setup, "two", setup.device, DDP_STEPS)
    torch.distributed.destroy_process_group()
    return {"losses": losses}


def ddp(setup: Setup) -> Findings:
    """Two processes on one device give the losses of one."""
    device = "cuda:0" if setup.cuda else setup.device
    port = str(29_500 + os.getpid() % 1000)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0"}
    command = [sys.executable, str(Path(__file__)), "--here", "ddp-worker", "--device", device]
    command += ["--folder", str(setup.folder)] + ["--small"] * setup.small
    shutil.rmtree(setup.folder / "two", ignore_errors=True)
    start = time.perf_counter()
    both = [subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
            for rank in range(2)]  # fmt: skip
    outputs = [process.communicate()[0] for process in both]
    if any(process.returncode for process in both):
        raise RuntimeError("one of the two processes failed")
    seconds = time.perf_counter() - start
    two = json.loads(outputs[0].splitlines()[-1])["losses"]
    _, one = few_steps(setup, "one", device, DDP_STEPS)
    off = max(abs(a - b) / abs(b) for a, b in zip(two, one, strict=True))
    if off > 0.02:
        raise RuntimeError(f"two processes: losses {two}; one: {one}")
    return {"largest difference of a loss": off, "seconds": seconds}


def fp16(setup: Setup) -> Findings:
    """Training in fp16 with a GradScaler."""
    steps = 2 if setup.small else 40
    result, losses = few_steps(setup, "fp16", setup.device, steps, precision="fp16")
    return {"overflows": result.overflows, "skipped": result.skipped, "first loss": losses[0], "last loss": losses[-1]}


# ---- all parts ------------------------------------------------------------------------------------------------------

STAGES = ("tokenizer", "thinker", "vision", "audio", "codec", "talker", "omni")
PARTS: dict[str, tuple[Callable[[Setup], Findings], int]] = {
    "machine": (machine, 30), "tests": (tests, 90), "decoding": (decoding, 100), "step-tiny": (step_tiny, 60),
    "step-base": (step_base, 90), "fp16": (fp16, 40), "ddp": (ddp, 60),
    **{f"train-{stage}": (partial(train_stage, stage=stage), 60) for stage in STAGES},
    "lessons": (lessons, 240),
}  # fmt: skip
"""What each part does, and its time limit in seconds; the whole run has one of its own. The longest comes last."""
HIDDEN = {"ddp-worker": ddp_worker}
GOALS: dict[tuple[str, str], tuple[str, float]] = {
    ("decoding", "batch 1: compiled, CUDA graph, times eager"): ("≥", 5),
    ("step-tiny", "ours, times nanoGPT"): ("≥", 0.95),
    ("step-base", "ours, times nanoGPT"): ("≥", 0.95),
    **{(f"train-{stage}", "waiting for data"): ("≤", 0.05) for stage in STAGES},
    ("all", "train all, projected minutes"): ("≤", 10),
}  # fmt: skip


def run_part(name: str, args: argparse.Namespace, limit: float) -> dict[str, Any]:
    """A part in a process of its own, which is ended, with all that it has started, at its time limit."""
    command = [sys.executable, str(Path(__file__)), "--here", name, "--device", args.device]
    command += ["--folder", str(args.folder)] + ["--small"] * args.small
    environment = os.environ | {"TINYOMNI_SHAPES": "0"}
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    try:
        out, errors = process.communicate(timeout=limit)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(stop, KeyboardInterrupt):
            raise
        return {"status": f"not done in {limit:.0f} s", "seconds": limit}
    seconds = time.monotonic() - start
    if process.returncode:
        return {"status": "failed", "seconds": seconds, "error": errors[-3000:]}
    return {"status": "ok", "seconds": seconds, "found": json.loads(out.splitlines()[-1])}


def totals(done: dict[str, dict[str, Any]]) -> Findings:
    """What follows from several parts."""
    stages = [done.get(f"train-{stage}", {}).get("found", {}).get("projected, seconds") for stage in STAGES]
    return {} if None in stages else {"train all, projected minutes": sum(stages) / 60}


def against_goal(part: str, label: str, value: Any) -> str:
    """`≥ 5 met`, or nothing where there is no goal."""
    if (part, label) not in GOALS:
        return ""
    sign, goal = GOALS[part, label]
    met = value >= goal if sign == "≥" else value <= goal
    return f"{sign} {goal:g} {'met' if met else '**missed**'}"


def summary(done: dict[str, dict[str, Any]]) -> str:
    """One line for each finding, with its goal where there is one."""
    lines = ["| part | finding | value | goal |", "|---|---|--:|---|"]
    for part, entry in {**done, "all": {"status": "ok", "found": totals(done)}}.items():
        if entry["status"] != "ok":
            reason = entry.get("error", "").strip().splitlines()[-1:]
            lines.append(f"| {part} | **{entry['status']}** {' '.join(reason)} | | |")
        for label, value in entry.get("found", {}).items():
            text = f"{value:,.4g}" if isinstance(value, float) else str(value)
            lines.append(f"| {part} | {label} | {text} | {against_goal(part, label, value)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print what is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART", help="%(choices)s")
    parser.add_argument("--again", action="store_true", help="also what FILE holds already")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all parts together (default 10)")
    parser.add_argument("--json", type=Path, default=Path("runs/gpu.json"), metavar="FILE")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu-benchmark"), help="where stages are trained")
    parser.add_argument("--here", choices=[*PARTS, *HIDDEN], nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu --small tries everything without one")
    if args.here:
        setup = Setup(args.device, args.small, args.folder)
        if args.small:  # validation would take longer than all the rest
            from tinyomni.training.stages import thinker

            thinker.VALIDATION_LINES = 8
        for name in args.here:
            torch.manual_seed(0)
            run = HIDDEN[name] if name in HIDDEN else PARTS[name][0]
            print(json.dumps(run(setup)), flush=True)
        return
    sizes = {"device": args.device, "small": args.small}
    kept = json.loads(args.json.read_text(encoding="utf-8")) if args.json.is_file() else {**sizes, "parts": {}}
    if {name: kept[name] for name in sizes} != sizes:
        parser.error(f"{args.json} holds what another device, or other sizes, gave; name another file with --json")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    done, end = kept["parts"], time.monotonic() + 60 * args.minutes
    for name in args.only:
        left = end - time.monotonic()
        if left < 5 or (not args.again and done.get(name, {}).get("status") == "ok"):
            continue
        done[name] = run_part(name, args, min(PARTS[name][1], left))
        print(f"{name}: {done[name]['status']}, {done[name]['seconds']:.0f} s", flush=True)
        args.json.write_text(json.dumps(kept, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"\n{summary(done)}")
    if missing := [name for name in args.only if name not in done]:
        print(f"\nnot begun: {', '.join(missing)}. The same command goes on with them.")
    sys.exit(any(done.get(name, {}).get("status") != "ok" for name in args.only))


if __name__ == "__main__":
    main()
