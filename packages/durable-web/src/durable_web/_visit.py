"""One request: who asks, what they may, and where the page is."""

from __future__ import annotations

from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request

from durable_core.record import check_id

from ._forms import Form
from ._origin import url_under
from ._users import Access, User, may


class Visit:
    """A visitor's request, after it was checked."""

    def __init__(self, request: Request, base: str, user: User, access: Access, token: str, form: Form) -> None:
        self.request: Final = request
        self.base: Final = base
        self.user: Final = user
        self.access: Final = access
        self.token: Final = token
        """The token that each form of the page must contain."""
        self.form: Final = form
        """The posted form; empty without one."""

    def may(self, needs: Access) -> bool:
        """Return True if the visitor has the access `needs`."""
        return may(self.access, needs)

    def url(self, path: str = "", **query: Any) -> str:
        """Return the URL of a page or a static file; None and empty texts are left out of the query."""
        return url_under(self.base, path, **query)

    def asked(self, name: str) -> str:
        """Return a field of the query, or an empty text. Raises `HTTPException` for NUL, which some stores can't look for."""
        if "\0" in (given := self.request.query_params.get(name, "")):
            raise HTTPException(400, f"{name} must be text without control characters, not {given!r}")
        return given

    def id(self, name: str) -> str:
        """Return the id of a run or step, from the form or the query. Raises `HTTPException` for an invalid one."""
        given = self.form.text(name) if self.request.method == "POST" else self.asked(name)
        try:
            return check_id(name, given)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
