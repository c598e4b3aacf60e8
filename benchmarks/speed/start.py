"""How long until something happens: processes from their start to their end, beside `import torch`

Limits, by `-X importtime`: behind torch, imports take 0.28 s, of which 0.11 s are a pass of the garbage collector over
all that torch has made, and 0.08 s beartype and jaxtyping, which judge the annotations. Reading the weights takes
0.24 s, and the answer 0.1 s.
"""

import subprocess
import sys

from harness import Case, Run

IMAGE = "tinyomni/assets/scene.png"


def process(*arguments: str) -> Run:
    """Python with these arguments."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def cases(device: str) -> list[Case]:
    """The goals are what 0.3 s, and one second more, are beside an import of 1.7 s."""
    torch = process("-c", "import torch")
    ask = process("-m", "tinyomni", "ask", "What colour is the circle?", "--image", IMAGE)
    return [
        Case("import tinyomni.thinker", process("-c", "import tinyomni.thinker"), torch, "import torch", 1.2),
        Case("tinyomni --help", process("-m", "tinyomni", "--help"), torch, "import torch", 0.18),
        Case("tinyomni ask, answer and all", ask, torch, "import torch", 1.6),
    ]
