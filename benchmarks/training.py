"""What a training step costs: each stage beside a plain model of the same size, as ratios.

    python benchmarks/training.py [--device cuda]

One step is forward, backward and the optimizer's step, on random data of the sizes that the stage has with its
`laptop` preset, and with that preset's optimizer; the reference has AdamW. It gets the same data where it can: Hugging
Face's Llama of the Thinker's, or the Talker's, sizes on as many positions; `torch.nn.TransformerEncoder` of the
encoder's sizes on as many tokens, behind the same convolutions. Memory is the peak that a process of its own reaches
above what it holds before the first step (on a GPU, what torch counts). The codec's stage is left out: its step is one
small matrix product.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyomni.audio import AudioEncoderTiny, CTCHead, MelFrontend
from tinyomni.config import TINY
from tinyomni.talker import TalkerTiny, previous
from tinyomni.thinker import ThinkerLM
from tinyomni.training import stages
from tinyomni.training.optim import Muon
from tinyomni.training.stages.thinker import next_token_loss
from tinyomni.vision import ViTTiny

sys.path.insert(0, str(Path(__file__).parent / "speed"))
from references import encoder, llama

Step = tuple[nn.Module, Callable[[], Tensor], int, int]  # model, loss, samples, tokens


def thinker(ours: bool, device: str) -> Step:
    """64 lines of 12 tokens."""
    cfg, ids = TINY.thinker, torch.randint(4, 1300, (64, 12), device=device)
    model = ThinkerLM() if ours else llama(cfg.vocab, cfg.d_model, cfg.layers, cfg.heads, cfg.intermediate_size)
    return model, lambda: next_token_loss(model(ids) if ours else model(ids).logits, ids), 64, ids.numel()


def vision(ours: bool, device: str) -> Step:
    """16 images."""
    cfg, images = TINY.vision, torch.rand(16, 3, 224, 224, device=device)
    model: nn.Module = ViTTiny() if ours else encoder(cfg.vision_dim, cfg.layers, cfg.heads, cfg.intermediate_size)
    if ours:
        return model, lambda: model(images).square().mean(), 16, 16 * 197
    model.patches = nn.Conv2d(3, cfg.vision_dim, cfg.patch, cfg.patch)

    def loss() -> Tensor:
        tokens = model.patches(images).flatten(2).transpose(1, 2)
        return model(F.pad(tokens, (0, 0, 1, 0)))[:, 0].square().mean()

    return model, loss, 16, 16 * 197


def audio(ours: bool, device: str) -> Step:
    """16 utterances of 2 s, from the spectrogram on, with CTC over 30 characters each."""
    cfg = TINY.audio
    mel = MelFrontend()(torch.randn(16, 32_000) * 0.1).to(device)
    targets = torch.randint(1, 90, (16, 30), device=device)
    ours_model, head = AudioEncoderTiny(), CTCHead()
    body: nn.Module = ours_model if ours else encoder(cfg.audio_dim, cfg.layers, cfg.heads, cfg.intermediate_size)
    model = nn.ModuleList([body, head, *([] if ours else [ours_model.down, ours_model.proj])])

    def loss() -> Tensor:
        x = body(mel) if ours else body(ours_model.proj(ours_model.flatten(ours_model.down(mel[:, None]))))
        log_probs = head(x).transpose(0, 1)
        return F.ctc_loss(log_probs, targets, torch.full((16,), len(log_probs)), torch.full((16,), 30))

    return model, loss, 16, 16 * 50


def talker(ours: bool, device: str) -> Step:
    """32 texts of 12 text tokens and 25 frames."""
    cfg, text = TINY.talker, torch.randint(4, 1300, (32, 12), device=device)
    codes = torch.randint(0, cfg.codebook_size, (32, 25, 2), device=device)
    if ours:
        model: nn.Module = TalkerTiny()

        def loss() -> Tensor:
            base, res = model(previous(codes), text)
            return F.cross_entropy(base.flatten(0, 1), codes[..., 0].flatten()) + F.cross_entropy(
                res.flatten(0, 1), codes[..., 1].flatten()
            )

        return model, loss, 32, 32 * 37
    model = llama(cfg.vocab, cfg.talker_dim, cfg.layers, cfg.heads, cfg.intermediate_size)
    model.lm_head = nn.Linear(cfg.talker_dim, 2 * cfg.codebook_size, bias=False)
    ids = torch.cat([text, codes[..., 0]], dim=1)

    def reference_loss() -> Tensor:
        logits = model(ids).logits[:, 12:].reshape(32 * 25 * 2, cfg.codebook_size)
        return F.cross_entropy(logits, codes.flatten())

    return model, reference_loss, 32, 32 * 37


def omni(ours: bool, device: str) -> Step:
    """32 examples of an image, 1.5 s of audio and 12 text tokens, as the frozen encoders' features."""
    cfg, ids = TINY.thinker, torch.randint(4, 1300, (32, 12), device=device)
    features = torch.randn(32, 39, TINY.audio.audio_dim, device=device)
    proj = nn.Linear(TINY.audio.audio_dim, cfg.d_model)
    body: nn.Module = (
        ThinkerLM() if ours else llama(cfg.vocab, cfg.d_model, cfg.layers, cfg.heads, cfg.intermediate_size)
    )
    table = body.tok_emb if ours else body.get_input_embeddings()

    def loss() -> Tensor:
        x = torch.cat([proj(features), table(ids)], dim=1)
        logits = body(embeddings=x) if ours else body(inputs_embeds=x).logits
        return next_token_loss(logits[:, 39:], ids)

    return nn.ModuleList([body, proj]), loss, 32, 32 * 51


STAGES: dict[str, Callable[[bool, str], Step]] = {
    "thinker": thinker, "vision": vision, "audio": audio, "talker": talker, "omni": omni,
}  # fmt: skip


def measure(stage: str, ours: bool, device: str, seconds: float) -> dict[str, float]:
    """Seconds of a step (the least), samples/s, tokens/s, MB above the start."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, loss, samples, tokens = STAGES[stage](ours, device)
    model.to(device)
    settings = dataclasses.replace(stages.get(stage).presets["laptop"], lr=1e-4)
    muon = ours and settings.optimizer == "muon"
    optimizer = Muon(model, settings) if muon else torch.optim.AdamW(model.parameters(), lr=1e-4)
    cuda = device.startswith("cuda")

    def peak() -> float:
        return (torch.cuda.max_memory_allocated() if cuda
                else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**20  # fmt: skip

    before, times = peak(), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter() if cuda else time.thread_time()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() if cuda else time.thread_time()) - start)
    least = min(times[1:])
    return {"seconds": least, "samples/s": samples / least, "tokens/s": tokens / least, "MB": peak() - before}


def main() -> None:
    """Print the table; every measurement in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each of the measurements")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--one", nargs=2, metavar=("STAGE", "WHO"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.one[1] == "ours", args.device, args.seconds)))
        return
    found: dict[str, Any] = {}
    print(f"{'':10}{'s/step':>9}{'samples/s':>11}{'tokens/s':>10}{'MB':>7}{'time ratio':>12}{'memory ratio':>14}")
    for stage in STAGES:
        rows = {}
        for who in ("reference", "ours"):
            command = [sys.executable, __file__, "--device", args.device, "--seconds", str(args.seconds)]
            done = subprocess.run([*command, "--one", stage, who], capture_output=True, text=True, check=True)
            rows[who] = json.loads(done.stdout.splitlines()[-1])
        ours, other = rows["ours"], rows["reference"]
        found[stage] = rows | {"time": ours["seconds"] / other["seconds"], "memory": ours["MB"] / other["MB"]}
        print(f"{stage:10}{ours['seconds']:9.3f}{ours['samples/s']:11.0f}{ours['tokens/s']:10.0f}{ours['MB']:7.0f}"
              f"{found[stage]['time']:12.2f}{found[stage]['memory']:14.2f}")  # fmt: skip
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
