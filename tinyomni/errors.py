"""The one error that means: the input is wrong, not the program."""


class InputError(ValueError):
    """A file, a text, a setting or an argument from outside that cannot be used; the message says why and what helps.

    The command line reports it as one message with exit status 2. Any other exception is a fault of the library: it
    keeps its traceback.
    """
