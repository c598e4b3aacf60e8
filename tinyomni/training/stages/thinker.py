"""Stage thinker: next-token prediction on lines of text, each between BOS and EOS.

    ids (batch, tokens) → logits for every token but the first → cross-entropy, padding left out

In the closed world the best possible loss is known: the entropy of its grammar (`world.surprisal`). Validation there
measures by how much the loss exceeds it, on lines that training never had.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from tinyomni.config import TINY, ThinkerConfig
from tinyomni.data import world
from tinyomni.data.custom import train_validation_split
from tinyomni.data.datasets import Encode, Lines, pad
from tinyomni.data.manifests import TEXT
from tinyomni.thinker import ThinkerLM
from tinyomni.tokenizer import BOS, EOS, PAD, BPETokenizer
from tinyomni.training.recipe import Job, RunDir
from tinyomni.training.settings import Settings
from tinyomni.training.stage import Stage
from tinyomni.training.stages import StageSpec, register

PRESETS = {
    "smoke": Settings(steps=20, batch_size=16, lr=1e-3, warmup=5, eval_every=20),
    # AdamW: Muon memorizes the training lines, and is worse on others (lesson 13)
    "laptop": Settings(steps=1600, batch_size=64, lr=2e-3, warmup=60, eval_every=200),
    "quick": Settings(steps=200, batch_size=64, lr=2e-3, warmup=20, eval_every=100),
    "gpu": Settings(steps=6000, batch_size=256, lr=1e-3, warmup=200, eval_every=500, num_workers=4),
}
PRESETS["shipped"] = PRESETS["laptop"]
VALIDATION_LINES = 500  # of the closed world


def next_token_loss(
    logits: Float[Tensor, "batch tokens vocab"],
    ids: Int[Tensor, "batch tokens"],
    loss_mask: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, ""]:
    """The mean cross-entropy, in nats, of the tokens that `loss_mask` selects (by default all but padding).

    Logits at one position are about the next: the first token is never a target, the last logits are not used.
    """
    mask = ids != PAD if loss_mask is None else loss_mask
    labels = ids.masked_fill(~mask, -100)[:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


class ThinkerStage(Stage):
    """The Thinker as a language model. `held_out` are lines to validate on, by default those of the closed world."""

    name = "thinker"

    def __init__(
        self, encode: Encode, cfg: ThinkerConfig = TINY.thinker, held_out: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.thinker, self.encode, self.held_out = ThinkerLM(cfg), encode, held_out

    def forward(self, ids: Int[Tensor, "batch tokens"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The loss of a batch."""
        return next_token_loss(self.thinker(ids), ids), {}

    def weight(self, ids: Int[Tensor, "batch tokens"]) -> float:
        """Tokens that are predicted."""
        return float((ids[:, 1:] != PAD).sum())

    def validate(self) -> dict[str, float]:
        """The loss on held-out lines; in the closed world, also the part by which it exceeds the entropy."""
        lines = self.held_out
        if lines is None:
            lines = [world.draw_line("validation", index) for index in range(VALIDATION_LINES)]
        nats, tokens = line_nats(self.thinker, self.encode, lines)
        metrics = {"loss": float(nats.sum() / tokens.sum())}
        if self.held_out is None:
            entropy = torch.tensor([world.surprisal("validation")[line] for line in lines])
            metrics["excess_loss"] = float(nats.sum() / entropy.sum() - 1)
        return metrics


def collate(lines: Sequence[str], encode: Encode) -> Int[Tensor, "batch tokens"]:
    """Lines → ids between BOS and EOS, padded with PAD."""
    return pad([torch.tensor([BOS, *encode(line), EOS]) for line in lines], PAD)[0]


@torch.no_grad()
def line_nats(
    thinker: ThinkerLM, encode: Encode, lines: Sequence[str]
) -> tuple[Float[Tensor, "lines"], Int[Tensor, "lines"]]:
    """Of each line: its cross-entropy in nats, and its tokens, EOS among them."""
    found = []
    for start in range(0, len(lines), 100):
        ids = collate(lines[start : start + 100], encode).to(thinker.lm_head.weight.device)
        log_p = thinker(ids).float().log_softmax(dim=-1)[:, :-1]
        each = -log_p.gather(-1, ids[:, 1:, None]).squeeze(-1) * (ids[:, 1:] != PAD)
        found.append(each.sum(dim=1).cpu())
    return torch.cat(found), torch.tensor([len(encode(line)) + 1 for line in lines])


def build(run_dir: RunDir, settings: Settings) -> Job:
    """Lines of the closed world, or of `--data`: a text file or a folder of them."""
    encode = run_dir.tokenizer().encode
    train: Dataset[Any]
    held_out: list[str] | None = None
    if run_dir.data is None:
        train = Lines("train", settings.steps * settings.batch_size)
    else:
        train, validation = train_validation_split(run_dir.custom_data(TEXT))
        held_out = [str(validation[index]) for index in range(len(validation))]
    stage = ThinkerStage(encode, held_out=held_out)
    return Job(stage, train, partial(collate, encode=encode), settings)


SPEC = register(
    StageSpec("thinker", PRESETS, build, requires=("tokenizer",), untrained=lambda: ThinkerStage(BPETokenizer().encode))
)
