"""Generation: one token at a time, each fed back, with a KV cache so that nothing is computed twice.

    prompt (batch, tokens) → logits of the last token → sample → ids (batch,) → fed back alone → …

Sources: Holtzman et al., The Curious Case of Neural Text Degeneration (2019) for top-p; Fan et al. (2018) for top-k.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, TypedDict, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinyomni.errors import InputError
from tinyomni.shapes import ShapeError, describe
from tinyomni.thinker import ThinkerLM
from tinyomni.tokenizer import BOS, EOS, PAD

LEAST_TEMPERATURE = 1e-30  # below it, logits divided by it overflow float32


class Step(NamedTuple):
    """One step of generation: the new ids, and their log-probabilities as the model gave them, before temperature."""

    ids: Int[Tensor, "batch"]
    log_probs: Float[Tensor, "batch"]


class Sampling(TypedDict, total=False):
    """How tokens are chosen: the arguments of `stream`."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int


def sample(
    logits: Float[Tensor, "batch vocab"],
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "batch"]:
    """Choose one id per row.

    Temperature 0 is greedy. `top_k` keeps the k most likely ids; `top_p` keeps the fewest whose probability reaches p.
    """
    if not (isinstance(temperature, (int, float)) and 0 <= temperature < math.inf):
        raise InputError(f"sample: temperature must be a finite number, at least 0 (greedy), got {temperature!r}")
    if top_k is not None and not (isinstance(top_k, int) and top_k >= 1):
        raise InputError(f"sample: top_k must be an integer, at least 1, got {top_k!r}")
    if top_p is not None and not (isinstance(top_p, (int, float)) and 0 < top_p <= 1):
        raise InputError(f"sample: top_p must lie in (0, 1], got {top_p!r}")
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / max(temperature, LEAST_TEMPERATURE)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None:
        ordered, order = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(dim=-1)
        # an id stays if those before it have not yet reached p: the most likely one always stays
        ordered = ordered.masked_fill(probability.cumsum(dim=-1) - probability >= top_p, -torch.inf)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, order, ordered)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(-1)


def check_prompt(thinker: ThinkerLM, ids: Int[Tensor, "batch tokens"]) -> None:
    """Refuse ids outside the token table, a prompt without BOS at its start, and one that is padded on the right."""
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= thinker.cfg.vocab:
        raise InputError(
            f"generate: expected ids in 0 … {thinker.cfg.vocab - 1}, got {low} … {high}. "
            "Were they made by another tokenizer?"
        )
    if bool((ids[:, 0] != BOS).any()):
        raise InputError(
            f"generate: expected a prompt that starts with BOS (id {BOS}), got {int(ids[0, 0])}. "
            f"Use [{BOS}] + tokenizer.encode(text)."
        )
    if bool((padded := ids[:, -1] == PAD).any()):
        raise InputError(
            f"generate: expected prompts of equal length, got padding (id {PAD}) "
            f"at the end of {int(padded.sum())} of {len(ids)} rows. The new tokens would follow the padding. "
            "Generate one row at a time, or group the rows by length."
        )


def stream(
    thinker: ThinkerLM,
    ids: Int[Tensor, "batch tokens"] | None = None,
    *,
    embeddings: Float[Tensor, "batch tokens d_model"] | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos: int | None = EOS,
    seed: int = 0,
    vocab_limit: int | None = None,
) -> Iterator[Step]:
    """Yield the new ids step by step; a sequence that has ended is filled with `eos`, of log-probability 0.

    `eos=None` never stops early. `vocab_limit` forbids ids from there on: rows of the table that no text piece uses.
    Raises InputError if prompt + max_new_tokens > ctx_len, for an id outside the table, for ids without BOS, and for
    rows that end in PAD: `embeddings` hold no PAD, their rows must be of equal length.
    """
    prompt = embeddings if ids is None else ids
    if prompt is None or (ids is not None and embeddings is not None):
        raise TypeError(f"generate: expected either ids or embeddings, got {'neither' if prompt is None else 'both'}")
    if prompt.ndim < 2 or prompt.shape[1] == 0:
        raise ShapeError(
            f"generate: expected a prompt (batch, tokens, …) with at least one token, got {describe(prompt)}. "
            "Is the batch axis missing? `prompt.unsqueeze(0)`"
        )
    batch, tokens = prompt.shape[:2]
    if not (isinstance(max_new_tokens, int) and max_new_tokens >= 1):
        raise InputError(f"generate: max_new_tokens must be an integer, at least 1, got {max_new_tokens!r}")
    if tokens + max_new_tokens > thinker.cfg.ctx_len:
        raise InputError(
            f"generate: {tokens} prompt tokens + {max_new_tokens} new tokens = {tokens + max_new_tokens} > "
            f"ctx_len = {thinker.cfg.ctx_len}. Shorten the prompt or ask for fewer new tokens."
        )
    if ids is not None and not ids.is_floating_point():
        check_prompt(thinker, ids)

    generator = torch.Generator(prompt.device)
    try:
        generator.manual_seed(seed)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"generate: seed must be an integer of at most 64 bits, got {seed!r}") from error
    cache = thinker.new_cache(batch)
    ended = torch.zeros(batch, dtype=torch.bool, device=prompt.device)
    with torch.no_grad():
        logits = thinker(ids, embeddings=embeddings, cache=cache)[:, -1]
    for step in range(max_new_tokens):
        if vocab_limit is not None:
            logits[:, vocab_limit:] = -torch.inf
        new = sample(logits, temperature, top_k, top_p, generator)
        log_probs = logits.float().log_softmax(dim=-1).gather(-1, new[:, None]).squeeze(-1)
        if eos is not None:
            new, log_probs = torch.where(ended, eos, new), torch.where(ended, 0.0, log_probs)
            ended = ended | (new == eos)
        yield Step(new, log_probs)
        if step + 1 == max_new_tokens or (eos is not None and bool(ended.all())):
            return
        with torch.no_grad():
            logits = thinker(new[:, None], cache=cache)[:, -1]


def generate(
    thinker: ThinkerLM,
    ids: Int[Tensor, "batch tokens"] | None = None,
    *,
    embeddings: Float[Tensor, "batch tokens d_model"] | None = None,
    eos: int | None = EOS,
    vocab_limit: int | None = None,
    **sampling: Unpack[Sampling],
) -> Int[Tensor, "batch new_tokens"]:
    """The new ids of `stream`, all together: (batch, new_tokens), new_tokens ≤ max_new_tokens."""
    steps = stream(thinker, ids, embeddings=embeddings, eos=eos, vocab_limit=vocab_limit, **sampling)
    return torch.stack([step.ids for step in steps], dim=1)
