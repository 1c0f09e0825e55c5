from __future__ import annotations

from flask_backend.supervisor.memory import READ_AGAIN_S, MemoryPolicy

MB = 1 << 20


class Process:
    """A process whose memory the test sets, and which counts the expensive readings."""

    def __init__(self, rss: int, private: int) -> None:
        self.rss, self.private, self.readings = rss, private, 0

    def read_rss(self, _pid: int) -> int:
        return self.rss

    def read_private(self, _pid: int) -> int:
        self.readings += 1
        return self.private

    def check(self, policy: MemoryPolicy, now: float) -> int | None:
        return policy.private_if_over(1, now, self.read_rss, self.read_private)


def test_shared_pages_do_not_count():
    assert Process(rss=500 * MB, private=50 * MB).check(MemoryPolicy(100 * MB), 0.0) is None


def test_private_pages_count():
    assert Process(rss=500 * MB, private=101 * MB).check(MemoryPolicy(100 * MB), 0.0) == 101 * MB


def test_a_process_that_is_small_altogether_is_never_read_exactly():
    process = Process(rss=99 * MB, private=99 * MB)
    assert process.check(MemoryPolicy(100 * MB), 0.0) is None
    assert process.readings == 0


def test_a_process_that_does_not_grow_is_read_rarely():
    process, policy = Process(rss=500 * MB, private=50 * MB), MemoryPolicy(100 * MB)
    for second in range(int(READ_AGAIN_S)):
        process.check(policy, float(second))
    assert process.readings == 1


def test_growth_that_may_exceed_the_ceiling_is_read_at_once():
    process, policy = Process(rss=500 * MB, private=50 * MB), MemoryPolicy(100 * MB)
    process.check(policy, 0.0)
    process.rss, process.private = 560 * MB, 110 * MB
    assert process.check(policy, 1.0) == 110 * MB


def test_pages_that_become_private_without_growth_are_found_in_time():
    process, policy = Process(rss=500 * MB, private=50 * MB), MemoryPolicy(100 * MB)
    process.check(policy, 0.0)
    process.private = 200 * MB
    assert process.check(policy, READ_AGAIN_S) == 200 * MB
