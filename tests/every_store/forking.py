"""Processes of the tests' own: one that has imported everything forks each of them, and they import nothing again."""

from __future__ import annotations

import multiprocessing
from typing import Any

CONTEXT: Any = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
CONTEXT.set_forkserver_preload(
    [
        *("tests.every_store.programs", "tests.every_store.stopping"),
        *("durable_file", "durable_postgres", "durable_redis", "durable_s3", "durable_sqlite"),
    ]
)
