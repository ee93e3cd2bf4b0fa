"""The one exception type for input that a user can mend."""


class InputError(ValueError):
    """Bad user input: says in one line what came, what was wanted and what to do.

    Programs print it without a stack trace and exit with status 2.
    """
