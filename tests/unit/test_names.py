from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_backend import QueueNameError
from flask_backend.names import (
    batch_tube,
    check_queue_name,
    check_worked_queue_name,
    cursor_tube,
    failures_tube,
    internal_use,
    is_internal_tube,
    limit_tube,
    lock_tube,
    schedule_tube,
)


@pytest.mark.parametrize("name", ["com.example/default", "a", "a-b", "$x;(1)+_.", "q" * 200])
def test_names_that_beanstalkd_accepts(name):
    assert check_queue_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a b", "a\n", "a\r\nput 0 0 1 1", "a:b", "ä", "q" * 201, "a\0", 7, None, b"a"]
)  # fmt: skip
def test_names_that_it_refuses_are_errors_that_show_what_is_expected(name):
    with pytest.raises(QueueNameError, match=r"'com\.example/default'|must be a string"):
        check_queue_name(name)


@given(st.text())
def test_no_name_that_passes_can_end_a_command(name):
    try:
        check_queue_name(name)
    except QueueNameError:
        return
    assert name.isascii()
    assert not set(name) & set(" \r\n\0\t")


@pytest.mark.parametrize(
    "tube", [failures_tube("a"), schedule_tube("a"), cursor_tube("a"), limit_tube("a"), batch_tube("a"), lock_tube("a")]
)
def test_no_queue_of_a_user_is_named_like_an_internal_tube(tube):
    assert is_internal_tube(tube)
    with pytest.raises(QueueNameError, match=rf"names with .* are reserved: each job there is {internal_use(tube)}"):
        check_worked_queue_name(tube)


@pytest.mark.parametrize("name", ["schedule", "a.schedules", "a.failures/b", "x/flask-backend.limit/", "flask-backend"])
def test_similar_names_are_free(name):
    assert not is_internal_tube(name)
    assert check_worked_queue_name(name) == name
