"""The one exception that ends a command with exit code 2."""


class UserError(Exception):
    """A mistake of the user or a bad input file.

    The message is one sentence that names the thing at fault and says what to do. Scripts print it without a
    traceback and exit with code 2; anything else that escapes is our own fault and exits with code 1.

    Attributes:
        reason: the part of the message that holds where another way is taken instead, None for all of it.
    """

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
