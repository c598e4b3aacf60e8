"""What every submission needs, imported once: a forked process starts in milliseconds, where the imports take seconds.

The server of forked processes (multiprocessing's) imports this module and does nothing else until it forks.
"""

import torch
from IPython.core.interactiveshell import InteractiveShell

from tinyomni.grade import encoding, grading, swapping, worker
from tinyomni.grade.checker import Checker
from tinyomni.grade.registry import find_exercise, lessons

__all__ = ["Checker", "InteractiveShell", "encoding", "find_exercise", "grading", "swapping", "worker"]

torch.set_num_threads(1)  # a thread of the server would be missing in what it forks
lessons()
