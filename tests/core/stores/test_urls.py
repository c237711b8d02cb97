"""A store's URL: its options, its errors, and no password in anything that is shown."""

import pytest

from durable_core.errors import StoreError
from durable_core.stores.memory import MemoryStore
from durable_core.stores.urls import StoreURL, boolean, integer, seconds

KNOWN = {"ttl": seconds, "lease": seconds, "create": boolean, "pool_size": integer(least=1), "password": integer()}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:SECRET@host:6379/0", "redis://host:6379/…"),
        ("redis://:SECRET@host", "redis://host"),
        ("redis://user:SECRET@[::1]:6379", "redis://[::1]:6379"),
        ("postgresql://user:SEC@RET@host/db", "postgresql://host/…"),
        ("postgresql://user:SECRET@one:5432,two:5433/db", "postgresql://one:5432,two:5433/…"),
        ("postgresql://user@example.com:SECRET@host/db", "postgresql://host/…"),
        ("redis:user:SECRET@host", "redis:…"),
        ("postgresql:/user:SECRET@host/db", "postgresql:…"),
        ("postgresql:///db?host=/tmp&password=SECRET", "postgresql:…?host=…&password=…"),
        ("postgresql:///db?p%61ssword=SECRET", "postgresql:…?password=…"),
        ("postgresql:///db?user=x;password=SECRET", "postgresql:…?user=…"),
        ("postgresql:///db?user=x&password=SEC;RET=1;", "postgresql:…?user=…&password=…"),
        ("postgresql:///db?password=SEC=RET", "postgresql:…?password=…"),
        ("postgresql:///db?two words=SECRET", "postgresql:…?…=…"),
        ("s3://bucket/prefix?aws_secret_access_key=SECRET", "s3://bucket/…?aws_secret_access_key=…"),
        ("s3://bucket/prefix?endpoint_url=http://user:SECRET@localhost:9000", "s3:…"),
        ("redis://user:1234/SECRET@host", "redis:…"),
        ("file:./SECRET", "file:…"),
        ("file:///SECRET/runs?fsync=false", "file:…?fsync=…"),
        ("memory:", "memory:"),
    ],
)
def test_a_url_shows_its_scheme_its_host_and_the_names_of_its_options(url: str, shown: str) -> None:
    """Neither `str` nor `repr` nor an error shows more, however carelessly the URL is written."""
    parsed = StoreURL(url)
    assert str(parsed) == shown
    assert repr(parsed) == f"StoreURL({shown!r})"
    if parsed.query:
        with pytest.raises(StoreError) as unknown:
            parsed.options({})
        told = f"{unknown.value}{unknown.value.__cause__!r}"
        assert shown in told
        assert not any(part in told for part in ("SEC", "RET"))


@pytest.mark.parametrize(
    "password", ["SEC/RET", "SEC?RET", "SEC?RET=1", "SEC/R@E:T?", "SE[CRET", "SEC\u2100RET", "SEC/RET@x", "SEC:RET/RET"]
)
def test_a_password_that_breaks_the_url(password: str) -> None:
    """What would end the host's part must be escaped; the error says so and keeps the secret, its causes too."""
    with pytest.raises(StoreError, match=r"^the URL that begins with 'postgresql:' can't be read; percent-encode") as refused:
        StoreURL(f"postgresql://user:{password}@host/db")
    assert not any(part in str(refused.value) for part in ("SEC", "RET", "user"))
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    "url", ["postgresql:///db#password=SECRET", "postgresql://user:SEC#RET@host/db", "file:./a#b", "file:./a#"]
)
def test_a_fragment_is_refused(url: str) -> None:
    """No store has any: the rest of the path, or of a password, would be lost."""
    with pytest.raises(StoreError, match=r"contains a '#', which would end its path; percent-encode it as %23$") as refused:
        StoreURL(url)
    assert not any(part in str(refused.value) for part in ("SEC", "RET"))


@pytest.mark.parametrize("url", ["postgresql:/app:SECRET@db/prod", "redis:app:SECRET@cache:6379/0", "redis:", "redis:cache"])
def test_a_server_without_slashes(url: str) -> None:
    """The address would be taken for a path, and the default server be used: it is refused, and shown to nobody."""
    scheme = url.partition(":")[0]
    with pytest.raises(StoreError, match=rf"has no server; write {scheme}://host with two slashes$") as refused:
        StoreURL(url).require_server()
    assert "SECRET" not in str(refused.value)
    StoreURL(f"{scheme}://host/x").require_server()
    StoreURL(f"{scheme}:///x").require_server()


@pytest.mark.parametrize("url", ["postgresql://ann:pa@ss/SECRET@host/db", "redis://ann:12?SECRET@host/0"])
def test_a_password_that_hides_the_server(url: str) -> None:
    """An @ behind the host means that the host is a piece of the password."""
    with pytest.raises(StoreError, match="can't be read; percent-encode") as refused:
        StoreURL(url).require_server()
    assert "SECRET" not in str(refused.value)
    StoreURL("postgresql://ann:secret@host/db?application_name=a@b").require_server()


def test_the_value_of_an_option_is_not_shown() -> None:
    """It may be a secret: the message names the option and what was expected."""
    with pytest.raises(StoreError, match=r"^option 'password' in redis://host\?password=…: expected a whole number") as refused:
        StoreURL("redis://host?password=SECRET").options(KNOWN)
    assert "SECRET" not in f"{refused.value}{refused.value.__cause__!r}"


def test_options_are_converted() -> None:
    """Each known option goes through its converter."""
    found = StoreURL("xx://h?ttl=1.5&create=true&pool_size=7").options(KNOWN)
    assert found == {"ttl": 1.5, "create": True, "pool_size": 7}
    assert StoreURL("xx://h").options(KNOWN) == {}


def test_an_unknown_option_names_those_known() -> None:
    """All known options are listed, the driver's too, and the nearest one is suggested."""
    with pytest.raises(
        StoreError, match=r"unknown option 'leese' in xx://h.leese=…; known: create, .*ttl.* Did you mean 'lease'"
    ):
        StoreURL("xx://h?leese=1").options(KNOWN)
    with pytest.raises(StoreError, match=r"known: sslmode, .* Did you mean 'sslmode'"):
        StoreURL("xx://h?sslmod=1").options({"ttl": seconds}, also=frozenset({"sslmode"}))
    with pytest.raises(StoreError, match=r"known: none\.$"):
        StoreURL("xx:?wholly=different").options({})


def test_the_drivers_options_are_left_to_the_driver() -> None:
    """What is in `also` is neither converted nor refused, and stays in the URL that the driver gets; ours don't."""
    url = StoreURL("postgresql:///db?sslmode=require&ttl=3&password=a%26b")
    assert url.options({"ttl": seconds}, also=frozenset({"sslmode", "password"})) == {"ttl": 3.0}
    assert url.without({"ttl": seconds}) == "postgresql:///db?sslmode=require&password=a%26b"
    assert StoreURL("redis://u:p@h/0?ttl=3").without({"ttl": seconds}) == "redis://u:p@h/0"


@pytest.mark.parametrize("query", ["ttl=1&ttl=2", "ttl=1&ttl=1", "ttl=1&t%74l=2"])
def test_an_option_given_twice(query: str) -> None:
    """Which of two would count nobody can tell."""
    with pytest.raises(StoreError, match="option 'ttl' is given twice"):
        StoreURL(f"xx://h?{query}").options(KNOWN)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        *(
            (f"ttl={text}", "a positive number of seconds")
            for text in ("", "0", "-1", "nan", "inf", "1e3", "1s", "9999999999", "١")
        ),
        *((f"create={text}", "true or false") for text in ("", "1", "yes", "True")),
        *((f"pool_size={text}", "a whole number of at least 1") for text in ("", "0", "-1", "1.5", "1_0", "x", "9" * 30)),
    ],
)
def test_a_value_that_does_not_convert(query: str, expected: str) -> None:
    """The message gives the option and what was expected."""
    name = query.partition("=")[0]
    with pytest.raises(StoreError) as refused:
        StoreURL(f"xx://h?{query}").options(KNOWN)
    assert str(refused.value) == f"option {name!r} in xx://h?{name}=…: expected {expected}"


@pytest.mark.parametrize(
    "url",
    [
        *("runs", "./runs", "C:\\runs", "c:/runs", "/var/runs", "", "user", "~/runs"),
        *("//user:SECRET@host/db", "//user:SEC/RET@host/db", "host/db?password=SECRET", "./a?token=SECRET", "1user:SECRET"),
        *("u:SECRET@host/x", "u:SEC@RET:SEC/RET@host", ":SECRET@host", "my_app:SECRET@host", "u:SEC\nRET@host"),
    ],
)
def test_a_url_without_a_scheme(url: str) -> None:
    """A path, of Windows too, is told how to be written; nothing is shown of what may be an address with a secret."""
    with pytest.raises(StoreError) as refused:
        StoreURL(url)
    assert str(refused.value) == (
        "the store's URL has no scheme; begin it with one such as redis:// or postgresql://, or write sqlite: before the"
        " path of an SQLite file, as in sqlite:./runs.db, or file: before that of a folder, as in file:./runs"
    )


@pytest.mark.parametrize("url", [None, 7, b"file:x"])
def test_a_url_that_is_no_text(url: object) -> None:
    """Anything but a str is a TypeError."""
    with pytest.raises(TypeError, match="a store's URL must be a str such as"):
        StoreURL(url)  # type: ignore[arg-type]


def test_a_scheme_is_lower_case() -> None:
    """Schemes don't care for case."""
    assert StoreURL("File:./Runs").scheme == "file"


def test_a_path_is_decoded() -> None:
    """`path` is what the URL means."""
    assert StoreURL("file:./a%20b%25").path == "./a b%"


@pytest.mark.parametrize("url", ["memory:x", "memory://x", "memory:///x"])
def test_a_store_that_takes_nothing(url: str) -> None:
    """A path that would be ignored is refused."""
    with pytest.raises(StoreError, match="takes no path; write 'memory:'"):
        MemoryStore.from_url(url)
