"""What the distribution holds besides modules."""

from importlib.resources import files


def test_the_templates_and_static_files_are_there() -> None:
    """An installed package draws its pages, and carries htmx with its licence."""
    package = files("durable_web")
    assert package.joinpath("templates", "base.html").is_file()
    assert {path.name for path in package.joinpath("static").iterdir()} >= {
        *("durable.css", "htmx.min.js", "hx-sse.min.js", "htmx-LICENSE.txt"),
    }
