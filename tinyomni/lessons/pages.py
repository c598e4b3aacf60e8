"""Two pages beside the lessons, written by `python tests/test_lessons.py`: the glossary, and all shapes on one page."""

import re

from tinyomni.dry_run.docs import sizes
from tinyomni.dry_run.pipelines import PIPELINES, load_spec
from tinyomni.glossary import AXES

TERMS: dict[str, tuple[int, str]] = {
    "activation": (4, "the non-linear function between two matrices of an MLP, such as SiLU or GELU"),
    "ablation": (20, "takes a part out, or lets it say its mean, and measures what is missing"),
    "activation patching": (20, "puts an activation of one run into another, and sees whether the answer flips"),
    "activation checkpointing": (21, "keeps only the blocks' inputs, and computes the rest again when it is needed"),
    "AdamW": (12, "an optimizer with a moving average of each gradient and of its square, and weight decay"),
    "attention": (3, "a weighted average of values; the weights say how well a query matches each key"),
    "autocast": (12, "chooses 16 or 32 bits for each operation"),
    "baseline": (13, "what one reaches without the skill that is measured; a metric without one says nothing"),
    "bit rate": (9, "bits for one second of audio; two codes of 7 bits at 12.5 Hz are 175"),
    "BOS": (1, "the id that begins every text; EOS ends it, PAD fills a batch"),
    "bootstrap": (17, "a confidence interval by resampling the answers"),
    "byte fallback": (1, "a character without a piece is spelled in its UTF-8 bytes"),
    "byte-pair encoding": (1, "merges the most frequent pair of neighbours, again and again"),
    "catastrophic forgetting": (23, "a skill is lost that the new data does not ask for"),
    "causal mask": (3, "a token attends to itself and to those before it"),
    "character error rate": (15, "insertions, deletions and substitutions, divided by the reference's length"),
    "checkpoint": (12, "all that a run needs to resume exactly where it stopped"),
    "CLS token": (6, "a learned token in front of the patches, whose output stands for the whole image"),
    "circuit": (20, "the parts of a network that do a job together"),
    "closed world": (1, "the course's generated language and scenes, with known answers"),
    "codebook": (9, "a table of vectors; the index of the nearest one is the code"),
    "commitment loss": (9, "pulls the encoder's vectors to their codebook entries"),
    "context length": (2, "how many tokens the Thinker can hold: 512, prompt and answer together"),
    "contrastive learning": (14, "each image finds its caption among all in the batch, and each caption its image"),
    "cross-entropy": (4, "the mean surprise at the token that really follows, in nats"),
    "CTC": (7, "sums over all alignments of a text to the audio tokens, so that none has to be given"),
    "data parallelism": (19, "every process has the whole model and a part of the batch; gradients are averaged"),
    "dead codes": (9, "codebook entries that are never chosen, and so never learn"),
    "decoder block": (4, "norm, attention, sum; norm, MLP, sum"),
    "domain shift": (23, "the data of use differs from that of training"),
    "dry run": (0, "follows real input through the model and compares every shape with a specification"),
    "embedding": (1, "a table of vectors: row i is the vector of id i"),
    "feature grid": (6, "the image encoder's outputs for the patches"),
    "fine-tuning": (23, "training goes on from trained weights, with other data"),
    "FLOPs per token": (21, "6 for each parameter in training, and attention's products"),
    "gradient accumulation": (12, "one large batch made of several small ones"),
    "Griffin-Lim": (11, "finds a waveform for given magnitudes by alternating projections"),
    "grouped-query attention": (19, "several query heads share one key head, so that the KV cache is smaller"),
    "heads": (3, "several small attentions side by side"),
    "induction head": (17, "two layers that find a word again and copy what came after it"),
    "iso-compute": (21, "runs that cost the same, spent on other sizes and other numbers of tokens"),
    "irreducible loss": (21, "what no model of any size can get below: the entropy of the text"),
    "k-means": (9, "moves each entry to the mean of its vectors, again and again"),
    "KV cache": (5, "keys and values of past tokens, kept so that each new token is one step"),
    "learning rate": (12, "the length of a step; it warms up, then falls along a cosine"),
    "log-mel spectrogram": (7, "how loud each of 128 bands is in each frame of 10 ms, as a logarithm"),
    "logits": (4, "one score for each token of the vocabulary, before the softmax"),
    "loss masking": (17, "only the answer counts in the loss, not the question"),
    "manifest": (23, "a table with a row for each recording or image"),
    "MFU": (21, "the share of a machine's peak that the model's own FLOPs use"),
    "mixed precision": (12, "products in 16 bits, weights and sums in 32"),
    "padding": (1, "fills the rows of a batch to one length, and must not count"),
    "patches": (6, "squares of 16 × 16 pixels, each one token"),
    "perplexity": (4, "e to the loss: among how many tokens the model seems to choose"),
    "phase": (11, "where in its cycle a wave is; a spectrogram leaves it out"),
    "power law": (21, "a straight line on two logarithmic axes; its slope is the exponent"),
    "probe": (20, "a linear classifier on the activations of a frozen model"),
    "projector": (6, "a linear layer from an encoder's width to the Thinker's"),
    "rehearsal": (23, "old data among the new, against forgetting"),
    "residual stream": (4, "each token's vector, to which one layer after the other adds something"),
    "residual vector quantization": (9, "a second codebook describes what the first left over"),
    "RMSNorm": (4, "divides a vector by its root mean square"),
    "RoPE": (2, "rotates queries and keys by their position, so that only the distance counts"),
    "scaling law": (21, "how the loss falls with parameters, tokens or compute, measured on small runs and extended"),
    "scratchpad": (17, "what the Thinker writes before the answer: transcript, description, retrieval"),
    "softmax": (3, "scores become positive weights that sum to 1"),
    "SpecAugment": (23, "hides stretches of time and of bands of a spectrogram in training"),
    "start frame": (10, "the zeros that stand before the first code frame; it is not audio"),
    "straight-through estimator": (9, "forwards the entry, backwards as if nothing had been quantized"),
    "SwiGLU": (4, "an MLP with a gate"),
    "Talker": (10, "the model that writes two codes for each 80 ms of speech"),
    "teacher forcing": (10, "in training each position gets the true past, shifted once"),
    "temperature": (5, "divides the logits: below 1 more peaked, above 1 flatter"),
    "Thinker": (0, "the course's language model"),
    "tokenizer": (1, "splits a text into pieces, gives each an id, and goes back"),
    "top-p": (5, "keeps the fewest tokens whose probabilities sum to p; top-k keeps k"),
    "tracer": (0, "records every call of a run, with names and sizes of axes"),
    "vocoder": (11, "turns a spectrogram into a waveform"),
    "weight decay": (12, "shrinks each weight a little in each step"),
}  # fmt: skip
"""A term, the lesson that teaches it, and one sentence."""


def glossary(lessons: dict[int, str]) -> str:
    """The page: terms with their lesson (`lessons` names the file of each number), then the axis names."""
    rows = [
        f"| {term} | {text} | [{number:02}](../notebooks/{lessons[number]}) |"
        for term, (number, text) in sorted(TERMS.items(), key=lambda item: item[0].lower())
    ]
    axes = [f"| `{name}` | {text} |" for name, text in sorted(AXES.items())]
    head = (
        "# Glossary\n\nWritten by `python tests/test_lessons.py`, "
        "from `tinyomni/lessons/pages.py` "
        "and `tinyomni/glossary.py`.\n\n## Terms\n\n| term | in one sentence | lesson |\n|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n\n## Axes\n\n| axis | what it counts |\n|---|---|\n" + "\n".join(axes) + "\n"


def cheat_sheet() -> str:
    """All shapes on one page: for each pipeline its steps and what leaves them, as numbers."""
    parts = [
        "# All shapes on a page",
        "Written by `python tests/test_lessons.py` from the specifications, for the input that ships with the course. "
        "[shapes.md](shapes.md) has the same with calls, axis names and formulas.",
    ]
    for name in PIPELINES:
        spec = load_spec(name)
        axes = {**spec.axes({}), "i": 0}
        parts.append(f"## {spec.title}\n\n| step | what leaves it |\n|---|---|")
        rows = []
        for each in spec.steps:
            outs = each.get("out", [])
            shapes = [sizes(axes, text) for text in (outs if isinstance(outs, list) else [outs])]
            numbers = [f"({', '.join(re.sub(r'.*= ', '', axis) for axis in shape.split(', '))})" for shape in shapes]
            if numbers:
                rows.append(f"| {each.get('title', each['call'])} | {' · '.join(dict.fromkeys(numbers))} |")
        parts[-1] += "\n" + "\n".join(rows)
    return "\n\n".join(parts) + "\n"
