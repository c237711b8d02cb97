"""The signed tokens of the page: those of its forms, sessions and links."""

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
    """Return the secret. Raises `TypeError` or `ValueError` if it is unsuitable, without showing it."""
    if not isinstance(secret, str):
        raise TypeError(f"secret must be a str, not a {type(secret).__name__}")
    if len(secret) < _SHORTEST:
        raise ValueError(
            f"secret must have {_SHORTEST} characters or more, not {len(secret)}; make one: python -c"
            " 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return secret


class Tokens:
    """Signs what a page hands out and gets back. Each kind has its own salt, so that one is never taken for another."""

    def __init__(self, secret: str) -> None:
        self._forms: Final = _serializer(secret, "form")
        self._sessions: Final = _serializer(secret, "session")
        self._links: Final = _serializer(secret, "decision link")
        self._questions: Final = Signer(secret, salt="durable_web: question", **_SIGNER)

    def for_forms(self, name: str) -> str:
        """Return the token for this user's forms."""
        return self._forms.dumps(name)

    def is_form_of(self, token: str, name: str) -> bool:
        """Return True if a form was made for this user, within a day."""
        return bool(_loaded(self._forms, token, _PAGE_LASTS) == name)

    def for_session(self) -> str:
        """Return the cookie of a visitor who came with the one-time link."""
        return self._sessions.dumps("local")

    def is_session(self, token: str) -> bool:
        """Return True if the visitor came with the one-time link, within twelve hours."""
        return bool(_loaded(self._sessions, token, _SESSION_LASTS) == "local")

    def for_link(self, asked: dict[str, Any]) -> str:
        """Return the token of a decision link."""
        return self._links.dumps(asked)

    def mark(self, question: str) -> str:
        """Return a mark of a question for forms and links. It doesn't reveal what `redact=` hides."""
        return self._questions.get_signature(question).decode()

    def link_of(self, token: str) -> dict[str, Any] | None:
        """Return the content of a link; None if it was changed. The caller must check its `expires`."""
        asked = _loaded(self._links, token, None)
        return asked if isinstance(asked, dict) else None


def _serializer(secret: str, what: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(secret, salt=f"durable_web: {what}", signer_kwargs=_SIGNER)


def _loaded(serializer: URLSafeTimedSerializer, token: str, lasts: timedelta | None) -> Any:
    """Return the signed value; None if the signature is wrong or too old."""
    try:
        return serializer.loads(token, max_age=None if lasts is None else int(lasts.total_seconds()))
    except (BadData, UnicodeError):
        return None
