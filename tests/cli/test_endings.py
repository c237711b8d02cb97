"""How the command ends."""

from tests.cli.conftest import Durable


def test_a_run_that_is_not_there_is_exit_code_3(durable: Durable, url: str) -> None:
    """Each store is opened by its URL, and a run that it doesn't hold is not found."""
    done = durable("why", "nobody", "--store", url)
    assert (done.code, done.out) == (3, "")
    assert "there is no run 'nobody'" in done.err
