"""What watching a model costs: this tracer beside torchinfo, torchlens and torchview, as multiples of the bare forward.

    python benchmarks/tracer.py
    python benchmarks/tracer.py --generation  # the Llama alone

Thread CPU time of one forward pass (the least of several) of a Thinker: 4 layers, d_model 256; and of a generation of
300 steps by a Llama of transformers, whose modules have no annotations. One torch thread, so that the work of other
processors does not blur it. What a trace learns goes with it, so that every trace meets every shape for the first time.
"""

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinyomni import ThinkerLM, finite_checks, trace


def least(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """The least thread CPU time of each, taken in turn so that the machine's unrest meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["bare"]) < 3:
        for name, run in runs.items():
            start = time.thread_time()
            run()
            times[name].append(time.thread_time() - start)
    return {name: min(each) for name, each in times.items()}


def multiples(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """The least times as multiples of the bare run's, and the bare run's own."""
    times = least(runs, seconds)
    return {"bare, ms": times["bare"] * 1e3} | {name: t / times["bare"] for name, t in times.items() if name != "bare"}


def own(model: ThinkerLM, ids: Tensor) -> dict[str, Callable[[], Any]]:
    """This tracer, and the bare forward pass twice: how far 1 is from 1 on this machine."""

    def bare() -> None:
        model(ids)

    def traced() -> None:
        with trace("forward"):
            model(ids)

    return {"bare": bare, "traced": traced, "bare again": bare}


def tools(model: ThinkerLM, ids: Tensor) -> dict[str, Callable[[], Any]]:
    """The others, each as its documentation shows it."""
    import torchlens
    from torchinfo import summary
    from torchview import draw_graph

    return {
        "bare": lambda: model(ids),
        "torchinfo": lambda: summary(model, input_data=ids, verbose=0),
        "torchlens": lambda: torchlens.trace(model, ids),
        "torchview": lambda: draw_graph(model, input_data=ids, device="cpu"),
    }


def generation(seconds: float) -> dict[str, float]:
    """300 cached decoding steps of a small Llama of transformers."""
    import transformers

    config = transformers.LlamaConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=5000, max_position_embeddings=512)  # fmt: skip
    model, ids = transformers.LlamaForCausalLM(config).eval(), torch.ones(1, 6, dtype=torch.long)
    settings = {"max_new_tokens": 300, "min_new_tokens": 300, "do_sample": False, "pad_token_id": 0}

    def bare() -> None:
        model.generate(ids, **settings)

    def traced() -> None:
        with trace("generate"):
            bare()

    return multiples({"bare": bare, "traced": traced, "bare again": bare}, seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each measurement")
    parser.add_argument("--quick", action="store_true", help="without the generation")
    parser.add_argument("--generation", action="store_true", help="nothing else")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ThinkerLM().eval()
    found: dict[str, dict[str, float]] = {}
    with torch.no_grad(), finite_checks(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the other tools' own
        sizes = () if args.generation else ((1, 6), (16, 256))
        given = {(batch, tokens): torch.randint(0, 1000, (batch, tokens)) for batch, tokens in sizes}
        for shape, ids in given.items():
            found[str(shape)] = multiples(own(model, ids), args.seconds)
        if not args.quick:
            found["Llama ×300"] = generation(args.seconds)
        # last: torchlens and torchview wrap functions of torch, and leave them so
        missing = [name for name in ("torchinfo", "torchlens", "torchview") if importlib.util.find_spec(name) is None]
        for shape, ids in given.items() if not missing else ():
            found[str(shape)] = multiples(tools(model, ids), args.seconds) | found[str(shape)]
    if missing and given:
        print(f"without other tools, since {', '.join(missing)} cannot be imported: pip install -e '.[bench]'")
    print(f"{'':18}" + "".join(f"{shape:>12}" for shape in found))
    for name in next(iter(found.values())):
        cells = (f"{row[name]:12.2f}" if name in row else f"{'':12}" for row in found.values())
        print(f"{name:18}" + "".join(cells))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
