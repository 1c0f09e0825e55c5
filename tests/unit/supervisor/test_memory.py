from __future__ import annotations

from flask_backend.supervisor.memory import READ_AGAIN_S, MemoryPolicy, Reading, Usage
from flask_backend.system.procfs import PAGE_BYTES

MB = 1 << 20
POLICY = MemoryPolicy(soft_bytes=100 * MB, hard_bytes=None)


class Process:
    """A process whose memory the test sets, and that counts the expensive readings."""

    def __init__(self, rss: int, private: int) -> None:
        self.rss, self.private, self.readings = rss, private, 0
        self.faults: int | None = rss // PAGE_BYTES
        self.last: Reading | None = None

    def check(self, now: float, policy: MemoryPolicy = POLICY) -> str | None:
        usage = Usage(self.rss, self.faults)
        if not policy.needs_reading(usage, self.last, now):
            return None
        self.readings += 1
        self.last = Reading(now, self.private, usage)
        return policy.reason_to_recycle(self.last)

    def unshare(self, size: int) -> None:
        """Write to shared pages of the given size."""
        self.private += size
        self.faults += size // PAGE_BYTES


def test_shared_pages_do_not_count():
    assert Process(rss=500 * MB, private=50 * MB).check(0.0) is None


def test_private_pages_count():
    reason = Process(rss=500 * MB, private=101 * MB).check(0.0)
    assert reason == "its private memory is 101 MiB, over 100 MiB"


def test_a_process_that_is_small_altogether_is_never_read_exactly():
    process = Process(rss=99 * MB, private=99 * MB)
    assert process.check(0.0) is None
    assert process.readings == 0


def test_a_process_without_new_private_pages_is_read_once():
    process = Process(rss=500 * MB, private=50 * MB)
    for second in range(1000):
        process.check(float(second))
    assert process.readings == 1


def test_a_process_that_repeatedly_takes_the_same_pages_is_read_rarely():
    process = Process(rss=500 * MB, private=50 * MB)
    for second in range(10 * int(READ_AGAIN_S)):
        process.check(float(second))
        process.faults += 100 * MB // PAGE_BYTES
    assert process.readings == 10


def test_growth_that_may_exceed_the_ceiling_is_read_at_once():
    process = Process(rss=500 * MB, private=50 * MB)
    process.check(0.0)
    process.rss, process.private = 560 * MB, 110 * MB
    assert process.check(1.0) is not None


def test_pages_that_become_private_without_growth_are_found_at_the_next_reading():
    process = Process(rss=500 * MB, private=50 * MB)
    process.check(0.0)
    process.check(2 * READ_AGAIN_S)
    process.unshare(60 * MB)
    assert process.check(2 * READ_AGAIN_S + 1) is not None


def test_without_fault_counts_a_process_is_read_every_few_seconds():
    process = Process(rss=500 * MB, private=50 * MB)
    process.faults = None
    process.check(0.0)
    process.private = 200 * MB
    assert process.check(READ_AGAIN_S - 1) is None
    assert process.check(READ_AGAIN_S) is not None


def test_the_lower_of_two_ceilings_decides_when_to_read():
    policy = MemoryPolicy(soft_bytes=300 * MB, hard_bytes=200 * MB)
    assert policy.ceiling_bytes == 200 * MB
    process = Process(rss=250 * MB, private=250 * MB)
    assert process.check(0.0, policy) is None
    assert policy.reason_to_kill(process.last) == "its private memory is 250 MiB, over the hard ceiling of 200 MiB"


def test_children_share_the_memory():
    policy = MemoryPolicy(None, None, shared_bytes=600 * MB)
    assert [policy.for_children(count).soft_bytes for count in (2, 3)] == [300 * MB, 200 * MB]
    assert POLICY.for_children(2) is POLICY


def test_without_a_ceiling_no_memory_is_too_much():
    policy = MemoryPolicy(None, None)
    reading = Reading(0.0, 500 * MB, Usage(500 * MB, 0))
    assert policy.ceiling_bytes is None
    assert not policy.needs_reading(Usage(500 * MB, 0), None, 0.0)
    assert policy.reason_to_kill(reading) is None
    assert policy.reason_to_recycle(reading) is None
