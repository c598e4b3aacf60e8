"""The Thinker: a causal language model over one sequence of tokens, whatever modality they come from.

    ids (batch, tokens) → tok_emb → 4 blocks → norm → lm_head → logits (batch, tokens, vocab)

Images and audio enter through `embeddings=`, already as vectors of width d_model. The blocks are Llama's
(Touvron et al., 2023): a test compares the logits with those of `transformers` for the same weights.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from tinyomni.attention import KVCache
from tinyomni.config import TINY, ThinkerConfig
from tinyomni.errors import InputError
from tinyomni.fast_step import fast_step
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
        """The token table: (batch, tokens) → (batch, tokens, d_model)."""
        if isinstance(ids, Tensor) and ids.is_floating_point() and ids.ndim == 3:
            raise ShapeError(
                f"ThinkerLM: expected ids (batch, tokens), got {describe(ids)}, which looks like embeddings. "
                f"Pass them as think(embeddings=x), with the last axis d_model={self.cfg.d_model}: "
                "an image's vector goes through proj_v first, those of audio through proj_a."
            )
        expect("ThinkerLM", "ids", ids, "batch tokens", integer=True)
        try:
            return self.tok_emb(ids)
        except IndexError as error:
            raise IndexError(
                f"ThinkerLM: expected ids in 0 … {self.cfg.vocab - 1}, the rows of the token table, "
                f"got {int(ids.min())} … {int(ids.max())}. Were they made by another tokenizer?"
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
        x = self.embed(ids) if ids is not None else embeddings
        if x is None or (ids is not None and embeddings is not None):
            raise TypeError(
                "ThinkerLM: expected either ids, think(ids), or embeddings, think(embeddings=x); "
                f"got {'neither' if x is None else 'both'}"
            )
        expect(
            "ThinkerLM",
            "embeddings",
            x,
            "batch tokens d_model",
            d_model=self.cfg.d_model,
            fix="An image's vector goes through proj_v first, those of audio through proj_a.",
        )
        batch, tokens, _ = x.shape
        past = cache.size if cache is not None else 0
        if tokens == 0:
            raise InputError("ThinkerLM: expected at least one token, got none")
        if past + tokens > self.cfg.ctx_len:
            raise InputError(
                f"ThinkerLM: {past} tokens before + {tokens} now = {past + tokens} > ctx_len = {self.cfg.ctx_len}"
            )
        if cache is not None:
            cache.check_room("ThinkerLM", batch, tokens)
        if cache is not None and (step := fast_step(self, x, cache)):
            logits = step.logits(step(x, cache))
        else:
            for layer, block in enumerate(self.blocks):
                x = block(x, cache=cache, layer=layer)
            logits = self.lm_head(self.norm(x))
        if cache is not None:
            cache.advance(tokens)
        assert_finite("ThinkerLM", logits=logits)
        return logits
