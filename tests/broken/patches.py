"""What is broken on purpose, and the tests that have to notice.

A row breaks one guarantee: `old` stands exactly once in `file`, `new` takes its place, and then each of `tests` fails, which are
ids as pytest takes them. Where code moves, change `file` and `old`; where a guarantee goes, delete its row. `nox -s broken` tries
all rows, `nox -s broken -- redis` those whose names hold "redis".
"""

from __future__ import annotations

from typing import NamedTuple


class Patch(NamedTuple):
    """One way to break a guarantee."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


CORE = "packages/durable-core/src/durable_core"
FILE = "packages/durable-file/src/durable_file"
POSTGRES = "packages/durable-postgres/src/durable_postgres"
REDIS = "packages/durable-redis/src/durable_redis"
S3 = "packages/durable-s3/src/durable_s3"

PATCHES = [
    Patch(
        "file: an append returns without its sync",
        f"{FILE}/_log.py",
        '            _disk.write(fd, b"\\n".join(lines) + b"\\n")\n            _disk.sync(fd)\n',
        '            _disk.write(fd, b"\\n".join(lines) + b"\\n")\n',
        ("tests/file/test_sync.py::test_no_append_returns_before_its_sync",),
    ),
    Patch(
        "file: a sync asks nothing of the system",
        f"{FILE}/_disk.py",
        "        os.fdatasync(fd)\n",
        "        pass\n",
        ("tests/file/test_sync.py::test_syncs_reach_the_system",),
    ),
    Patch(
        "file: what a failed append wrote stays",
        f"{FILE}/_log.py",
        "            self._cut_back(fd)\n",
        "",
        ("tests/file/test_sync.py::test_failure_is_cut_back_and_raised",),
    ),
    Patch(
        "file: no line is checked",
        f"{FILE}/_lines.py",
        """    if line[:_HEAD] != b'{"crc":"%08x",' % crc32(rest):\n""",
        "    if not rest:\n",
        ("tests/file/test_damage.py::test_every_flipped_bit",),
    ),
    Patch(
        "memory: the last record takes the slot",
        f"{CORE}/memory.py",
        "        holder = entries.setdefault((step_id, revision), record)\n",
        "        holder = entries[step_id, revision] = record\n",
        (
            "tests/core/test_contract_memory.py::TestMemoryStore::test_a_taken_slot_returns_its_holder",
            "tests/core/test_contract_memory.py::TestMemoryStore::test_tasks_race_for_one_slot",
        ),
    ),
    Patch(
        "postgres: the last record takes the slot",
        f"{POSTGRES}/_rows.py",
        'values ({values}) on conflict do nothing"\n',
        'values ({values}) on conflict (run_id, step_id, revision) do update set id = excluded.id, result = excluded.result"\n',
        ("tests/postgres/test_contract_postgres.py::TestPostgresStore::test_a_taken_slot_returns_its_holder",),
    ),
    Patch(
        "redis: a slot is never taken",
        f"{REDIS}/_scripts.py",
        "  if at[2] then\n",
        "  if false then\n",
        ("tests/redis/test_contract.py::TestRedisStore::test_a_taken_slot_returns_its_holder",),
    ),
    Patch(
        "s3: an entry is written over",
        f"{S3}/_bucket.py",
        """client.put_object(**self._put(key, body, storage_class), IfNoneMatch="*")\n""",
        "client.put_object(**self._put(key, body, storage_class))\n",
        ("tests/s3/test_contract_s3.py::TestS3Store::test_a_taken_slot_returns_its_holder",),
    ),
    Patch(
        "an outcome that loses its slot to an intent is dropped",
        f"{CORE}/_log.py",
        "                elif holder.status in OUTCOMES or not decide:\n",
        "                elif holder is not None:\n",
        (
            "tests/core/test_recording.py::test_an_outcome_that_loses_to_an_open_entry_goes_to_the_next_revision",
            "tests/core/test_at_most_once.py::test_an_outcome_survives_being_reopened_meanwhile",
        ),
    ),
    Patch(
        "at most once: a lost intent runs the function all the same",
        f"{CORE}/_execute.py",
        "        if holder.id == intent.id or holder.status in OUTCOMES:\n",
        "        if True:\n",
        ("tests/core/test_at_most_once.py::test_two_runners_without_the_lock_in_every_interleaving",),
    ),
    Patch(
        "at most once: no intent is recorded",
        f"{CORE}/_execute.py",
        "            if policy.at_most_once:\n",
        "            if False:\n",
        ("tests/core/test_at_most_once.py::test_the_intent_is_recorded_before_the_function_starts",),
    ),
    Patch(
        "an interrupted step runs again",
        f"{CORE}/_execute.py",
        '            if latest.status == "started" and (found := await _recover(run, call, latest)):\n',
        "            if found := None:\n",
        ("tests/core/test_at_most_once.py::test_an_interrupted_step_is_not_run_again",),
    ),
    Patch(
        "a step starts though the lock was lost",
        f"{CORE}/_run.py",
        "        self.lock.lease.check()\n",
        "",
        ("tests/core/test_lock.py::test_no_step_starts_after_the_lock_was_lost",),
    ),
    Patch(
        "the log is read before the lock is held",
        f"{CORE}/_run.py",
        "        await self.lock.__aenter__()\n        try:\n",
        "        await self.load()\n        await self.lock.__aenter__()\n        try:\n            return\n",
        ("tests/core/test_lock.py::test_lock_wait_waits",),
    ),
    Patch(
        "other arguments than recorded go unnoticed",
        f"{CORE}/_execute.py",
        "    if call.fingerprint != record.fingerprint:\n",
        "    if False:\n",
        ("tests/core/test_runner.py::test_other_arguments_than_recorded_are_drift",),
    ),
    Patch(
        "a value that comes back changed is recorded",
        f"{CORE}/_codec.py",
        "        if found is not None:\n            raise self._refused(found.path, found.problem)\n",
        "",
        ("tests/core/test_values_refused.py::test_a_value_that_would_change_is_refused",),
    ),
    Patch(
        "a cancellation while recording leaves no record",
        f"{CORE}/_log.py",
        "        if not isinstance(failure, asyncio.CancelledError):\n",
        "        if isinstance(failure, asyncio.CancelledError):\n            raise failure\n        if True:\n",
        ("tests/core/test_recording.py::test_cancellation_while_recording_records_first",),
    ),
    Patch(
        "`except Exception` in a flow swallows a suspension",
        f"{CORE}/errors.py",
        "class RunSuspended(BaseException):\n",
        "class RunSuspended(Exception):\n",
        ("tests/waiting/test_wait.py::test_except_exception_does_not_swallow_a_suspension",),
    ),
    Patch(
        "arguments have other fingerprints than in old logs",
        f"{CORE}/_calls.py",
        '    encode = msgspec.json.Encoder(enc_hook=hook, order="deterministic").encode\n',
        "    encode = msgspec.json.Encoder(enc_hook=hook).encode\n",
        ("tests/old_logs/test_old_logs.py::test_what_is_recorded_runs_no_more[file-arguments-None]",),
    ),
    Patch(
        "the library's errors have other names than in old logs",
        f"{CORE}/errors.py",
        "class StepFailed(DurableError):\n",
        'class StepFailed(DurableError):\n    __module__ = "durable_core.elsewhere"\n',
        ("tests/old_logs/test_old_logs.py::test_a_flow_that_failed_by_a_step_can_be_retried[file]",),
    ),
    Patch(
        "file: runs have other files than in old folders",
        f"{FILE}/_names.py",
        "digest_size=16)",
        "digest_size=15)",
        ("tests/old_logs/test_old_logs.py::test_every_entry_reads_as_it_was_written[file]",),
    ),
    Patch(
        "a run that was cancelled before it is read goes on",
        f"{CORE}/_log.py",
        "        self.cancelled = self.latest(CANCEL)\n",
        "        self.cancelled: StepRecord | None = None\n",
        ("tests/core/test_cancelling.py::test_a_run_that_was_cancelled_before_it_is_read_starts_nothing",),
    ),
    Patch(
        "an id may stand for two calls",
        f"{CORE}/_prepare.py",
        "    if not call.is_same:\n",
        "    if False:\n",
        ("tests/core/test_identity.py::test_a_loop_with_one_id_is_refused",),
    ),
    Patch(
        "a flow goes on with other input than it began with",
        f"{CORE}/flow.py",
        "            if not self._parameters.is_same(taken, note):\n",
        "            if False:\n",
        ("tests/waiting/test_flow_input.py::test_other_input_is_told_for_any_names",),
    ),
    Patch(
        "a decision binds to nothing",
        f"{CORE}/_wait.py",
        '    if asked.kind == "approval" and record.fingerprint != asked.fingerprint:\n',
        "    if False:\n",
        ("tests/waiting/test_wait.py::test_a_decision_binds_to_what_was_shown",),
    ),
    Patch(
        "redis: a lock is taken from its holder",
        f"{REDIS}/_scripts.py",
        "if held and held ~= ARGV[1] then return held end\n",
        "",
        ("tests/redis/test_contract.py::TestRedisStore::test_a_lock_keeps_others_out",),
    ),
    Patch(
        "redis: a lease that was not renewed in time is taken for held",
        f"{REDIS}/_lease.py",
        "        if now() >= self._deadline:\n            raise LockLost(\n",
        "        if False:\n            raise LockLost(\n",
        ("tests/redis/test_lease.py::test_a_server_that_is_away_for_longer_than_the_lease",),
    ),
    Patch(
        "s3: a lease that was not renewed in time is taken for held",
        f"{S3}/_lease.py",
        "        if not self._lost and _now() >= self._deadline:\n",
        "        if False:\n",
        ("tests/s3/test_lock.py::test_a_holder_that_was_paused_knows_it",),
    ),
    Patch(
        "a forked child makes the ids that its parent makes",
        f"{CORE}/_ids.py",
        "        if forks() != _noticed:\n",
        "        if False:\n",
        ("tests/core/test_record.py::test_a_child_forked_behind_pythons_back_makes_ids_of_its_own",),
    ),
    Patch(
        "postgres: a transaction commits what it did beside another's record",
        f"{POSTGRES}/_transaction.py",
        "            end = sql.commit() if transaction._won else sql.rollback()\n",
        "            end = sql.commit()\n",
        ("tests/postgres/test_postgres_transactions.py::test_of_two_at_once_one_commits",),
    ),
]
