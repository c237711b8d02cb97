"""A web page where people see runs and decide approvals: an ASGI app to mount or serve."""

from ._links import decision_link
from ._notifying import Notify
from ._serving import serve
from ._showing import Redact
from ._users import Access, User
from .page import Page, app

__all__ = ["Access", "Notify", "Page", "Redact", "User", "app", "decision_link", "serve"]
