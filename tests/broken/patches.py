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
        """    return line[:_HEAD] == b'{"crc":"%08x",' % crc32(line[_HEAD:])\n""",
        "    return len(line) > _HEAD\n",
        ("tests/file/test_damage.py::test_every_flipped_bit",),
    ),
    Patch(
        "file: the folder of a new log is not synced",
        f"{FILE}/_log.py",
        "                _disk.sync_folder(self.path.parent)  # whoever put the file there may have died before this\n",
        "",
        ("tests/file/test_sync.py::test_name_put_there_by_another", "tests/file/test_sync.py::test_new_names_are_synced"),
    ),
    Patch(
        "file: a holder doesn't look whether its lock file is still there",
        f"{CORE}/stores/filelock.py",
        "            if self._file.is_there():\n",
        "            if self._file:\n",
        ("tests/file/test_lock.py::test_lock_file_that_is_not_the_same_any_more",),
    ),
    Patch(
        "file: a lock is taken on a file that was replaced",
        f"{CORE}/stores/filelock.py",
        "                is_there = file.is_there()\n",
        "                is_there = True\n",
        ("tests/file/test_lock.py::test_lock_file_that_is_not_the_same_any_more",),
    ),
    Patch(
        "file: all runs share one lock file",
        f"{CORE}/stores/filelock.py",
        "RUN_FILES: Final = 64\n",
        "RUN_FILES: Final = 1\n",
        ("tests/file/test_lock.py::test_cost_of_one_more_lock",),
    ),
    Patch(
        "file: what may only be read is not read without a lock",
        f"{CORE}/stores/filelock.py",
        "            if shared and error.errno in {*_DENIED, errno.ENOENT}:\n",
        "            if not error.errno:\n",
        ("tests/file/test_posix_faults.py::test_read_only_folder",),
    ),
    Patch(
        "file: being asked who holds a run makes its lock file",
        f"{CORE}/stores/filelock.py",
        "                file = _files.get(path) or _LockFile(path, _READ)\n",
        "                file = self._file(name, shared=False)\n",
        ("tests/file/test_holder.py::test_asking_makes_nothing",),
    ),
    Patch(
        "file: a holder's note is believed though nobody holds the lock",
        f"{CORE}/stores/filelock.py",
        "            return _read_note(file.fd, position) if is_locked(file.fd, position) else None\n",
        "            return _read_note(file.fd, position)\n",
        ("tests/file/test_holder.py::test_another_process",),
    ),
    Patch(
        "file: a log is written by any thread",
        f"{FILE}/store.py",
        "        return self._lanes[hash(name) % _THREADS]\n",
        "        return self._lanes[id(asyncio.current_task()) // 64 % _THREADS]\n",
        ("tests/file/test_store.py::test_a_log_is_always_written_by_the_same_thread",),
    ),
    Patch(
        "file: a folder's logs are written by one thread",
        f"{FILE}/store.py",
        "_THREADS: Final = 8\n",
        "_THREADS: Final = 1\n",
        ("tests/file/test_store.py::test_logs_of_a_folder_do_not_wait_for_each_other",),
    ),
    Patch(
        "file: a lock whose taker was cancelled stays taken",
        f"{FILE}/store.py",
        "            await to_the_end(_done(opened.common.run(lock.release)))\n",
        "            if lock._lock:\n                await to_the_end(_done(opened.common.run(lock.release)))\n",
        ("tests/file/test_store.py::test_a_lock_does_not_block_the_loop",),
    ),
    Patch(
        "file: a log that changed is not looked at again",
        f"{FILE}/_logs.py",
        "            if self._seen.get(name) != (steps, status):\n",
        "            if name not in self._seen:\n",
        ("tests/file/test_newer.py::test_of_another_process",),
    ),
    Patch(
        "memory: the last record takes the slot",
        f"{CORE}/stores/memory.py",
        "        holder = entries.setdefault((step_id, revision), record)\n",
        "        holder = entries[step_id, revision] = record\n",
        (
            "tests/core/stores/test_contract_memory.py::TestMemoryStore::test_a_taken_slot_returns_its_holder",
            "tests/core/stores/test_contract_memory.py::TestMemoryStore::test_tasks_race_for_one_slot",
        ),
    ),
    Patch(
        "postgres: the last record takes the slot",
        f"{POSTGRES}/_rows.py",
        'as new({texts}) on conflict do nothing"\n',
        'as new({texts}) on conflict (run_id, step_id, revision) do update set id = excluded.id, result = excluded.result"\n',
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
            "tests/core/log/test_recording.py::test_an_outcome_that_loses_to_an_open_entry_goes_to_the_next_revision",
            "tests/core/running/test_at_most_once.py::test_an_outcome_survives_being_reopened_meanwhile",
        ),
    ),
    Patch(
        "at most once: a lost intent runs the function all the same",
        f"{CORE}/_execute.py",
        "        if holder.id == intent.id or holder.status in OUTCOMES:\n",
        "        if True:\n",
        ("tests/core/running/test_at_most_once.py::test_two_runners_without_the_lock_in_every_interleaving",),
    ),
    Patch(
        "at most once: no intent is recorded",
        f"{CORE}/_execute.py",
        "            if policy.at_most_once:\n",
        "            if False:\n",
        ("tests/core/running/test_at_most_once.py::test_the_intent_is_recorded_before_the_function_starts",),
    ),
    Patch(
        "an interrupted step runs again",
        f"{CORE}/_execute.py",
        '            if latest.status == "started" and (found := await _recover(run, call, latest)):\n',
        "            if found := None:\n",
        ("tests/core/running/test_at_most_once.py::test_an_interrupted_step_is_not_run_again",),
    ),
    Patch(
        "a step starts though the lock was lost",
        f"{CORE}/_run.py",
        "        self.lock.lease.check()\n",
        "",
        ("tests/core/log/test_lock.py::test_no_step_starts_after_the_lock_was_lost",),
    ),
    Patch(
        "the log is read before the lock is held",
        f"{CORE}/_run.py",
        "        await self.lock.__aenter__()\n        try:\n",
        "        await self.load()\n        await self.lock.__aenter__()\n        try:\n            return\n",
        ("tests/core/log/test_lock.py::test_lock_wait_waits",),
    ),
    Patch(
        "other arguments than recorded go unnoticed",
        f"{CORE}/_execute.py",
        "    if call.fingerprint != record.fingerprint:\n",
        "    if False:\n",
        ("tests/core/running/test_runner.py::test_other_arguments_than_recorded_are_drift",),
    ),
    Patch(
        "a value that comes back changed is recorded",
        f"{CORE}/_codec.py",
        "        if found is not None:\n            raise self._refused(found.path, found.problem)\n",
        "",
        ("tests/core/values/test_values_refused.py::test_a_value_that_would_change_is_refused",),
    ),
    Patch(
        "a cancellation while recording leaves no record",
        f"{CORE}/_log.py",
        "        if not isinstance(failure, asyncio.CancelledError):\n",
        "        if isinstance(failure, asyncio.CancelledError):\n            raise failure\n        if True:\n",
        ("tests/core/log/test_recording.py::test_cancellation_while_recording_records_first",),
    ),
    Patch(
        "`except Exception` in a flow swallows a suspension",
        f"{CORE}/errors.py",
        "class RunSuspended(BaseException):\n",
        "class RunSuspended(Exception):\n",
        ("tests/core/waiting/test_wait.py::test_except_exception_does_not_swallow_a_suspension",),
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
        ("tests/core/running/test_cancelling.py::test_a_run_that_was_cancelled_before_it_is_read_starts_nothing",),
    ),
    Patch(
        "an id may stand for two calls",
        f"{CORE}/_prepare.py",
        "    if not call.is_same:\n",
        "    if False:\n",
        ("tests/core/calls/test_identity.py::test_a_loop_with_one_id_is_refused",),
    ),
    Patch(
        "a flow goes on with other input than it began with",
        f"{CORE}/flow.py",
        "            if not self._parameters.is_same(taken, note):\n",
        "            if False:\n",
        ("tests/core/flow/test_flow_input.py::test_other_input_is_told_for_any_names",),
    ),
    Patch(
        "a decision binds to nothing",
        f"{CORE}/_wait.py",
        '    if asked.kind == "approval" and record.fingerprint != asked.fingerprint:\n',
        "    if False:\n",
        ("tests/core/waiting/test_wait.py::test_a_decision_binds_to_what_was_shown",),
    ),
    Patch(
        "redis: a lock is taken from its holder",
        f"{REDIS}/_scripts.py",
        "  if held and held ~= value and (dead == '' or held ~= dead) then return held end\n",
        "",
        ("tests/redis/test_contract.py::TestRedisStore::test_a_lock_keeps_others_out",),
    ),
    Patch(
        "redis and s3: a lease that was not renewed in time is taken for held",
        f"{CORE}/stores/lease.py",
        "            elif self._clock.monotonic() >= self._deadline:\n",
        "            elif False:\n",
        (
            "tests/leases/test_holders.py::test_a_frozen_process_finds_its_lock_lost_at_its_first_check[redis]",
            "tests/leases/test_holders.py::test_a_frozen_process_finds_its_lock_lost_at_its_first_check[s3]",
        ),
    ),
    Patch(
        "redis: what was appended is returned without its copies",
        f"{REDIS}/_server.py",
        "        if confirm and (shortage := ",
        "        if False and (shortage := ",
        ("tests/redis/test_copies.py::test_an_append_without_its_copies_raises",),
    ),
    Patch(
        "s3: a scan keeps what it has read",
        f"{S3}/_reader.py",
        '                yield entry\n                entry.body = b""\n',
        "                yield entry\n",
        ("tests/s3/test_scan.py::test_a_scan_is_bounded[False]",),
    ),
    Patch(
        "s3: a scan yields the entries of two logs",
        f"{S3}/_reader.py",
        "                if not entry.body or entry.etag != etag:\n",
        "                if not entry.body:\n",
        ("tests/s3/test_scan.py::test_a_run_that_is_written_anew_during_a_scan",),
    ),
    Patch(
        "redis and s3: a lease that is given back while it is taken stays taken",
        f"{CORE}/stores/lease.py",
        "                await to_the_end(thread.end([(lease, life)]))\n",
        "                await thread.end([(lease, life)])\n",
        ("tests/redis/test_lease.py::test_a_lock_whose_taker_is_cancelled_again_and_again",),
    ),
    Patch(
        "a forked child makes the ids that its parent makes",
        f"{CORE}/_system/ids.py",
        "        if (process := os.getpid()) != _process:\n",
        "        if (process := 0) != _process:\n",
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
