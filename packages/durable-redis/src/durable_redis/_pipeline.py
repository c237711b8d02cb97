"""Many scripts in one round trip."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from durable_core.errors import StoreError

from ._client import Single
from ._copies import Copies
from ._errors import store_error
from ._scripts import Call

_ROUNDS: Final = 4


class Pipelines:
    """Runs scripts in pipelines, one for each node, each with the commands behind it that wait for copies."""

    def __init__(self, client: Single, copies: Copies) -> None:
        self._client: Final = client
        self._copies: Final = copies

    async def send(self, call: Call) -> Any:
        """Run one script without a pipeline and without copies; one that reads, also where the server refuses writes."""
        try:
            return await by_hash(lambda command: self._client.send(command, call.keys[0]), call)
        except ResponseError as error:
            if call.script.reading is None or not _refuses_writes(error):
                raise
            return await self.send(Call(call.script.reading, call.keys, *call.args))

    async def run(self, calls: Sequence[Call], *, confirm: bool) -> list[Any]:
        """Run scripts in pipelines; those that met a server without the script, or a slot that has moved, are sent again."""
        replies: dict[Call, Any] = {}
        left, known = [*calls], True
        for _ in range(_ROUNDS):
            for group in self._client.by_node(left):
                replies.update(zip(group, await self._round(group, known=known, confirm=confirm), strict=True))
            unknown = [call for call in left if isinstance(replies[call], NoScriptError)]
            moved = [call for call in left if self._client.has_moved(replies[call])]
            if not confirm:
                moved += [call for call in left if call.script.reading and _refuses_writes(replies[call])]
            for call in moved:
                # Follows the redirection and learns the new map, without the copies. What runs twice changes nothing.
                reply = await self.send(call)
                replies[call] = replies[call] if confirm else reply
            left, known = unknown + (moved if confirm else []), not unknown
            if not left:
                break
        return [_reply_to(replies[call], call) for call in calls]

    async def _round(self, calls: Sequence[Call], *, known: bool, confirm: bool) -> Sequence[Any]:
        commands = [call.command(known=known) for call in calls]
        answers = await self._client.pipeline([*commands, *(self._copies.commands if confirm else ())], calls[0].keys[0])
        if any(isinstance(answer, ReadOnlyError) for answer in answers):
            await self._client.leave()
        replies = answers[: len(calls)]
        if confirm and (shortage := self._copies.shortage(answers[len(calls) :], calls[0].keys[0])):
            return [reply if isinstance(reply, Exception) else shortage for reply in replies]
        return replies


def _refuses_writes(reply: object) -> bool:
    """Tell whether it is a primary that refuses: a replica says READONLY first."""
    return isinstance(reply, ResponseError) and str(reply).startswith(("MISCONF", "NOREPLICAS"))


async def by_hash(execute: Callable[[tuple[object, ...]], Awaitable[Any]], call: Call) -> Any:
    """Run a script by its hash, and with its source where the server doesn't have it."""
    try:
        return await execute(call.command())
    except NoScriptError:
        return await execute(call.command(known=False))


def _reply_to(reply: Any, call: Call) -> Any:
    if isinstance(reply, Exception) and not isinstance(reply, StoreError):
        return store_error(reply, call.keys[0], appends=call.appends)
    return reply
