"""`python -m durable_cli`."""

from .main import main

main()
