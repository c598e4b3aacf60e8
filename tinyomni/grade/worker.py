"""Inside the process of a submission: it runs cells and answers, and sends back what they gave. It judges nothing.

The channel to the grader is what standard input and output were at the start; the submission gets an empty input, and
its output goes where errors go. `python -m tinyomni.grade.worker MEMORY_MB`, one JSON object in each line:

    {"id": …, "cell": 3, "source": …, "answers": {exercise: name}}  → {"id": …, "error": "", "defined": [exercise, …]}
    {"id": …, "exercise": "embed"}  → {"id": …, "problem": ""} and "outcomes", one for each case
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import IO, Any


def open_channel() -> tuple[IO[bytes], IO[bytes]]:
    """Take standard input and output away from the submission."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")  # not inherited by its children
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, replies


def limit_memory(megabytes: int) -> None:
    """So much more address space than the libraries take: an allocation beyond it raises an error."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):
        return  # only Linux has both; elsewhere the memory is not limited
    size = pages * os.sysconf("SC_PAGE_SIZE") + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def main(memory_mb: int) -> int:
    """Answer requests until the grader closes the channel."""
    requests, replies = open_channel()
    import torch
    from IPython.core.interactiveshell import InteractiveShell

    from tinyomni.grade import encoding, grading, swapping
    from tinyomni.grade.checker import Checker
    from tinyomni.grade.registry import find_exercise

    torch.set_num_threads(1)
    Checker.deferred = swapping.deferred = True
    InteractiveShell.enable_gui = lambda self, gui=None: None  # type: ignore[method-assign]  # what `%matplotlib inline` asks for
    shell = InteractiveShell.instance()
    known: dict[str, Any] = {}  # the answers as they were after the cell before
    missing = object()

    def run_cell(source: str, names: dict[str, str]) -> dict[str, Any]:
        result = shell.run_cell(source, store_history=False)
        error = result.error_before_exec or result.error_in_exec
        error = None if isinstance(error, swapping.CellSkipped) else error
        text = f"{type(error).__name__}: {encoding.text_of(error, str)}"[:500] if error is not None else ""
        defined = []
        for exercise, name in names.items():
            answer = shell.user_ns.get(name, missing)
            if answer is not missing and known.get(exercise, missing) is not answer:
                defined.append(exercise)
                known[exercise] = answer
        return {"error": text, "defined": defined}

    def run_exercise(name: str) -> dict[str, Any]:
        exercise, answer = find_exercise(name), known[name]
        if problem := grading.find_problem(exercise, answer):
            return {"problem": problem}
        outcomes = []
        for _, inputs, _ in exercise.all_inputs():
            outcomes.append(encoding.encode_outcome(exercise.run(answer, inputs)))
        return {"problem": "", "outcomes": outcomes}

    own = os.getpid()
    limit_memory(memory_mb)
    while line := requests.readline():
        request = json.loads(line)
        try:
            if "cell" in request:
                reply = run_cell(request["source"], request["answers"])
            else:
                reply = run_exercise(request["exercise"]) if "exercise" in request else {}
        except KeyboardInterrupt:
            os._exit(130)
        except MemoryError:
            reply = {"problem": "it needs more memory than the limit allows", "error": "MemoryError", "defined": []}
        if os.getpid() != own:
            os._exit(0)  # a child that the submission forked: it has no business here
        replies.write(json.dumps(reply | {"id": request["id"]}).encode() + b"\n")
        replies.flush()
        gc.collect()
    return 0


if __name__ == "__main__":
    status = main(int(sys.argv[1]))
    sys.stdout.flush()
    os._exit(status)  # whatever the submission registered to run at the end does not run
