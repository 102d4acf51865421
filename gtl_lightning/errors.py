"""The one exception type meant for people: a single clear line, no traceback."""


class UserError(Exception):
    """Something the user can mend.

    The message is one line that names the file, key or value at fault and says what to do. The command line prints it
    as `error: ...` and exits with code 2; every other exception is a bug and keeps its traceback.
    """
