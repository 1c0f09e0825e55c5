"""The states of a child and of the supervisor: two tables with all transitions. Pure.

A child is STARTING from its fork until it reports READY. To drain a child is to ask it to finish its jobs; to kill it
is to send SIGKILL, at a deadline or for an immediate stop. A LEAVING child has settled its last job and closed its
connection; its threads and exit handlers may still delay its exit, but not its successor. Whether a READY child is
busy is not a state here: the child writes that to the scoreboard, without a report to its parent.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TypeVar


class ChildState(Enum):
    STARTING = auto()
    READY = auto()
    DRAINING = auto()
    LEAVING = auto()
    KILLED = auto()
    EXITED = auto()


class ChildEvent(Enum):
    REPORTED_READY = auto()
    DRAIN = auto()
    LEFT = auto()
    KILL = auto()
    EXIT = auto()


class SupervisorState(Enum):
    STARTING = auto()
    RUNNING = auto()
    DRAINING = auto()
    STOPPED = auto()


class SupervisorEvent(Enum):
    ALL_POOLS_READY = auto()
    DRAIN = auto()
    NO_CHILDREN = auto()


CHILD_TRANSITIONS = {
    (ChildState.STARTING, ChildEvent.REPORTED_READY): ChildState.READY,
    (ChildState.STARTING, ChildEvent.DRAIN): ChildState.DRAINING,
    # A signal from outside the supervisor can drain a child, too.
    (ChildState.STARTING, ChildEvent.LEFT): ChildState.LEAVING,
    (ChildState.READY, ChildEvent.LEFT): ChildState.LEAVING,
    (ChildState.STARTING, ChildEvent.KILL): ChildState.KILLED,
    (ChildState.STARTING, ChildEvent.EXIT): ChildState.EXITED,
    (ChildState.READY, ChildEvent.DRAIN): ChildState.DRAINING,
    (ChildState.READY, ChildEvent.KILL): ChildState.KILLED,
    (ChildState.READY, ChildEvent.EXIT): ChildState.EXITED,
    # The report was on its way when the child was asked to end.
    (ChildState.DRAINING, ChildEvent.REPORTED_READY): ChildState.DRAINING,
    (ChildState.DRAINING, ChildEvent.LEFT): ChildState.LEAVING,
    (ChildState.DRAINING, ChildEvent.KILL): ChildState.KILLED,
    (ChildState.DRAINING, ChildEvent.EXIT): ChildState.EXITED,
    (ChildState.LEAVING, ChildEvent.REPORTED_READY): ChildState.LEAVING,
    (ChildState.LEAVING, ChildEvent.KILL): ChildState.KILLED,
    (ChildState.LEAVING, ChildEvent.EXIT): ChildState.EXITED,
    (ChildState.KILLED, ChildEvent.REPORTED_READY): ChildState.KILLED,
    (ChildState.KILLED, ChildEvent.EXIT): ChildState.EXITED,
}

SUPERVISOR_TRANSITIONS = {
    (SupervisorState.STARTING, SupervisorEvent.ALL_POOLS_READY): SupervisorState.RUNNING,
    (SupervisorState.STARTING, SupervisorEvent.DRAIN): SupervisorState.DRAINING,
    (SupervisorState.RUNNING, SupervisorEvent.DRAIN): SupervisorState.DRAINING,
    (SupervisorState.DRAINING, SupervisorEvent.NO_CHILDREN): SupervisorState.STOPPED,
}

State = TypeVar("State", ChildState, SupervisorState)
Event = TypeVar("Event", ChildEvent, SupervisorEvent)


class UnexpectedEventError(Exception):
    """A state received an event that its table does not contain: a bug in this package."""


def next_state(table: dict[tuple[State, Event], State], state: State, event: Event) -> State:
    try:
        return table[state, event]
    except KeyError:
        raise UnexpectedEventError(f"{event.name} in state {state.name}") from None
