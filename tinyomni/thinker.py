"""The Thinker: a causal language model that reads one sequence of tokens, whatever they stand for.

    ids (batch, tokens) → tok_emb → 4 blocks → norm → lm_head → logits (batch, tokens, vocab)

Pictures and sound come in through `embeddings=`, already as vectors of width d_model. The blocks are Llama's
(Touvron et al., 2023): a test holds the logits against `transformers` with the same weights.
"""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.attention import KVCache
from tinyomni.config import TINY, ThinkerConfig
from tinyomni.layers import DecoderBlock, RMSNorm, init_weights
from tinyomni.shapes import ShapeError, describe, expect
from tinyomni.stability import assert_finite


class ThinkerLM(nn.Module):
    """`think(ids)`, `think(embeddings=x)` or, with a cache, only the new tokens of either."""

    def __init__(self, cfg: ThinkerConfig = TINY.thinker) -> None:
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg.vocab, cfg.d_model)
        self.blocks = nn.ModuleList(
            DecoderBlock(cfg.d_model, cfg.heads, cfg.intermediate_size, cfg.ctx_len, cfg.kv_heads, cfg.rope_theta)
            for _ in range(cfg.layers)
        )
        self.norm = RMSNorm(cfg.d_model)
        self.lm_head = nn.Linear(cfg.d_model, cfg.vocab, bias=False)
        init_weights(self, cfg.layers)

    def new_cache(self, batch: int = 1) -> KVCache:
        """An empty KV cache for `batch` sequences of up to ctx_len tokens."""
        cfg, weight = self.cfg, self.lm_head.weight
        return KVCache(
            cfg.layers,
            batch,
            cfg.kv_heads,
            cfg.ctx_len,
            cfg.d_model // cfg.heads,
            device=weight.device,
            dtype=weight.dtype,
        )

    def embed(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens d_model"]:
        """Look up a vector for each id: (batch, tokens) → (batch, tokens, d_model)."""
        if isinstance(ids, Tensor) and ids.is_floating_point() and ids.ndim == 3:
            raise ShapeError(
                f"ThinkerLM: a positional argument means ids (batch, tokens), whole numbers; got {describe(ids)}, "
                "which looks like "
                f"embeddings. Pass them as think(embeddings=x), with the last axis d_model={self.cfg.d_model}: a "
                "picture's vector "
                "goes through proj_v first, a sound's through proj_a."
            )
        expect("ThinkerLM", "ids", ids, "batch tokens", integer=1)
        try:
            return self.tok_emb(ids)
        except IndexError as error:
            raise IndexError(
                f"ThinkerLM: ids must lie in 0 … {self.cfg.vocab - 1}, the rows of the token table; got "
                f"{int(ids.min())} … "
                f"{int(ids.max())}. Were they made by another tokenizer?"
            ) from error

    def forward(
        self,
        ids: Int[Tensor, "batch tokens"] | None = None,
        *,
        embeddings: Float[Tensor, "batch tokens d_model"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Logits for the token after each position.

        Give `ids` or `embeddings`, not both. With a `cache` only the new tokens are given; it remembers the rest.
        Padding goes to the right: no token looks ahead, so it changes nothing before it.

        Raises ShapeError for a wrong axis or dtype, IndexError for an id outside the table, ValueError for more than
        ctx_len tokens, RuntimeError for NaN or infinite logits.
        """
        if (ids is None) == (embeddings is None):
            raise TypeError(
                "ThinkerLM: give either ids, think(ids), or embeddings, think(embeddings=x); got "
                + ("neither" if ids is None else "both")
            )
        x: Any = self.embed(ids) if ids is not None else embeddings
        expect(
            "ThinkerLM",
            "embeddings",
            x,
            "batch tokens d_model",
            d_model=self.cfg.d_model,
            fix="A picture's vector (128) goes through proj_v first, a sound's (192) through proj_a.",
        )
        batch, tokens, _ = x.shape
        past = cache.size if cache is not None else 0
        if tokens == 0:
            raise ValueError("ThinkerLM: at least one token is needed, got none")
        if past + tokens > self.cfg.ctx_len:
            raise ValueError(
                f"ThinkerLM: {past} tokens before + {tokens} now = {past + tokens} > ctx_len = {self.cfg.ctx_len}"
            )
        if cache is not None:
            cache.check_room("ThinkerLM", batch, tokens)
        for layer, block in enumerate(self.blocks):
            x = block(x, cache=cache, layer=layer)
        if cache is not None:
            cache.advance(tokens)
        logits = self.lm_head(self.norm(x))
        assert_finite("ThinkerLM", logits=logits)
        return logits
