"""Mixed precision: one stated policy for each device.

| device | `auto`                                            | on request                                             |
|--------|---------------------------------------------------|--------------------------------------------------------|
| CUDA   | bf16 autocast                                     | fp16 autocast with a GradScaler; fp32                  |
| CPU    | bf16 autocast if the CPU multiplies bf16 matrices | bf16, fp16 with a GradScaler (to study: slow); fp32    |
|        | itself (AMX, AVX512-BF16), else fp32              |                                                        |
| MPS    | fp32                                              | nothing else: it is what works everywhere there        |

bf16 has the range of fp32 with 8 bits of precision, so its gradients need no scaling. fp16 has 11 bits and a small
range: gradients under 6e-8 become zero. A GradScaler multiplies the loss so that they stay above it, and halves its
factor when one becomes infinite. Weights, gradients and the optimizer stay fp32 in all cases.
Micikevicius et al. (2018), arXiv:1710.03740.

Measured on a CPU without bf16 instructions (AMD EPYC, AVX2, one core): a step of the TINY Thinker on (16, 32) tokens
takes 0.31 s in fp32, 6.8 s under bf16 autocast. On one with AVX512-BF16 a step of the thinker stage, 64 lines, takes
0.45 s in fp32 and 0.26 s under bf16 autocast. So the rule looks at the CPU, never at a clock: the same machine always
trains in the same precision.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from tinyomni.errors import InputError

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Policy:
    """The device, and the precision of its forward passes."""

    device: torch.device
    precision: str

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        dtype = DTYPES[self.precision]
        if dtype is None:
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, dtype=dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """A GradScaler: it scales in fp16; in every other precision its methods do nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bf16 matrix products."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def policy(device: torch.device, precision: str = "auto") -> Policy:
    """The table above."""
    if precision != "auto" and precision not in DTYPES:
        names = ", ".join(map(repr, ("auto", *DTYPES)))
        raise InputError(f"Precision: expected one of {names}, got {precision!r}")
    if device.type == "cuda" and precision in ("auto", "bf16") and not torch.cuda.is_bf16_supported(False):
        if precision == "bf16":
            raise InputError("Precision: this GPU does not support bf16; use precision=fp16 or fp32")
        return Policy(device, "fp32")
    if device.type == "mps" and precision not in ("auto", "fp32"):
        raise InputError(f"Precision: MPS supports only fp32, got {precision!r}")
    if precision == "auto":
        fast = device.type == "cuda" or (device.type == "cpu" and cpu_multiplies_bf16())
        precision = "bf16" if fast else "fp32"
    return Policy(device, precision)
