from __future__ import annotations

import itertools

import pytest

from flask_backend.supervisor.states import (
    CHILD_TRANSITIONS,
    SUPERVISOR_TRANSITIONS,
    ChildEvent,
    ChildState,
    SupervisorEvent,
    SupervisorState,
    UnexpectedEventError,
    next_state,
)


def test_every_state_but_the_last_ends_in_the_last():
    for table, last in ((CHILD_TRANSITIONS, ChildState.EXITED), (SUPERVISOR_TRANSITIONS, SupervisorState.STOPPED)):
        for start in type(last):
            seen, frontier = set(), {start}
            while frontier:
                seen |= frontier
                frontier = {to for (state, _), to in table.items() if state in seen} - seen
            assert last in seen


@pytest.mark.parametrize(
    ("table", "states", "events"),
    [(CHILD_TRANSITIONS, ChildState, ChildEvent), (SUPERVISOR_TRANSITIONS, SupervisorState, SupervisorEvent)],
)
def test_an_event_that_a_state_does_not_expect_is_an_error_that_names_both(table, states, events):
    for state, event in itertools.product(states, events):
        if (state, event) not in table:
            with pytest.raises(UnexpectedEventError, match=f"{event.name} in state {state.name}"):
                next_state(table, state, event)


def test_a_dead_child_has_no_further_transitions():
    assert not [state for state, _ in CHILD_TRANSITIONS if state is ChildState.EXITED]


def test_a_killed_child_stays_killed_until_it_is_dead():
    for (state, event), to in CHILD_TRANSITIONS.items():
        if state is ChildState.KILLED:
            assert to is (ChildState.EXITED if event is ChildEvent.EXIT else ChildState.KILLED)
