"""The cause of a crash for a line that already names signal and program, the cause first.

Titles (domain/cause/signature.py, domain/signals.py) have the form `SIGSEGV in web, parse(): NULL
pointer read`: on a narrow line the end, which explains the crash, would be what is cut.
"""

_KERNEL = (
    ("Kernel panic - not syncing: ", "panic: "),
    ("BUG: unable to handle kernel ", ""),
)


def headline(title: str, comm: str, program: str) -> str:
    """Return what a title says besides the signal, and besides `comm` if `program` names it.

    It is empty if the title says nothing else.
    """
    signal, is_found, rest = title.partition(" in ")
    if not is_found or (signal != "crash" and not _is_signal(signal)):
        for words, instead in _KERNEL:
            if title.startswith(words):
                return instead + title[len(words) :]
        return title
    if (
        not comm
        or not rest.startswith(comm)
        or rest[len(comm) : len(comm) + 1] not in ("", ":", ",")
    ):
        return rest
    place, words = _split(rest[len(comm) :])
    words = words.removeprefix(signal + " ")  # `SIGSEGV sent by …`
    # the kernel cuts a comm at 15 bytes
    known = comm == program or (len(comm.encode()) >= 15 and program.startswith(comm))
    if not words:
        return "" if known else f"in {comm}"
    return words + (f", in {place}" if place else "") + ("" if known else f" ({comm})")


def _is_signal(word: str) -> bool:
    # not by a regular expression, whose compilation takes as long as a page of titles
    rest = word[3:].replace("+", "0")
    return word.startswith("SIG") and rest.isascii() and rest.isalnum() and rest == rest.upper()


def _split(rest: str) -> tuple[str, str]:
    """Split `, place: words`, or `: words`."""
    if rest.startswith(", "):
        place, _, words = rest[2:].partition(": ")
        return (place, words) if words else ("", place)
    return "", rest[2:]
