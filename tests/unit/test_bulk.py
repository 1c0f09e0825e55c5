from __future__ import annotations

import tracemalloc
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from flask_backend.bulk import MAX_REASONS, BulkOutcome, IdRuns, Ranges
from flask_backend.errors import BrokerConnectionError, MessageEncodeError


@given(st.dictionaries(st.integers(0, 60), st.integers(1, 2000)))
def test_the_id_of_each_accepted_index_is_found_and_no_other(given_ids):
    runs = IdRuns()
    for index in sorted(given_ids):
        runs.add(index, given_ids[index])
    assert {index: runs.find(index) for index in range(-1, 62) if runs.find(index) is not None} == given_ids
    assert list(runs) == sorted(given_ids)
    assert len(runs) == len(given_ids)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 2), st.integers(1, 5)), max_size=8))
def test_a_run_is_recorded_as_its_items_one_by_one_would_be(steps):
    """Each run begins some indexes and ids after the last one, so that some continue it."""
    runs, singles = IdRuns(), IdRuns()
    index = job_id = 10
    for more_indexes, more_ids, length in steps:
        index, job_id = index + more_indexes, job_id + more_ids
        runs.add(index, job_id, length)
        for offset in range(length):
            singles.add(index + offset, job_id + offset)
        index, job_id = index + length, job_id + length
    assert [runs.find(each) for each in range(index)] == [singles.find(each) for each in range(index)]
    assert (len(runs), runs.ranges()) == (len(singles), singles.ranges())


def test_consecutive_ids_take_no_memory():
    runs = IdRuns()
    tracemalloc.start()
    for index in range(200_000):
        runs.add(index, index + 17)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000
    assert runs.find(199_999) == 200_016


@given(st.sets(st.integers(0, 100)))
def test_ranges_hold_the_added_numbers_and_do_not_touch(numbers):
    ranges = Ranges()
    for number in sorted(numbers):
        ranges.add(number)
    found = list(ranges)
    assert sorted(n for run in found for n in run) == sorted(numbers)
    assert all(run.stop < after.start for run, after in pairwise(found))
    assert len(ranges) == len(numbers)


def test_the_reasons_are_bounded_and_the_indexes_are_not():
    outcome = BulkOutcome()
    for index in range(MAX_REASONS * 3):
        outcome.refuse(index * 2, MessageEncodeError("no"))
    assert len(outcome.reasons) == MAX_REASONS
    assert len(outcome.refused) == MAX_REASONS * 3


def test_it_reports_the_result_of_each_item():
    outcome = BulkOutcome()
    for index in (0, 1, 3):
        outcome.accepted.add(index, index + 10)
    outcome.refuse(2, MessageEncodeError("no JSON"))
    outcome.unknown.add(4, 3)
    outcome.failure, outcome.unsent_from = BrokerConnectionError("lost"), 7
    assert str(outcome) == (
        "accepted: 0 to 1, index 3; refused: index 2, at index 2 because no JSON; "
        "unknown, because the connection broke (lost): 4 to 6; not sent: from index 7 on"
    )
    assert not outcome.is_complete
