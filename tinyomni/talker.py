"""The Talker: reads text, and writes the codes of speech, one frame of 80 ms after the other.

    text (batch, text_tokens), previous codes (batch, frames, 2) → base and residual logits (batch, frames, 128) each

The text comes first, the codes behind it, and every code attends to both. Each codebook has its own embedding table:
one table, summed, could not tell (45, 12) from (12, 45). A third output is the end of speech.

Sources: Wang et al., VALL-E (2023) for speech as a language of codes; Xu et al., Qwen2.5-Omni (2025) for Thinker and
Talker.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinyomni.attention import KVCache
from tinyomni.config import TINY, TalkerConfig
from tinyomni.errors import InputError
from tinyomni.fast_step import fast_step
from tinyomni.layers import DecoderBlock, RMSNorm, init_weights
from tinyomni.shapes import ShapeError, expect
from tinyomni.stability import assert_finite
from tinyomni.tokenizer import PAD

BaseLogit = Float[Tensor, "batch frames codebook_size"]
ResLogit = Float[Tensor, "batch frames codebook_size"]
EndLogit = Float[Tensor, "batch frames"]


def max_frames(text_tokens: int) -> int:
    """The hard cap of frames for a text: 30 a token, at least 50 (4 s), at most 1000 (80 s)."""
    return max(50, min(1000, 30 * text_tokens))


def previous(codes: Int[Tensor, "batch frames codebooks"]) -> Int[Tensor, "batch frames codebooks"]:
    """The Talker's input: the codes shifted right by one, prev[t] = codes[t - 1], with zeros at the start.

    The labels are `codes` themselves. Shifting both would train the Talker two frames ahead.
    """
    return torch.cat([torch.zeros_like(codes[:, :1]), codes[:, :-1]], dim=1)


def voice_token(voice: int, vocab: int = TINY.talker.vocab) -> list[int]:
    """The ids in front of a text that ask for a voice: none for the first voice, else one that no text piece uses.

    They are the last rows of the text table.
    """
    return [vocab - voice] if voice else []


def align_right(text: Int[Tensor, "batch text_tokens"]) -> Int[Tensor, "batch text_tokens"]:
    """Padding at the right → padding at the left, so that codes follow the text without a gap."""
    lengths = (text != PAD).sum(dim=1, keepdim=True)
    return text.gather(1, (torch.arange(text.shape[1], device=text.device) + lengths) % text.shape[1])


class TalkerTiny(nn.Module):
    """`talker(codes)` or `talker(codes, text=ids)` → (base_logit, res_logit); `with_end=True` adds end of speech."""

    def __init__(self, cfg: TalkerConfig = TINY.talker) -> None:
        super().__init__()
        self.cfg = cfg
        self.max_seq_len = cfg.max_text + 1 + cfg.max_frames
        self.code_emb = nn.ModuleList(nn.Embedding(cfg.codebook_size, cfg.talker_dim) for _ in range(cfg.codebooks))
        self.text_emb = nn.Embedding(cfg.vocab, cfg.talker_dim)
        self.blocks = nn.ModuleList(
            DecoderBlock(cfg.talker_dim, cfg.heads, cfg.intermediate_size, self.max_seq_len, theta=cfg.rope_theta)
            for _ in range(cfg.layers)
        )
        self.norm = RMSNorm(cfg.talker_dim)
        self.base = nn.Linear(cfg.talker_dim, cfg.codebook_size, bias=False)
        self.res = nn.Linear(cfg.talker_dim, cfg.codebook_size, bias=False)
        self.end = nn.Linear(cfg.talker_dim, 1)
        init_weights(self, cfg.layers)

    def new_cache(self, batch: int = 1) -> KVCache:
        """An empty KV cache for the text, the start frame and up to `max_frames` frames."""
        cfg, weight = self.cfg, self.base.weight
        return KVCache(
            cfg.layers,
            batch,
            cfg.heads,
            self.max_seq_len,
            cfg.talker_dim // cfg.heads,
            device=weight.device,
            dtype=weight.dtype,
        )

    def embed_codes(self, codes: Int[Tensor, "batch frames codebooks"]) -> Float[Tensor, "batch frames talker_dim"]:
        """One vector for each frame: the sum of the codebooks' embeddings."""
        expect("TalkerTiny", "codes", codes, "batch frames codebooks", codebooks=self.cfg.codebooks, integer=True)
        try:
            return torch.stack([table(codes[..., i]) for i, table in enumerate(self.code_emb)]).sum(dim=0)
        except IndexError as error:
            raise IndexError(
                f"TalkerTiny: expected codes in 0 … {self.cfg.codebook_size - 1}, "
                f"got {int(codes.min())} … {int(codes.max())}"
            ) from error

    def embed_text(self, text: Int[Tensor, "batch text_tokens"]) -> Float[Tensor, "batch text_tokens talker_dim"]:
        """One vector for each text token."""
        expect("TalkerTiny", "text", text, "batch text_tokens", integer=True)
        try:
            return self.text_emb(text)
        except IndexError as error:
            raise IndexError(
                f"TalkerTiny: expected text ids in 0 … {self.cfg.vocab - 1}, got {int(text.min())} … {int(text.max())}"
            ) from error

    def forward(
        self,
        codes: Int[Tensor, "batch frames codebooks"],
        text: Int[Tensor, "batch text_tokens"] | None = None,
        cache: KVCache | None = None,
        with_end: bool = False,
    ) -> tuple[BaseLogit, ResLogit] | tuple[BaseLogit, ResLogit, EndLogit]:
        """Logits of the base code and of the residual code of each frame: exactly (base_logit, res_logit).

        `with_end` adds a third, of the speech being over *before* this frame. `codes` are the previous ones
        (`previous(codes)`), `text` ids without BOS, padded at the right with 0. With a cache, the text goes in with the
        first call; later calls give new frames only.

        Raises ShapeError for a wrong axis or dtype, IndexError for an id or code outside its table, ValueError for more
        positions than there are, RuntimeError for NaN or infinite logits.
        """
        x = self.embed_codes(codes)
        batch, frames, _ = x.shape
        past = cache.size if cache is not None else 0
        key_padding_mask: Bool[Tensor, "batch keys"] | None = cache.key_padding_mask if cache is not None else None
        valid = torch.ones_like(codes[..., 0], dtype=torch.bool)
        if text is not None:
            if past:
                raise ValueError("TalkerTiny: expected the text with the first call only; the cache already has one")
            if text.shape[0] != batch:
                raise ShapeError(f"TalkerTiny: expected as many texts as rows of codes, got {len(text)} and {batch}")
            text = align_right(text)
            x = torch.cat([self.embed_text(text), x], dim=1)
            key_padding_mask = torch.cat([text != PAD, valid], dim=1)
        elif key_padding_mask is not None:
            key_padding_mask = torch.cat([key_padding_mask, valid], dim=1)
        tokens = x.shape[1]
        if past + tokens > self.max_seq_len:
            raise InputError(
                f"TalkerTiny: {past} positions before + {tokens} now = {past + tokens} > {self.max_seq_len} "
                "(max_text + start + max_frames). Speak the text in parts."
            )
        if cache is not None:
            cache.check_room("TalkerTiny", batch, tokens)
            cache.key_padding_mask = key_padding_mask
        mask = key_padding_mask[:, None, None, :] if key_padding_mask is not None else None
        if cache is not None and (step := fast_step(self, x, cache)):
            x = step(x, cache, mask)
        else:
            for layer, block in enumerate(self.blocks):
                x = block(x, cache=cache, layer=layer, mask=mask)
        if cache is not None:
            cache.advance(tokens)
        x = self.norm(x[:, tokens - frames :])
        base, res = self.base(x), self.res(x)
        if not with_end:
            assert_finite("TalkerTiny", base=base, residual=res)
            return base, res
        end = self.end(x).squeeze(-1)
        assert_finite("TalkerTiny", base=base, residual=res, end=end)
        return base, res, end


def next_frame(
    talker: TalkerTiny,
    codes: Int[Tensor, "batch frames codebooks"],
    text: Int[Tensor, "batch text_tokens"] | None,
    cache: KVCache,
) -> tuple[Int[Tensor, "batch frames+1 codebooks"], Float[Tensor, "batch"]]:
    """Append the likeliest next frame; the second value is the probability that the speech was already over.

    Only the newest frame is fed: the others are cached, and so is the text after the first call.
    """
    first = cache.size == 0
    base, res, end = talker(codes if first else codes[:, -1:], text if first else None, cache, with_end=True)
    new = torch.stack([base[:, -1].argmax(dim=-1), res[:, -1].argmax(dim=-1)], dim=-1)
    return torch.cat([codes, new[:, None]], dim=1), end[:, -1].sigmoid()


@torch.no_grad()
def generate_batch(
    talker: TalkerTiny, text: Int[Tensor, "batch text_tokens"] | None, limit: int, batch: int = 1, stop: bool = True
) -> tuple[Int[Tensor, "batch positions codebooks"], Int[Tensor, "batch"]]:
    """Codes for several texts at once, with the start frame (zeros) in front; and the number of frames behind it.

    A row's codes behind its own end are padding. Without texts, `batch` unconditioned rows are generated.
    """
    batch, device = (batch if text is None else len(text)), talker.base.weight.device
    codes = torch.zeros(batch, 1, talker.cfg.codebooks, dtype=torch.long, device=device)
    frames = torch.full((batch,), limit, device=device)
    cache = talker.new_cache(batch)
    for written in range(limit):
        longer, over = next_frame(talker, codes, text, cache)
        # at least one frame, so that no recording is empty
        if stop and written:
            frames = torch.where((over > 0.5) & (frames == limit), written, frames)
            if bool((frames < limit).all()):
                break
        codes = longer
    return codes, frames


def generate_codes(
    talker: TalkerTiny, text: Int[Tensor, "1 text_tokens"] | None, limit: int, stop: bool = True
) -> Int[Tensor, "1 positions codebooks"]:
    """The start frame (zeros) and up to `limit` frames of codes for one text; `stop=False` always gives `limit`."""
    codes, frames = generate_batch(talker, text, limit, stop=stop)
    return codes[:, : 1 + int(frames[0])]


@torch.no_grad()
def stream_codes(
    talker: TalkerTiny, text: Int[Tensor, "1 text_tokens"], limit: int
) -> Iterator[Int[Tensor, "codebooks"]]:
    """The frames of `generate_codes`, each as soon as it is written."""
    codes = torch.zeros(1, 1, talker.cfg.codebooks, dtype=torch.long, device=talker.base.weight.device)
    cache = talker.new_cache(1)
    for written in range(limit):
        codes, over = next_frame(talker, codes, text, cache)
        if written and float(over) > 0.5:
            return
        yield codes[0, -1]
