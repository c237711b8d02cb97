"""What the page signs: the tokens of its forms, sessions, and links."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any, Final

from itsdangerous import BadData, Signer, URLSafeTimedSerializer

_PAGE_LASTS: Final = timedelta(days=1)
_SESSION_LASTS: Final = timedelta(hours=12)
_SHORTEST: Final = 16
_SIGNER: Final[dict[str, Any]] = {"key_derivation": "hmac", "digest_method": hashlib.sha256}


def check_secret(secret: object) -> str:
    """Return the secret. Raises `TypeError` or `ValueError` for what can't be one, without showing it."""
    if not isinstance(secret, str):
        raise TypeError(f"secret must be a str, not a {type(secret).__name__}")
    if len(secret) < _SHORTEST:
        raise ValueError(
            f"secret must have {_SHORTEST} characters or more, not {len(secret)}; make one: python -c"
            " 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return secret


class Tokens:
    """Signs what a page hands out and gets back. Each kind has a salt of its own: one is never taken for another."""

    def __init__(self, secret: str) -> None:
        self._forms: Final = _serializer(secret, "form")
        self._sessions: Final = _serializer(secret, "session")
        self._links: Final = _serializer(secret, "decision link")
        self._questions: Final = Signer(secret, salt="durable_web: question", **_SIGNER)

    def for_forms(self, name: str) -> str:
        """Return the token that the forms of this user carry."""
        return self._forms.dumps(name)

    def is_form_of(self, token: str, name: str) -> bool:
        """Tell whether a form was made for this user, within a day."""
        return bool(_loaded(self._forms, token, _PAGE_LASTS) == name)

    def for_session(self) -> str:
        """Return what the cookie holds of a visitor who came by the one-time link."""
        return self._sessions.dumps("local")

    def is_session(self, token: str) -> bool:
        """Tell whether the visitor came by the one-time link, within twelve hours."""
        return bool(_loaded(self._sessions, token, _SESSION_LASTS) == "local")

    def for_link(self, asked: dict[str, Any]) -> str:
        """Return what a decision link carries."""
        return self._links.dumps(asked)

    def mark(self, question: str) -> str:
        """Return what stands for a question in forms and links: nobody can guess by it what `redact=` hides of the question."""
        return self._questions.get_signature(question).decode()

    def link_of(self, token: str) -> dict[str, Any] | None:
        """Return what a link carries; None where it was changed. Its `expires` is the caller's to check."""
        asked = _loaded(self._links, token, None)
        return asked if isinstance(asked, dict) else None


def _serializer(secret: str, what: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(secret, salt=f"durable_web: {what}", signer_kwargs=_SIGNER)


def _loaded(serializer: URLSafeTimedSerializer, token: str, lasts: timedelta | None) -> Any:
    """Return what was signed; None where it was not, or too long ago."""
    try:
        return serializer.loads(token, max_age=None if lasts is None else int(lasts.total_seconds()))
    except (BadData, UnicodeError):
        return None
