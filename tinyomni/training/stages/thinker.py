"""The Thinker learns to read: next-token prediction on lines of text, each between BOS and EOS.

    ids (batch, tokens) → logits for every token but the first → cross-entropy, padding left out

How good it can get is known: the closed world's grammar has an entropy, which no model's loss goes below
(`world.surprise`). Validation counts how far above it the loss lies, on lines that were never seen.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tinyomni.config import TINY, ThinkerConfig
from tinyomni.data import world
from tinyomni.data.datasets import Encode, Lines, pad
from tinyomni.thinker import ThinkerLM
from tinyomni.tokenizer import BOS, EOS, PAD
from tinyomni.training.engine import Settings, Stage
from tinyomni.training.recipe import Job, Place

SETTINGS = {
    "smoke": Settings(steps=20, batch_size=16, lr=1e-3, warmup=5, validate_freq=20),
    # AdamW: Muon learns the training lines by heart, and is worse on others (lesson 13)
    "laptop": Settings(steps=1600, batch_size=64, lr=2e-3, warmup=60, validate_freq=200),
    "gpu": Settings(steps=6000, batch_size=256, lr=1e-3, warmup=200, validate_freq=500, workers=4),
}


def next_token_loss(
    logits: Float[Tensor, "batch tokens vocab"],
    ids: Int[Tensor, "batch tokens"],
    targets: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, ""]:
    """The mean surprise, in nats, of those tokens that are `targets` (by default all but padding).

    Logits at one position are about the next: the first token is never a target, the last logits say nothing.
    """
    wanted = ids != PAD if targets is None else targets
    labels = ids.masked_fill(~wanted, -100)[:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


class ThinkerStage(Stage):
    """The Thinker, reading."""

    name = "thinker"

    def __init__(self, encode: Encode, cfg: ThinkerConfig = TINY.thinker) -> None:
        super().__init__()
        self.thinker, self.encode = ThinkerLM(cfg), encode

    def forward(self, ids: Int[Tensor, "batch tokens"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The loss of a batch."""
        return next_token_loss(self.thinker(ids), ids), {}

    def weight(self, ids: Int[Tensor, "batch tokens"]) -> float:
        """Tokens that are predicted."""
        return float((ids[:, 1:] != PAD).sum())

    def validate(self) -> dict[str, float]:
        """On 500 lines of the validation split."""
        nats, floors, tokens = surprises(
            self.thinker, self.encode, [world.draw_line("validation", i) for i in range(500)]
        )
        return {"loss": float(nats.sum() / tokens.sum()), "above_floor": float(nats.sum() / floors.sum() - 1)}


def collate(lines: Sequence[str], encode: Encode) -> Int[Tensor, "batch tokens"]:
    """Lines → ids between BOS and EOS, filled up with PAD."""
    return pad([torch.tensor([BOS, *encode(line), EOS]) for line in lines], PAD)[0]


@torch.no_grad()
def surprises(
    thinker: ThinkerLM, encode: Encode, lines: Sequence[str], split: str = "validation"
) -> tuple[Float[Tensor, "lines"], Float[Tensor, "lines"], Int[Tensor, "lines"]]:
    """Of each line: nats by the model, nats by who knows the grammar, and tokens."""
    found = []
    for start in range(0, len(lines), 100):
        ids = collate(lines[start : start + 100], encode).to(thinker.lm_head.weight.device)
        log_p = thinker(ids).float().log_softmax(dim=-1)[:, :-1]
        each = -log_p.gather(-1, ids[:, 1:, None]).squeeze(-1) * (ids[:, 1:] != PAD)
        found.append(each.sum(dim=1).cpu())
    floors = torch.tensor([world.surprise(split)[line] for line in lines])
    return torch.cat(found), floors, torch.tensor([len(encode(line)) + 1 for line in lines])


def job(place: Place) -> Job:
    """Lines of the closed world, or of `--data`: a text file or a folder of them."""
    settings, encode = place.settings(SETTINGS), place.tokenizer().encode
    count = settings.steps * settings.batch_size
    texts = Lines("train", count) if place.data is None else place.own("lines of text")
    return Job(ThinkerStage(encode), texts, partial(collate, encode=encode), settings)
