"""The one exception a user sees: it names the field and the remedy."""


class R1Error(Exception):
    """Bad input. The message is one line: what is wrong, then what to do.

    The command line prints it without a traceback and exits with code 2.
    """
