"""What loaders share: a path that must be a readable file, and arrays of any library."""

import array
import errno
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinyomni.errors import InputError, MissingFileError, NotAFileError


def existing_file(where: str, source: str | os.PathLike[str]) -> Path:
    """The path, if there is a file with something in it."""
    path = Path(source)
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise MissingFileError(f"{where}: {str(path)[:60]}… is too long for a path. Is it the content?") from error
    if path.is_dir():
        raise NotAFileError(f"{where}: expected a file, got a folder: {path}")
    if not path.is_file():
        raise MissingFileError(f"{where}: no such file: {path}. Is the path right?")
    if path.stat().st_size == 0:
        raise InputError(f"{where}: {path} is empty (0 bytes). Copy or download it again.")
    return path


def as_tensor(where: str, source: object) -> Tensor:
    """An array of any library, or a list of numbers, as a tensor on the CPU."""
    try:
        # numpy's own copy resolves negative strides and foreign byte orders, which torch refuses
        if isinstance(source, array.array):  # numpy keeps its type, torch does not
            source = np.asarray(source)
        if isinstance(source, np.ma.MaskedArray):
            raise TypeError("its mask has no meaning here: pass x.filled(0)")
        if isinstance(source, np.ndarray):
            source = np.array(source, dtype=source.dtype.newbyteorder("="), order="C")
        tensor = torch.as_tensor(source).detach()
        if tensor.is_quantized:
            raise TypeError("quantized: pass x.dequantize()")
        if tensor.is_nested:
            raise TypeError("nested: pass one of x.unbind()")
        if tensor.layout != torch.strided:
            raise TypeError("sparse: pass x.to_dense()")
        if tensor.is_floating_point() and tensor.element_size() == 1:  # hardly anything can be computed with them
            raise TypeError(f"{str(tensor.dtype).removeprefix('torch.')}: pass x.float()")
        return tensor.cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{where}: expected an array of numbers, got {type(source).__name__} ({error})") from error
