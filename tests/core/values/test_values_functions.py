"""Which type a step's value is recorded as, by what its function says it returns."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Annotated, Any, NoReturn, TypeVar
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from durable_core._values.returns import UNTYPED, codec_for, codec_of
from durable_core.errors import UnrecordableValue

if typing.TYPE_CHECKING:
    from somewhere import OnlyForTyping

T = TypeVar("T")
IntLike = TypeVar("IntLike", bound=int)
P = typing.ParamSpec("P")


@dataclasses.dataclass
class Order:
    id: int


class Shop:
    def method(self) -> Order: ...

    async def slow(self) -> list[Order]: ...

    @classmethod
    def of_class(cls) -> Order: ...

    @staticmethod
    def static() -> Order: ...

    def __call__(self, number: int) -> Order: ...


def plain(number: int = 0) -> Order: ...
async def coroutine() -> Order: ...
def awaitable() -> Awaitable[Order]: ...
def coroutine_of() -> Coroutine[Any, Any, Order]: ...
def future() -> asyncio.Future[Order]: ...
def task() -> asyncio.Task[Order]: ...
def quoted() -> "Order": ...  # noqa: UP037
def parameter_for_typing(x: OnlyForTyping) -> Order: ...
def nothing() -> None: ...
def anything() -> Any: ...
def an_object() -> object: ...
def generic(x: T) -> T: ...
def bound(x: IntLike) -> IntLike: ...
def bare_awaitable() -> Awaitable: ...
def raising() -> NoReturn: ...
def annotated() -> Annotated[int, ["unhashable"]]: ...
def untyped(): ...


def passing(fn: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return fn(*args, **kwargs)

    return wrapper


def collecting(fn: Callable[P, Iterator[T]]) -> Callable[P, list[T]]:
    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> list[T]:
        return list(fn(*args, **kwargs))

    return wrapper


@collecting
def numbers():
    yield 1


SHOP = Shop()


@pytest.mark.parametrize(
    ("fn", "type_"),
    [
        (plain, Order),
        (coroutine, Order),
        (awaitable, Order),
        (coroutine_of, Order),
        (future, Order),
        (task, Order),
        (quoted, Order),
        (parameter_for_typing, Order),
        (SHOP.method, Order),
        (SHOP.slow, list[Order]),
        (Shop.of_class, Order),
        (SHOP.of_class, Order),
        (Shop.static, Order),
        (Shop.__dict__["static"], Order),
        (SHOP, Order),
        (functools.partial(plain, 1), Order),
        (functools.partial(functools.partial(SHOP.method)), Order),
        (functools.partial(SHOP, 1), Order),
        (passing(plain), Order),
        (passing(passing(coroutine)), Order),
        (passing(SHOP.slow), list[Order]),
        (passing(functools.partial(plain, 1)), Order),
        (functools.partial(passing(SHOP), 1), Order),
        (functools.lru_cache(plain), Order),
        (Order, Order),
        (functools.partial(Order, 1), Order),
        (int, int),
        (nothing, None),
        (bound, int),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_return_annotation_gives_the_type(fn: Callable[..., Any], type_: Any) -> None:
    """Through partials, methods, callable objects, wrappers and awaitables, the annotation of what runs counts."""
    for _ in range(3):
        assert codec_of(fn) is codec_for(type_)


@pytest.mark.parametrize(
    "fn",
    [
        untyped,
        lambda: 1,
        functools.partial(untyped),
        passing(untyped),
        numbers,
        anything,
        an_object,
        generic,
        bare_awaitable,
        raising,
        len,
        "x".upper,
        dict.fromkeys,
        object,
        Mock(),
        MagicMock(),
        AsyncMock(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_without_an_annotation_there_is_no_type(fn: Callable[..., Any]) -> None:
    """What says nothing, or anything, is untyped."""
    for _ in range(3):
        assert codec_of(fn) is UNTYPED


def test_an_unhashable_annotation_works() -> None:
    """Metadata in Annotated may be of any kind."""
    assert codec_of(annotated).record(5) == (b"5", 5)


def test_nothing_declared_is_nothing_returned() -> None:
    """A function that says it returns None has to return None."""
    assert codec_of(nothing).record(None) == (b"null", None)
    with pytest.raises(UnrecordableValue, match=r"at `\$`: 5 \(int\)"):
        codec_of(nothing).record(5)


def test_an_annotation_that_names_nothing_is_refused() -> None:
    """The error names the function, the annotation and the way out."""

    def lost() -> OnlyForTyping: ...

    with pytest.raises(TypeError, match=r"'OnlyForTyping' of .*lost\(\).*returns="):
        codec_of(lost)
    with pytest.raises(TypeError, match=r"OnlyForTyping.*lost\(\)"):
        codec_of(functools.partial(passing(lost)))


def test_a_type_that_cannot_be_recorded_names_the_function() -> None:
    """A refused type says which function it came from."""

    def locked() -> threading.Event: ...
    async def awaiting() -> Awaitable[int]: ...
    def streaming() -> AsyncIterator[int]: ...

    for fn in (locked, awaiting, streaming):
        with pytest.raises(TypeError, match=rf"{fn.__name__}\(\).*returns="):
            codec_of(fn)
    with pytest.raises(TypeError, match="Event"):
        codec_of(threading.Event)


def test_generators_are_refused() -> None:
    """A generator is not a value, annotated or not."""

    def generator():
        yield 1

    async def stream() -> AsyncIterator[int]:
        yield 1

    async def unannotated():
        yield 1

    for fn in (generator, stream, unannotated, functools.partial(generator)):
        for _ in range(2):
            with pytest.raises(TypeError, match="generator"):
                codec_of(fn)


@pytest.mark.parametrize("fn", [5, None, "plain", [plain]])
def test_what_cannot_be_called_is_refused(fn: Any) -> None:
    """Only a callable has a result."""
    with pytest.raises(TypeError, match="not callable"):
        codec_of(fn)


def test_one_code_with_several_annotations() -> None:
    """A function made again and again has the annotation of each time, as an object or as a name in a closure."""

    def make(kind: Any) -> Callable[..., Any]:
        def as_object(): ...

        as_object.__annotations__["return"] = kind
        return as_object

    def close_over(kind: Any) -> Callable[..., Any]:
        def by_name() -> list[kind]:
            return [kind()]

        return by_name

    for kind in (int, str, int, Order):
        assert codec_of(make(kind)) is codec_for(kind)
        assert codec_of(close_over(kind)) is codec_for(list[kind])


def test_equal_code_in_two_modules_is_not_confused() -> None:
    """The same text in two modules means each module's own class."""
    source = compile("def fetch() -> 'Thing': ...", "same.py", "exec")
    again = compile("def fetch() -> 'Thing': ...", "same.py", "exec")
    first: dict[str, Any] = {"Thing": int}
    second: dict[str, Any] = {"Thing": str}
    exec(source, first)
    exec(again, second)
    assert first["fetch"].__code__ == second["fetch"].__code__
    assert codec_of(first["fetch"]) is codec_for(int)
    assert codec_of(second["fetch"]) is codec_for(str)
    assert codec_of(passing(first["fetch"])) is codec_for(int)
    assert codec_of(passing(second["fetch"])) is codec_for(str)


def test_a_name_that_is_not_yet_assigned_is_refused_until_it_is() -> None:
    """The closure is read anew each time."""

    def later() -> Later:
        return Later()

    with pytest.raises(TypeError, match="Later"):
        codec_of(later)
    Later = Order  # noqa: N806
    assert codec_of(later) is codec_for(Order)
