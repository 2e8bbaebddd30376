"""UUIDv7 and partitions."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from perdure.identifiers import partition_of, uuid7, uuid7_time


def test_ids_are_version_7_and_tell_their_time() -> None:
    before = time.time()
    identifier = uuid7()
    assert (identifier.version, identifier.variant) == (7, uuid4().variant)
    told = uuid7_time(identifier)
    assert told is not None
    assert before - 0.001 <= told <= time.time() + 0.001
    assert uuid7_time(uuid4()) is None


def test_ids_of_one_process_only_grow() -> None:
    identifiers = [uuid7() for _ in range(20_000)]
    assert identifiers == sorted(identifiers)
    assert len(set(identifiers)) == len(identifiers)


def test_ids_of_many_threads_are_unique() -> None:
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda _: [uuid7() for _ in range(2000)], range(8)))
    assert all(batch == sorted(batch) for batch in batches)
    assert len({identifier for batch in batches for identifier in batch}) == 16_000


FORKS = """
import os
from perdure.identifiers import uuid7
uuid7()
reading, writing = os.pipe()
child = os.fork()
told = " ".join(uuid7().hex[-12:] for _ in range(50)).encode()
if child == 0:
    os.write(writing, told)
    os._exit(0)
os.waitpid(child, 0)
theirs = os.read(reading, 100_000)
assert len(theirs) == len(told) and set(theirs.split()).isdisjoint(told.split())
"""


def test_a_forked_child_has_other_random_bits_than_its_parent() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@given(st.text(), st.text(), st.integers(1, 256))
def test_a_partition_is_in_range_and_always_the_same(tenant: str, agent: str, partitions: int) -> None:
    tenant, agent = (name.encode("utf-8", "replace").decode() for name in (tenant, agent))
    partition = partition_of(tenant, agent, partitions)
    assert 0 <= partition < partitions
    assert partition == partition_of(tenant, agent, partitions)


def test_partitions_never_change_between_releases() -> None:
    names = [("acme", "support-17"), ("", ""), ("ä", "b"), ("ab", "c"), ("a", "bc")]
    assert [partition_of(tenant, agent, 16) for tenant, agent in names] == [0, 14, 12, 8, 12]


def test_names_do_not_run_together() -> None:
    assert len({partition_of("a" * cut, "a" * (20 - cut), 2**60) for cut in range(21)}) == 21


def test_agents_spread_over_the_partitions() -> None:
    counts = Counter(partition_of("t", f"agent-{number}", 16) for number in range(16_000))
    assert len(counts) == 16
    assert all(800 < count < 1200 for count in counts.values())
