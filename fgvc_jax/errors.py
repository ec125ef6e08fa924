"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake in a config, a data set or a file. Printed as one message, without a traceback.

    The text says what was wrong, where (file, key, id), what is allowed, and what to do.
    """
