"""The errors that mean: the input is wrong, not the program.

The command line reports them as one message with exit status 2. Any other exception is a fault of the library: it keeps
its traceback.
"""


class InputError(ValueError):
    """A file, a text, a setting or an argument from outside cannot be used; the message says why and what helps."""


class MissingFileError(InputError, FileNotFoundError):
    """There is no file, or no folder, at a path that was given."""


class NotAFileError(InputError, IsADirectoryError):
    """There is a folder at a path that was given, and a file is needed."""
