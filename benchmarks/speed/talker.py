"""300 frames of speech from the Talker, two codes each, beside as many tokens from a Llama of its sizes

After a text of 12 tokens, cached, greedy.
"""

import torch
from harness import Case
from references import llama

from tinyomni.config import TINY
from tinyomni.talker import TalkerTiny, generate_codes

FRAMES, PROMPT = 300, 12


def cases(device: str) -> list[Case]:
    """A goal of 0.5 is twice as fast."""
    cfg = TINY.talker
    reference = llama(cfg.vocab, cfg.talker_dim, cfg.layers, cfg.heads, cfg.intermediate_size).to(device).eval()
    ours = TalkerTiny().to(device).eval()
    text = torch.randint(4, 1300, (1, PROMPT), device=device)

    def theirs() -> None:
        with torch.inference_mode():
            reference.generate(text, attention_mask=torch.ones_like(text), max_new_tokens=FRAMES, min_new_tokens=FRAMES,
                               do_sample=False, pad_token_id=0)  # fmt: skip

    return [
        Case("300 frames", lambda: generate_codes(ours, text, FRAMES, stop=False), theirs, "transformers generate", 0.5)
    ]
