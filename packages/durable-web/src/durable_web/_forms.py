"""Posted forms, of bounded size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

_MOST_BYTES: Final = 1 << 20
_MOST_FIELDS: Final = 1000
_TYPE: Final = "application/x-www-form-urlencoded"


class Form:
    """The fields of a form."""

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        self._fields: Final = fields

    def text(self, name: str) -> str:
        """Return a field as it was typed, or an empty string."""
        return self.all(name)[-1] if self.all(name) else ""

    def all(self, name: str) -> Sequence[str]:
        """Return all values of a field that is in the form several times."""
        return self._fields.get(name, ())


async def read_form(request: Request) -> Form:
    """Read a posted form. Raises `HTTPException` for anything but a form of at most 1 MiB."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _TYPE:
        raise HTTPException(415, "only a form can be posted here; nothing was done")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > _MOST_BYTES:
        raise HTTPException(413, "the form is larger than 1 MiB; nothing was done")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MOST_BYTES:
                raise HTTPException(413, "the form is larger than 1 MiB; nothing was done")
    except ClientDisconnect:
        raise HTTPException(400, "the form is incomplete; nothing was done") from None
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:  # not UTF-8, or too many fields
        raise HTTPException(400, "the form can't be read; nothing was done") from None
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value.replace("\r\n", "\n"))  # as browsers send line ends
    return Form(fields)
