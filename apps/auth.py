"""Who is asking: nobody in particular, a name and password from a file, or what a proxy in front says.

The password file has one line for each person, `name:scrypt$n$r$p$salt$hash`; `ragtune password NAME --auth FILE`
writes it. A browser logs in on a page of its own and gets a cookie; programs send `Authorization: Bearer name:password`
(what OpenAI clients call the API key) or Basic. Ten wrong passwords in a row and the name has to wait.

What is behind the door learns the name from the header `x-ragtune-user`, which is removed from whatever comes in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apps.store import ANYONE
from rag.errors import ConfigError, UsageError

HEADER = "x-ragtune-user"
COOKIE = "ragtune_session"
COOKIE_SECONDS = 14 * 24 * 3600
WRONG_ALLOWED = 10
WAIT_SECONDS = 60.0
"""After WRONG_ALLOWED wrong passwords; doubled by each further one, up to an hour."""
_MOST_WAIT = 3600.0
_KNOWN_SECONDS = 300.0
_N, _R, _P = 2**14, 8, 1  # scrypt as RFC 7914 and OWASP give it for interactive logins: 16 MiB, some 50 ms
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
MIN_PASSWORD = 8


class Refused(Exception):
    """Not let in. `retry_after` is set where too many wrong passwords came before."""

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def hash_password(password: str) -> str:
    """What is kept of a password: `scrypt$n$r$p$salt$hash`, both in base64."""
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P, dklen=32)
    return f"scrypt${_N}${_R}${_P}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def verify_password(password: str, kept: str) -> bool:
    """Whether a password is the one that was hashed. ConfigError for a line that is no hash of ours."""
    try:
        kind, n, r, p, salt, digest = kept.split("$")
        wanted = base64.b64decode(digest, validate=True)
        if kind != "scrypt" or int(n) * int(r) > 2**20 or int(p) > 16:
            raise ValueError(kind)
        made = hashlib.scrypt(
            password.encode(), salt=base64.b64decode(salt, validate=True), n=int(n), r=int(r), p=int(p),
            dklen=len(wanted), maxmem=2**28,
        )  # fmt: skip
    except (ValueError, binascii.Error) as error:
        raise ConfigError(f"A line of the password file is no password hash ({error}); write it anew.") from None
    return hmac.compare_digest(made, wanted)


def read_passwords(path: Path) -> dict[str, str]:
    """Hashes by name. ConfigError for a file that cannot be read, has no names, or is readable by others."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"The password file {path} cannot be read ({error.strerror}). Make it: ragtune password NAME --auth {path}"
        ) from None
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"The password file {path} can be read by others. Type: chmod 600 {path}")
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, _, kept = line.strip().partition(":")
        if not name or name.startswith("#"):
            continue
        if not _NAME.fullmatch(name) or not kept.startswith("scrypt$"):
            raise ConfigError(f"{path}, line {number} is not name:scrypt$…; `ragtune password NAME --auth {path}`.")
        found[name] = kept
    if not found:
        raise ConfigError(f"The password file {path} names nobody. `ragtune password NAME --auth {path}` adds one.")
    return found


def set_password(path: Path, name: str, password: str) -> bool:
    """Add a person or change a password; True when the name is new. UsageError for a bad name or short password."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"The name {name[:80]!r} cannot be: letters, digits, and _ . @ - are allowed, up to 64 of them."
        )
    if len(password) < MIN_PASSWORD:
        raise UsageError(f"The password has {len(password)} characters; it needs at least {MIN_PASSWORD}.")
    people = read_passwords(path) if path.exists() else {}
    new = name not in people
    people[name] = hash_password(password)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write("".join(f"{who}:{kept}\n" for who, kept in people.items()))
        out.flush()
        os.fsync(out.fileno())
    os.replace(aside, path)
    return new


@dataclass(slots=True)
class _Wrong:
    count: int = 0
    until: float = 0.0


class Door:
    """Decides who a request comes from. Without `passwords` and `header` everybody is the same user.

    `header`: the name of a header that a proxy sets to the user it has checked; requests without it are refused. Only
    requests from `proxies` (addresses) may bring it.
    """

    def __init__(
        self,
        *,
        passwords: Path | None = None,
        header: str | None = None,
        proxies: tuple[str, ...] = ("127.0.0.1", "::1"),
    ) -> None:
        if passwords is not None and header is not None:
            raise UsageError("Give --auth FILE or --user-header NAME, not both.")
        self.header = header.lower() if header else None
        self.proxies = proxies
        self._file = passwords
        self._people = read_passwords(passwords) if passwords else {}
        self._stamp = passwords.stat().st_mtime_ns if passwords else 0
        self._secret = secrets.token_bytes(32)
        self._nobody = hash_password(secrets.token_hex(16)) if passwords else ""
        self._known: dict[bytes, tuple[str, float]] = {}
        self._wrong: dict[str, _Wrong] = {}
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether everybody may come in."""
        return self._file is None and self.header is None

    @property
    def asks(self) -> bool:
        """Whether there is a login page."""
        return self._file is not None

    def who(self, headers: Mapping[str, str], client: str = "") -> str | None:
        """The user of a request, None when it must log in first. Refused for a wrong password or a foreign proxy."""
        if self.open:
            return ANYONE
        if self.header is not None:
            if client not in self.proxies:
                raise Refused(f"Requests must come through the proxy; {client or 'this address'} is none.")
            name = headers.get(self.header, "")
            if not _NAME.fullmatch(name):
                raise Refused(f"The proxy did not say who is asking (header {self.header}).")
            return name
        given = _credentials(headers.get("authorization", ""))
        if given is not None:
            return self.check(*given)
        return self._of_cookie(headers.get("cookie", ""))

    def check(self, name: str, password: str) -> str:
        """The name, when the password is right. Refused when it is wrong, or when too many wrong ones came before."""
        self._reload()
        key = hmac.digest(self._secret, f"{name}\0{password}\0{self._people.get(name, '')}".encode(), "sha256")
        now = time.monotonic()
        with self._lock:
            wrong = self._wrong.get(name)
            known = self._known.get(key)
            if known is not None and known[1] > now:
                return name
            if wrong is not None and wrong.count >= WRONG_ALLOWED and wrong.until > now:
                seconds = max(1, round(wrong.until - now))
                raise Refused(f"Too many wrong passwords. Try again in {seconds} seconds.", seconds)
            # Counted before it is looked at, so that many guesses at once are counted too.
            self._wrong.setdefault(name[:64], _Wrong()).count += 1
            mine = self._wrong[name[:64]]
            over = mine.count - WRONG_ALLOWED
            mine.until = now + min(_MOST_WAIT, WAIT_SECONDS * 2 ** max(0, min(over, 10)))
            if len(self._wrong) > 10_000:  # made-up names must not fill the memory
                self._wrong = {k: w for k, w in self._wrong.items() if w.until > now}
        kept = self._people.get(name) or self._nobody  # a name that is not there takes as long
        right = verify_password(password, kept) and name in self._people
        if not right:
            raise Refused("The name or the password is wrong.")
        with self._lock:
            self._wrong.pop(name, None)
            self._known = {k: v for k, v in self._known.items() if v[1] > now}
            self._known[key] = (name, now + _KNOWN_SECONDS)
        return name

    def cookie(self, name: str) -> str:
        """The value of a session cookie for a user; it ends with the server, or after two weeks."""
        text = json.dumps([name, int(time.time()) + COOKIE_SECONDS])
        body = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")  # "=" would be quoted in a cookie
        return f"{body}.{self._seal(body, name)}"

    def _seal(self, body: str, name: str) -> str:
        """Another password makes earlier cookies worthless."""
        return hmac.digest(self._secret, f"{body}\0{self._people.get(name, '')}".encode(), "sha256").hex()

    def _of_cookie(self, text: str) -> str | None:
        for part in text.split(";"):
            key, _, value = part.strip().partition("=")
            body, _, seal = value.partition(".")
            if key != COOKIE or not seal:
                continue
            try:
                name, until = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            except (ValueError, TypeError):
                continue
            self._reload()
            if hmac.compare_digest(seal, self._seal(body, str(name))) and time.time() < until and name in self._people:
                return str(name)
        return None

    def _reload(self) -> None:
        """A password that was changed or taken away counts from the next request on."""
        if self._file is None:
            return
        try:
            stamp = self._file.stat().st_mtime_ns
            if stamp != self._stamp:
                self._people, self._stamp = read_passwords(self._file), stamp
        except (OSError, ConfigError):
            self._people = {}  # a file that is gone or broken lets nobody in


def _credentials(value: str) -> tuple[str, str] | None:
    kind, _, rest = value.strip().partition(" ")
    if kind.lower() == "bearer":
        text = rest.strip()
    elif kind.lower() == "basic":
        try:
            text = base64.b64decode(rest.strip(), validate=True).decode()
        except (ValueError, binascii.Error):
            return None
    else:
        return None
    name, colon, password = text.partition(":")
    return (name, password) if colon else None


def user_of(headers: Mapping[str, str]) -> str:
    """The user of a request that came through the door."""
    return headers.get(HEADER) or ANYONE
