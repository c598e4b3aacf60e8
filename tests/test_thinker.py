"""The Thinker compared with a Llama of transformers of the same weights; with and without cache; generation."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tinyomni.config import TINY, ThinkerConfig
from tinyomni.errors import InputError
from tinyomni.generation import generate, sample, stream
from tinyomni.layers import init_weights
from tinyomni.shapes import ShapeError
from tinyomni.stability import finite_checks
from tinyomni.thinker import ThinkerLM

SMALL = ThinkerConfig(layers=3, d_model=48, heads=4, kv_heads=4, intermediate_size=80, vocab=61, ctx_len=40)


def thinker(**changes: int) -> ThinkerLM:
    """A small one whose weights are large enough that a mistake shows."""
    model = ThinkerLM(dataclasses.replace(SMALL, **changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model


def prompt(batch: int = 2, tokens: int = 7) -> torch.Tensor:
    ids = torch.randint(4, SMALL.vocab, (batch, tokens))
    ids[:, 0] = 1
    return ids


def llama(mine: ThinkerLM) -> LlamaForCausalLM:
    cfg = mine.cfg
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg.vocab,
            hidden_size=cfg.d_model,
            intermediate_size=cfg.intermediate_size,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            num_key_value_heads=cfg.kv_heads,
            max_position_embeddings=cfg.ctx_len,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
        )
    ).eval()
    names = {"tok_emb": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
    weights = {f"{new}.weight": mine.get_submodule(old).weight for old, new in names.items()}
    inside = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "mlp.gate": "mlp.gate_proj"}
    inside |= {"mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
    inside |= {f"attn.{each}_proj": f"self_attn.{each}_proj" for each in "qkvo"}
    for layer, block in enumerate(mine.blocks):
        weights |= {
            f"model.layers.{layer}.{new}.weight": block.get_submodule(old).weight for old, new in inside.items()
        }
    theirs.load_state_dict(weights)
    return theirs


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_logits_are_llamas(kv_heads: int) -> None:
    mine, ids = thinker(kv_heads=kv_heads), prompt()
    torch.testing.assert_close(mine(ids), llama(mine)(ids).logits, atol=1e-5, rtol=0)


def test_logits_are_llamas_at_the_real_size() -> None:
    mine = ThinkerLM().eval()
    ids = torch.randint(0, TINY.thinker.vocab, (2, 33))
    torch.testing.assert_close(mine(ids), llama(mine)(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 1, 2, 1], [2, 5]])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_with_a_cache_in_any_chunks_the_logits_are_the_same(chunks: list[int], kv_heads: int) -> None:
    model, ids = thinker(kv_heads=kv_heads), prompt()
    cache = model.new_cache(2)
    parts = [model(part, cache=cache) for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-5, rtol=1e-5)
    assert cache.size == 7


def test_no_token_attends_to_a_later_one_so_padding_at_the_right_changes_nothing() -> None:
    model, ids = thinker(), prompt()
    longer = torch.cat([ids, torch.zeros(2, 4, dtype=torch.long)], dim=1)
    torch.testing.assert_close(model(longer)[:, :7], model(ids), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(model(ids)[:, -1], model(ids.flip(1))[:, -1])


def test_a_batch_is_its_members_and_embeddings_are_ids_looked_up() -> None:
    model, ids = thinker(), prompt(3)
    together = model(ids)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], model(ids[row : row + 1]), atol=1e-6, rtol=1e-5)
    assert torch.equal(model(embeddings=model.tok_emb(ids)), together)


def test_lecun_initialization_keeps_the_variance_at_any_width() -> None:
    model = ThinkerLM(dataclasses.replace(SMALL, d_model=256, intermediate_size=400))
    stds = [float(part.weight.detach().std()) for part in (model.tok_emb, model.blocks[0].attn.q_proj, model.lm_head)]
    assert stds == pytest.approx([0.02] * 3, rel=0.1)
    init_weights(model, layers=8, init="lecun")
    block = model.blocks[0]
    parts = (model.tok_emb, block.attn.q_proj, block.attn.o_proj, block.mlp.down)
    expected = [1, 256**-0.5, 256**-0.5 / 4, 400**-0.5 / 4]
    assert [float(part.weight.detach().std()) for part in parts] == pytest.approx(expected, rel=0.1)
    layer = torch.nn.Linear(3, 4)
    init_weights(layer, layers=8)
    assert not layer.bias.any()
    queries = block.attn.q_proj(block.norm1(model.embed(prompt(8))))
    assert float(queries.detach().std()) == pytest.approx(1, rel=0.1)  # as large as what goes in


def test_a_block_alone_keeps_the_shape() -> None:
    x = torch.randn(2, 7, SMALL.d_model)
    for block in thinker().blocks:
        assert block(x).shape == x.shape


def test_greedy_generation_is_a_loop_without_cache() -> None:
    model, ids = thinker(), prompt()
    slow = ids
    for _ in range(9):
        slow = torch.cat([slow, model(slow)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generate(model, ids, max_new_tokens=9, eos=None), slow[:, 7:])
    steps = list(stream(model, embeddings=model.tok_emb(ids), max_new_tokens=9, eos=None))
    assert torch.equal(torch.stack([step.ids for step in steps], dim=1), slow[:, 7:])
    log_probs = model(slow)[:, 6:-1].log_softmax(-1).gather(-1, slow[:, 7:, None]).squeeze(-1)
    torch.testing.assert_close(torch.stack([step.log_probs for step in steps], dim=1), log_probs)


def test_generation_stops_at_eos_for_each_row() -> None:
    model, ids = thinker(), prompt()
    free = generate(model, ids, max_new_tokens=12, eos=None)
    eos = int(free[0, 3])
    stopped = generate(model, ids, max_new_tokens=12, eos=eos)
    for row in range(2):
        end = free[row].tolist().index(eos) if eos in free[row] else 12
        assert stopped[row, :end].tolist() == free[row, :end].tolist()
        assert set(stopped[row, end:].tolist()) <= {eos}


def test_a_row_that_has_ended_does_not_end_the_others() -> None:
    model, ids = thinker(), prompt()
    free = generate(model, ids, max_new_tokens=12, eos=None)
    eos = next(id for id in free[0].tolist() if id not in free[1].tolist())
    stopped = generate(model, ids, max_new_tokens=12, eos=eos)
    end = free[0].tolist().index(eos)
    assert torch.equal(generate(model, ids[:1], max_new_tokens=12, eos=eos), free[:1, : end + 1])  # nothing behind it
    assert torch.equal(stopped[1], free[1]) and stopped[0].tolist() == [*free[0, :end].tolist(), *[eos] * (12 - end)]


def test_seed_and_forbidden_ids() -> None:
    model, ids = thinker(), prompt()
    hot = {"temperature": 3.0, "max_new_tokens": 20, "eos": None}
    assert torch.equal(generate(model, ids, seed=4, **hot), generate(model, ids, seed=4, **hot))
    assert not torch.equal(generate(model, ids, seed=4, **hot), generate(model, ids, seed=5, **hot))
    assert int(generate(model, ids, vocab_limit=9, **hot).max()) < 9
    assert torch.equal(generate(model, ids, top_k=1, **hot), generate(model, ids, max_new_tokens=20, eos=None))


def test_top_k_and_top_p_choose_among_the_right_ids_with_the_right_frequencies() -> None:
    logits = torch.log(torch.tensor([0.02, 0.4, 0.08, 0.3, 0.2])).expand(4000, 5)
    generator = torch.Generator().manual_seed(1)

    def shares(**how: float) -> torch.Tensor:
        return sample(logits, temperature=1.0, generator=generator, **how).bincount(minlength=5) / 4000

    torch.testing.assert_close(shares(), logits[0].exp(), atol=0.03, rtol=0)
    torch.testing.assert_close(shares(top_k=2), torch.tensor([0, 4 / 7, 0, 3 / 7, 0]), atol=0.03, rtol=0)
    # 0.4 + 0.3 has not yet reached 0.75, with 0.2 it has
    torch.testing.assert_close(shares(top_p=0.75), torch.tensor([0, 4 / 9, 0, 3 / 9, 2 / 9]), atol=0.03, rtol=0)
    squared = logits[0].exp() ** 2
    cold = sample(logits, temperature=0.5, generator=generator).bincount(minlength=5) / 4000
    torch.testing.assert_close(cold, squared / squared.sum(), atol=0.03, rtol=0)


def test_top_p_takes_no_more_ids_than_it_needs() -> None:
    logits, generator = torch.zeros(1, 4), torch.Generator().manual_seed(1)
    drawn = {int(sample(logits, 1.0, top_p=0.5, generator=generator)) for _ in range(100)}
    assert len(drawn) == 2  # of four equally likely ones: together they have reached 0.5 exactly


def test_greedy_takes_the_first_of_equally_likely_ids() -> None:
    assert not sample(torch.zeros(50, 9)).any() and not sample(torch.zeros(50, 9), top_k=3, top_p=0.5).any()


def test_the_last_token_is_not_fed_back() -> None:
    model, passes = thinker(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    assert generate(model, prompt(), max_new_tokens=4, eos=None).shape == (2, 4) and len(passes) == 4


def test_generation_runs_under_autocast() -> None:
    model, ids = thinker(), prompt()
    with torch.autocast("cpu", torch.bfloat16):
        assert generate(model, ids, max_new_tokens=5, eos=None).shape == (2, 5)


def bad_calls() -> dict[str, tuple[object, type[Exception], str]]:
    ids = torch.tensor([[1, 5, 6]])
    return {
        "an image's vector": (lambda m: m(torch.randn(1, 1, 128)), ShapeError, "embeddings"),
        "embeddings of another width": (lambda m: m(embeddings=torch.randn(1, 4, 128)), ShapeError, "proj_v|d_model"),
        "no batch axis": (lambda m: m(torch.tensor([1, 5, 6])), ShapeError, r"unsqueeze\(0\)"),
        "float ids": (lambda m: m(ids.float()), ShapeError, "integer|Int"),
        "float ids, generating": (
            lambda m: generate(m, ids[:, 1:].float(), max_new_tokens=3),
            ShapeError,
            "integer|Int",
        ),
        "an id outside": (lambda m: m(torch.tensor([[1, 61]])), IndexError, "0 … 60"),
        "an id outside, generating": (
            lambda m: generate(m, torch.tensor([[1, 61]]), max_new_tokens=3),
            ValueError,
            "0 … 60",
        ),
        "a negative id": (lambda m: m(torch.tensor([[1, -1]])), IndexError, "-1"),
        "no BOS": (lambda m: generate(m, torch.tensor([[5, 6]]), max_new_tokens=3), ValueError, "BOS"),
        "padding at the end": (
            lambda m: generate(m, torch.tensor([[1, 5, 6], [1, 5, 0]]), max_new_tokens=3),
            ValueError,
            "equal length, got padding .* of 1 of 2 rows",
        ),
        "nothing": (lambda m: m(), TypeError, "neither"),
        "both": (lambda m: m(ids, embeddings=torch.randn(1, 3, 48)), TypeError, "both"),
        "too many": (lambda m: m(torch.ones(1, 41, dtype=torch.long)), ValueError, "41 > ctx_len = 40"),
        "too many new": (lambda m: generate(m, ids, max_new_tokens=38), ValueError, "3 .* 38 .* = 41 > ctx_len = 40"),
        "no tokens": (lambda m: m(torch.zeros(1, 0, dtype=torch.long)), ValueError, "at least one token"),
        "temperature": (lambda m: generate(m, ids, max_new_tokens=2, temperature=-1.0), ValueError, "temperature"),
        "top_p": (lambda m: sample(torch.randn(1, 5), 1.0, top_p=0.0), ValueError, "top_p"),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_bad_input_is_a_clear_error(name: str) -> None:
    call, kind, words = bad_calls()[name]
    with pytest.raises(kind, match=words):
        call(thinker())  # type: ignore[operator]


def test_nan_is_found_named_and_counted_and_the_check_can_be_switched_off() -> None:
    model, ids = thinker(), prompt()
    model.lm_head.weight.data[5] = torch.nan
    model.lm_head.weight.data[7] = torch.inf
    with pytest.raises(RuntimeError, match=r"ThinkerLM: logits: NaN=\d+, Inf=\d+"):
        model(ids)
    with finite_checks(False):
        assert torch.isnan(model(ids)[..., 5]).all()


def test_the_least_and_the_most_that_generation_takes() -> None:
    model, ids = thinker(), prompt()
    ids[0, 2] = 0  # padding inside of a prompt is an id like any other
    ids[1, -1] = SMALL.vocab - 1
    free = generate(model, ids, max_new_tokens=SMALL.ctx_len - 7, eos=None)
    assert free.shape == (2, SMALL.ctx_len - 7)
    assert torch.equal(generate(model, ids, max_new_tokens=1, eos=None), free[:, :1])
    assert torch.equal(generate(model, ids, max_new_tokens=1), free[:, :1])
    assert torch.equal(
        generate(model, ids[:, :1], max_new_tokens=2, eos=None)[:, 0], model(ids[:, :1])[:, 0].argmax(-1)
    )
    logits = torch.randn(40, 9)
    assert torch.equal(sample(logits), logits.argmax(-1))
    assert torch.equal(sample(logits, 1.0, top_k=1), logits.argmax(-1))
    for every in ({"top_k": 9}, {"top_k": 10}, {"top_p": 1.0}, {"top_p": 1}):
        mine = sample(logits, 1.0, generator=torch.Generator().manual_seed(3), **every)
        assert torch.equal(mine, sample(logits, 1.0, generator=torch.Generator().manual_seed(3)))


def test_what_generation_does_unless_it_is_told_otherwise() -> None:
    model, ids = thinker(ctx_len=80), prompt()
    assert torch.equal(generate(model, ids, eos=None), generate(model, ids, max_new_tokens=64, temperature=0, eos=None))
    assert generate(model, ids, eos=None).shape == (2, 64)
    hot = {"temperature": 2.0, "max_new_tokens": 20, "eos": None}
    assert torch.equal(generate(model, ids, **hot), generate(model, ids, seed=0, **hot))


def test_a_token_after_the_end_has_log_probability_zero() -> None:
    model, ids = thinker(), prompt()
    free = generate(model, ids, max_new_tokens=12, eos=None)
    eos = next(id for id in free[0].tolist() if id not in free[1].tolist())
    end = free[0].tolist().index(eos)
    log_probs = torch.stack([step.log_probs for step in stream(model, ids, max_new_tokens=12, eos=eos)], dim=1)
    assert (log_probs[0, end + 1 :] == 0).all() and (log_probs[0, : end + 1] < 0).all() and (log_probs[1] < 0).all()


FEW = {"max_new_tokens": 3}


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda m, ids: generate(m), TypeError, "neither"),
        (lambda m, ids: generate(m, ids, embeddings=m.tok_emb(ids)), TypeError, "both"),
        (lambda m, ids: generate(m, ids[0]), ShapeError, "batch axis"),
        (lambda m, ids: generate(m, ids[:, :0]), ShapeError, "at least one token"),
        (lambda m, ids: generate(m, embeddings=m.tok_emb(ids)[:, :0]), ShapeError, "at least one token"),
        (lambda m, ids: generate(m, ids.where(ids != ids[1, 0], 5), **FEW), InputError, "starts with BOS"),
        (lambda m, ids: generate(m, torch.tensor([[1, 5], [4, 5]]), **FEW), InputError, "starts with BOS"),
        (lambda m, ids: generate(m, torch.tensor([[1, 5], [1, -1]]), **FEW), InputError, r"got -1 … 5"),
        (lambda m, ids: generate(m, torch.tensor([[1, 5], [1, 99]]), **FEW), InputError, r"got 1 … 99"),
        (lambda m, ids: generate(m, ids, max_new_tokens=2.0), ValueError, "max_new_tokens"),
        (lambda m, ids: sample(torch.randn(1, 5), "1"), ValueError, "temperature"),
        (lambda m, ids: sample(torch.randn(1, 5), 1.0, top_k=1.5), ValueError, "top_k"),
        (lambda m, ids: sample(torch.randn(1, 5), 1.0, top_p="1"), ValueError, "top_p"),
    ],
)
def test_generation_names_what_it_cannot_use(
    call: Callable[[ThinkerLM, torch.Tensor], object], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        call(thinker(), prompt())


@pytest.mark.parametrize("temperature", [1e-9, 1e-45, 1e-320])
def test_a_temperature_close_to_zero_is_greedy(temperature: float) -> None:
    logits = torch.randn(50, 200) * 100
    assert torch.equal(sample(logits, temperature), logits.argmax(dim=-1))


@pytest.mark.parametrize(
    "wrong",
    [*({"temperature": value} for value in (float("nan"), float("inf"), -1)),
     *({"temperature": 1.0, "top_p": value} for value in (float("nan"), 0, 1.5)),
     *({"temperature": 1.0, "top_k": value} for value in (0, -1)),
     *({"max_new_tokens": value} for value in (0, -1))],
    ids=str,
)  # fmt: skip
def test_settings_of_generation_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    name = list(wrong)[-1]
    with pytest.raises(InputError, match=f"{name} must"):
        generate(ThinkerLM(ThinkerConfig(layers=1)), torch.tensor([[1, 5, 6]]), **{"max_new_tokens": 3, **wrong})
