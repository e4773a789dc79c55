"""Checks the passwords of clients of the metrics. Only importer of bcrypt.

A check takes a quarter of a second of CPU, on purpose. So each is made only once, in a separate
thread, and its result is remembered. A client that tries passwords can use at most a quarter of one
CPU.
"""

import hmac
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping

import bcrypt

from crashd.domain.web.httphead import parse_basic
from crashd.edge.web.webguard import Question
from crashd.errors import ConfigError

WAITING_MAX = 32
WRONG_MAX = 1000
"""Remembered wrong credentials, so that a client with an old password costs only one check."""
REST = 3
"""After a wrong password the thread rests this many times as long as the check took."""
REST_SECONDS_MAX = 1.0
_PASSWORD_MAX = 72
"""Bytes of a password that bcrypt uses."""


class BasicAuth:
    """The users and their hashes; a `Gate`."""

    def __init__(self, users: Mapping[str, bytes]) -> None:
        """Set the users; their hashes must have bcrypt's form.

        Raises:
            ConfigError: bcrypt does not accept a hash.
        """
        for user, hashed in users.items():
            try:
                bcrypt.hashpw(b"", b"$2b$04$" + hashed[7:29])  # its salt, at the lowest cost
            except ValueError as e:
                raise ConfigError(f"basic_auth_users.{user!r} has no bcrypt hash") from e
        self._users = dict(users)
        # An unknown name takes as long as the most expensive user, so that timing reveals no names.
        cost = max((int(hashed[4:6]) for hashed in users.values()), default=10)
        self._nobody = bcrypt.gensalt(cost) + b"." * 31
        self._key = os.urandom(32)
        self._right: dict[str, bytes] = {}
        """The digest of each user's last correct credentials."""
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Condition()
        self._waiting: list[Question] = []
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.checks = 0
        """How often bcrypt was called."""

    def verdict(self, header: str) -> bool | None:
        """Judge an Authorization header at once; None if that takes a check by bcrypt."""
        found = parse_basic(header)
        if found is None:
            return False
        return self._remembered(found[0], self._digest(*found))

    def _remembered(self, user: str, digest: bytes) -> bool | None:
        with self._lock:
            right = self._right.get(user)
            if right is not None and hmac.compare_digest(right, digest):
                return True
            if digest in self._wrong:  # looked up by a keyed digest: timing reveals nothing
                self._wrong.move_to_end(digest)
                return False
        return None

    def _digest(self, user: str, password: bytes) -> bytes:
        name = user.encode()
        return hmac.digest(self._key, b"%d:%b%b" % (len(name), name, password), "sha256")

    def ask(self, question: Question) -> bool:
        """Queue an Authorization header for the thread; return False if too many are waiting."""
        with self._lock:
            self._waiting = [one for one in self._waiting if not one.cancelled]
            if len(self._waiting) >= WAITING_MAX or self._stopping:
                return False
            self._waiting.append(question)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="passwords", daemon=True)
                self._thread.start()
            self._lock.notify()
        return True

    def stop(self) -> None:
        """End; waiting questions get no answer. Does not wait for the thread."""
        with self._lock:
            self._stopping = True
            self._waiting.clear()
            self._lock.notify()

    def _run(self) -> None:
        while (question := self._next()) is not None:
            found = parse_basic(question.header)
            seconds = 0.0
            if found is not None:
                digest = self._digest(*found)
                remembered = self._remembered(found[0], digest)
                if remembered is None:
                    remembered, seconds = self._check(*found, digest)
                question.let_in = remembered
            question.done(question)
            if seconds and not question.let_in:
                with self._lock:
                    self._lock.wait_for(
                        lambda: self._stopping, min(REST * seconds, REST_SECONDS_MAX)
                    )

    def _next(self) -> Question | None:
        with self._lock:
            self._lock.wait_for(lambda: self._stopping or bool(self._waiting))
            if self._stopping:
                return None
            # At random, so that a client that floods the queue cannot keep another one out of it.
            return self._waiting.pop(random.randrange(len(self._waiting)))

    def _check(self, user: str, password: bytes, digest: bytes) -> tuple[bool, float]:
        """Check by bcrypt, and remember the result; return it and the seconds it took."""
        start = time.monotonic()
        hashed = self._users.get(user, self._nobody)
        # bcrypt 5 refuses longer passwords, older versions cut them; none accepts NUL
        same = bcrypt.checkpw(password[:_PASSWORD_MAX].replace(b"\0", b"\1"), hashed)
        right = same and user in self._users and b"\0" not in password
        with self._lock:
            self.checks += 1
            if right:
                self._right[user] = digest
            else:
                self._wrong[digest] = None
                if len(self._wrong) > WRONG_MAX:
                    self._wrong.popitem(last=False)
        return right, time.monotonic() - start
