"""The errors that crashd raises on purpose; imports nothing.

    CrashdError                 exit 1
    ├── UsageError              exit 2   the command line or a MATCH is wrong
    ├── ConfigError             exit 2   the configuration is wrong
    ├── UnsupportedError        exit 2   this system lacks something required
    ├── PermissionDeniedError   exit 3   the caller may not do or see this
    ├── UnavailableError        exit 4   the store or the daemon is not available
    │   ├── BusyError           exit 4   another daemon owns this root
    │   ├── IndexCorruptError   exit 4   the index cannot be read; `reindex` rebuilds it
    │   └── IndexOutdatedError  exit 4   an older crashd wrote the index; it is rebuilt
    ├── NotFoundError           exit 1   nothing matched
    └── FormatError             exit 1   foreign bytes are malformed
        └── NewerError          exit 1   a newer crashd wrote them

The exit statuses are those of crashctl (DESIGN section 8). They are not those of sysexits.h, so
that scripts need to know only five numbers.
"""


class CrashdError(Exception):
    """Base of all errors raised on purpose.

    The message says in one line what failed on which object. `hint`, if given, says what the
    operator can do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(CrashdError):
    """The command line is wrong, or a MATCH selects several crashes where one is required."""

    exit_code = 2


class ConfigError(CrashdError):
    """A configuration file cannot be read or holds a wrong key or value."""

    exit_code = 2


class UnsupportedError(CrashdError):
    """This system lacks something that the operation requires."""

    exit_code = 2


class PermissionDeniedError(CrashdError):
    """The caller may not do this."""

    exit_code = 3


class UnavailableError(CrashdError):
    """The store, the index or the daemon is not available."""

    exit_code = 4


class BusyError(UnavailableError):
    """Another daemon owns this root."""


class IndexCorruptError(UnavailableError):
    """The index is damaged, or was written by a newer crashd."""


class IndexOutdatedError(UnavailableError):
    """The index was written by an older crashd."""


class NotFoundError(CrashdError):
    """Nothing matched."""


class FormatError(CrashdError):
    """Foreign bytes (a core, a sidecar, a message, a /proc file) are malformed."""


class NewerError(FormatError):
    """A newer crashd wrote this; this version cannot read it."""


def reason_of(error: BaseException) -> str:
    """Return why something failed; never empty, even if the exception has no text."""
    text = str(getattr(error, "strerror", None) or error).strip()
    name = type(error).__name__
    if isinstance(error, KeyError) and text:
        return f"{name}: {text}"  # its text is only the key
    return text or name
