from __future__ import annotations

from flask_backend.supervisor.crashes import FORGOTTEN_AFTER_S, MAX_REMEMBERED, CrashCounts


def test_each_job_of_each_pool_is_counted_separately():
    counts = CrashCounts()
    assert [counts.note("a", 1, 0.0), counts.note("a", 1, 1.0), counts.note("b", 1, 2.0), counts.note("a", 2, 3.0)] == [
        1,
        2,
        1,
        1,
    ]


def test_a_job_that_is_buried_or_not_seen_for_long_starts_from_zero():
    counts = CrashCounts()
    counts.note("a", 1, 0.0)
    counts.forget("a", 1)
    assert counts.note("a", 1, 1.0) == 1
    assert counts.note("a", 1, 2.0 + FORGOTTEN_AFTER_S) == 1


def test_memory_is_bounded_and_the_oldest_goes_first():
    counts = CrashCounts()
    for job_id in range(MAX_REMEMBERED + 1):
        counts.note("a", job_id, 0.0)
    assert counts.note("a", 1, 0.0) == 2
    assert counts.note("a", 0, 0.0) == 1
