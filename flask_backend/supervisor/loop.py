"""The supervisor: wait, handle, reap, scale, enforce, reconcile, notify, finish."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterable

from flask_backend.deaths import Death, Exit, ExitKind
from flask_backend.system.exits import ExitCode
from flask_backend.system.loggers import get_logger
from flask_backend.system.stacks import dump_stacks
from flask_backend.system.streams import streams

from . import wording
from .children import Child, Children
from .deadlines import Deadlines
from .death import death_of, reason_of
from .enforcement import Enforcement
from .events import EventName, Events
from .handover import Handover
from .helpers import Helpers
from .history import History
from .inbox import Inbox, Report, ReportKind
from .inheritance import Inheritance
from .lifecycle import LEAST_DRAIN_S, Lifecycle
from .links import Lifeline, Links
from .loans import Loans
from .memory import MemoryPolicy
from .notify import Notifier
from .observer import Observer
from .options import SupervisorOptions, Work
from .plan import MAX_CHILDREN, Plan, Pool, Slot
from .pools import MAX_LEAVING, Pools
from .process import unblock_signals
from .reload import Reload
from .scaling import Scaling
from .scoreboard import Publication, Scoreboard
from .service import ServiceHelper
from .settling import Settling
from .states import ChildEvent, ChildState, SupervisorEvent
from .summary import Summary
from .workers import Workers

logger = get_logger("flask_backend.supervisor")

FORK_RETRY_S = 1.0  # after a fork that the system refused


class Supervisor:
    """Keeps every pool at its size until stopped. Runs in the main thread of a single-threaded process."""

    def __init__(
        self,
        pools: list[Pool],
        work: Work,
        options: SupervisorOptions,
        notifier: Notifier,
        handover: Handover | None = None,
    ) -> None:
        """Plan the children. With a ``handover``, adopt those of an earlier image of this process."""
        self._clock = clock = options.clock
        self._processes = options.processes
        self._terminal = options.terminal
        self._facts = {**work.facts, "boot_timeout_s": options.boot_timeout_s}
        self._lifecycle = Lifecycle(options.drain_timeout_s, handover.generation if handover else 0)
        self._pools = Pools(
            Plan(pools, options.descriptors.most_children), options.give_up_after, options.give_up_within_s
        )
        loans, inbox = Loans(), Inbox(self._terminal)
        inbox.register(loans.fileno(), loans.receive)
        service = options.service
        self._links = Links(inbox, Lifeline(), loans, notifier, options.descriptors, service.fd if service else None)
        self._history = handover.history if handover else History()
        # Twice the maximum: each slot may have an old and a new child.
        self._scoreboard = Scoreboard(
            work.labels,
            2 * MAX_CHILDREN,
            Publication(options.page_folder, self._lifecycle.generation, self._history.checks),
            handover.totals_of_exited if handover else None,
        )
        self._workers = Workers(work.body, self._scoreboard, self._links, self._processes, clock)
        self._summary = Summary(self._workers.children, self._scoreboard, self._history)
        self._helpers = Helpers(self._links, self._processes, clock)
        observed = [pool.name for pool in pools if not pool.bounds.is_fixed]
        observer = Observer(work.look, observed, self._links, self._helpers, clock)
        self._scaling = Scaling(self._pools, self._workers.children, observer)
        self._events = Events(work.events, self._helpers, clock)
        self._service = ServiceHelper(service, self._helpers, self._links, self._processes, clock)
        self._scheduler = ServiceHelper(options.scheduler, self._helpers, self._links, self._processes, clock)
        self._shown_scheduler: int | None = None
        self._settling = Settling(work.settle, loans, self._helpers, self._scoreboard.count_burial, clock)
        memory = MemoryPolicy(options.max_memory_bytes, options.max_memory_hard_bytes, options.shared_memory_bytes)
        deadlines = Deadlines(options.boot_timeout_s, max(options.drain_timeout_s, LEAST_DRAIN_S))
        self._enforcement = Enforcement(self._workers, deadlines, memory, self._processes, clock())
        self._reload = Reload(self._links, self._helpers, self._history, options, self._end_check)
        self._inheritance = Inheritance(
            self._workers,
            self._helpers,
            self._events,
            self._links,
            self._terminal,
            self._history,
            self._pools,
            self._settling,
            self._service,
            self._scheduler,
        )
        if handover:
            self._inheritance.adopt(handover, clock())
        self._enforcement.share_memory(self._pools.plan.maximum)
        self._publish()
        self._scoreboard.publish()
        self._scoreboard.let_go_of_earlier()

    def run(self) -> ExitCode:
        """Supervise until a signal stops it, or until it gives up a pool."""
        self._links.inbox.install()
        unblock_signals()  # after a reload they are blocked
        self.turn()
        while not self._lifecycle.is_stopped:
            self.turn(self._links.inbox.wait(self._timeout_s()))
            streams.report_losses()
        self.close()
        return self._lifecycle.exit_code

    def turn(self, events: Iterable[signal.Signals | Report] = ()) -> None:
        """Act on the events, and on everything that has changed or become due since the last turn."""
        self._scoreboard.note_turn()
        for event in events:
            self._handle(event)
        self._reap()
        self._let_go()
        self._scale()
        self._enforce()
        self._reconcile()
        self._notify()
        self._finish()
        self._publish()
        self._prove_alive()

    def close(self) -> None:
        """Close the sockets that children have lent: the broker takes back their jobs. Remove what is published."""
        self._links.notifier.report_end(self.leave_within_s)
        self._links.loans.close_all()
        self._scoreboard.close()
        self._service.close()

    @property
    def children(self) -> Children:
        """The living workers."""
        return self._workers.children

    @property
    def is_draining(self) -> bool:
        return self._lifecycle.is_draining

    @property
    def leave_within_s(self) -> float:
        """How long this process may still take to exit once it is stopped."""
        return max(self._lifecycle.leave_at - self._clock(), LEAST_DRAIN_S)

    def wait_for_stop(self, timeout_s: float) -> None:
        """Wait at most ``timeout_s`` seconds for another stop signal. For use in any thread, after the stop."""
        self._links.inbox.wait_for_stop(timeout_s)

    # -- wait ------------------------------------------------------------------------------------------------

    def _timeout_s(self) -> float:
        """How long the loop may wait if no event arrives."""
        now = self._clock()
        due = [
            self._lifecycle.kill_at,
            self._helpers.next_at(),
            self._service.next_at(),
            self._scheduler.next_at(),
            self._enforcement.next_at(now),
        ]
        if not self.is_draining:
            due += [self._pools.next_at(), self._links.notifier.next_at()]
        return min(due) - now

    # -- handle ----------------------------------------------------------------------------------------------

    def _handle(self, event: signal.Signals | Report) -> None:
        if isinstance(event, signal.Signals):
            self._handle_signal(event)
        elif child := self.children.get(event.pid):
            self._handle_report(child, event.kind)

    def _handle_signal(self, number: signal.Signals) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT if self.is_draining:
                self._kill_all(f"{number.name} again")
            case signal.SIGTERM | signal.SIGINT:
                self._drain_all(number.name)
            case signal.SIGQUIT:
                self._begin_draining(number.name)
                self._kill_all(number.name)
            case signal.SIGTTIN:
                self._resize(+1)
            case signal.SIGTTOU:
                self._resize(-1)
            case signal.SIGUSR1:
                dump_stacks()
                for child in self.children:
                    self._processes.dump_stacks_of(child.pid)
            case signal.SIGHUP if not self.is_draining and not self._drain_if_terminal_is_gone():
                self._reload.start_check()
            case _:
                pass  # SIGCHLD: every turn reaps

    def _handle_report(self, child: Child, kind: ReportKind) -> None:
        if kind is ReportKind.RECYCLE_DUE:
            child.recycle_reason = wording.HAS_RUN_ITS_TASKS
        elif kind is ReportKind.READY:
            child.apply(ChildEvent.REPORTED_READY)
            self._pools[child.slot.pool].note_ready(child.slot)
            self._scaling.note_ready(child.slot.pool)

    def _resize(self, by: int) -> None:
        if not self._scaling.move(by):
            logger.warning(wording.NO_ROOM_FOR_MORE, self._pools.plan.most)
        self._enforcement.share_memory(self._pools.plan.maximum)
        logger.info(wording.RESIZED, self._pools.plan)

    def _begin_draining(self, reason: str) -> None:
        if not self.is_draining:
            self._lifecycle.apply(SupervisorEvent.DRAIN)
            self._scaling.stop()
            self._scheduler.stop()
            self._reload.call_off()
            self._links.notifier.report_stop(wording.is_stopping(reason))
            logger.info(wording.STOPPING, reason)

    def _drain_all(self, reason: str) -> None:
        self._begin_draining(reason)
        self._lifecycle.limit(self._clock())
        for child in self.children:
            if not child.was_told_to_end:
                self._workers.drain(child)

    def _drain_if_terminal_is_gone(self) -> bool:
        if is_gone := self._terminal.is_gone():
            self._drain_all("the terminal is gone")
        return is_gone

    def _kill_all(self, reason: str) -> None:
        for child in self.children:
            if child.state is not ChildState.KILLED:
                if activity := child.row.activity:
                    logger.warning(wording.GIVES_BACK, reason, child.pid, wording.unfinished(activity))
                elif child.has_left:
                    logger.warning(wording.KILLED_AT_STOP, reason, child.pid)
                self._workers.kill(child)
        self._lifecycle.hurry(self._clock())

    # -- reap ------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for exit_ in self._processes.reap(is_ours=self._is_ours):
            if child := self.children.get(exit_.pid):
                self._links.loans.receive()  # its last loan may not have been read yet
                self._handle_exit(child, exit_)
                self._links.loans.close(exit_.pid)
            else:
                self._helpers.end(exit_)

    def _is_ours(self, pid: int) -> bool:
        return pid in self.children or pid in self._helpers

    def _handle_exit(self, child: Child, exit_: Exit) -> None:
        """Forget a dead child, have its job settled and its slot filled again."""
        now = self._clock()
        death = death_of(child, exit_, now)
        self._workers.remove(child)
        was_killed = child.state is ChildState.KILLED
        was_given_back = child.gave_back(exit_.signal) or (self.is_draining and was_killed)
        self._note_exit(child, death, is_given_back=was_given_back)
        if death.activity and child.gave_back(exit_.signal):
            logger.warning(wording.DEATH_WHILE_DRAINING, death, extra=death.as_dict())
        child.apply(ChildEvent.EXIT)
        self._note_event(
            EventName.WORKER_EXITED, str(death), was_given_back=was_given_back, is_old=child.is_old, **death.as_dict()
        )
        if death.activity and was_given_back and self.is_draining:
            self._lifecycle.note_given_back()
        if death.has_left:
            if exit_.status != ExitCode.OK and not was_killed:
                logger.warning(wording.DEATH_AFTER_LAST_JOB, death, extra=death.as_dict())
        elif not child.is_old and not self.is_draining:
            self._fill_again(child.slot, death, now)
        elif death.kind is not ExitKind.PLANNED and (child.is_old or not was_given_back):
            # Children of the old code are not replaced: the new generation is up or starting.
            logger.error(wording.DEATH, death, wording.ran_old_code(is_old=child.is_old), extra=death.as_dict())
        if death.activity and not was_given_back:  # last: the log shows the death before the fate of its job
            self._settling.start(death, death.activity)

    def _note_exit(self, child: Child, death: Death, *, is_given_back: bool) -> None:
        is_wanted = child.is_old or self._pools.plan.wants(child.slot)
        reason = reason_of(child, death.kind, is_stop=self.is_draining, is_wanted=is_wanted)
        is_planned = death.kind is ExitKind.PLANNED or is_given_back
        self._history.note_exit(death, reason, None if child.is_old else child.slot.index, is_planned=is_planned)
        if death.activity:
            count = self._scoreboard.count_given_back if is_planned else self._scoreboard.count_crash
            count(death.pool, death.activity.label)

    def _fill_again(self, slot: Slot, death: Death, now: float) -> None:
        """Decide when the slot of a dead child gets its next one: at once, unless it is delayed."""
        if death.kind is ExitKind.PLANNED:
            return
        if not self._pools.plan.wants(slot):
            logger.error(wording.DEATH_OF_SURPLUS, death, extra=death.as_dict())
            return
        pool = self._pools[slot.pool]
        pool.end_recycling(slot)
        if not death.was_ready and self._scaling.drop(slot, now):
            logger.error(wording.DEATH_NOT_REPLACED, death, extra=death.as_dict())
            return
        progress = self._inheritance.progress(slot.pool)
        delay_s = pool.restarts.delay_s(death.kind, now, progress)
        self._pools.delay(slot, now + delay_s)
        logger.error(wording.DEATH_REPLACED, death, wording.replaced_in(delay_s), extra=death.as_dict())
        if self.children.is_served_by_old(slot.pool):
            return  # the old code serves until the new one can
        wanted = self._pools.plan.slots_of(slot.pool)
        if hopeless := pool.check_give_up(slot, wanted, death.exit.status, now, progress):
            logger.critical(wording.GIVING_UP, hopeless.reason)
            self._lifecycle.exit_code = hopeless.code
            self._drain_all(wording.cannot_work(slot.pool))

    def _end_check(self, *, has_passed: bool) -> None:
        # The HUP that asked for the check may have arrived just before the terminal went away.
        if not self._drain_if_terminal_is_gone() and has_passed:
            self._go_on_as_new_code()

    def _go_on_as_new_code(self) -> None:
        for child in self.children:
            if child.state is ChildState.STARTING:
                self._workers.drain(child)  # its report would be sent to an inbox that no longer exists
        self._scaling.stop()
        handover = self._inheritance.hand_over(self._lifecycle.generation + 1)
        self._scoreboard.show_state("reloading")
        self._reload.execute(handover, self.children.count_new())

    # -- let go --------------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        """Record which children have left: close the sockets they have lent, and free their slots."""
        for child in self.children:
            if child.has_left and child.state not in (ChildState.LEAVING, ChildState.KILLED):
                child.apply(ChildEvent.LEFT)
                self._links.loans.receive()  # its last loan may not have been read yet
                self._links.loans.close(child.pid)

    # -- scale -----------------------------------------------------------------------------------------------

    def _scale(self) -> None:
        """Change the sizes of pools as their queues need it."""
        if self._lifecycle.is_running:
            self._scaling.scale(self._clock())

    # -- enforce ---------------------------------------------------------------------------------------------

    def _enforce(self) -> None:
        """Enforce the deadlines of a drain and of every process that the supervisor has started."""
        now = self._clock()
        if now >= self._lifecycle.kill_at:
            self._kill_all("drain timeout")
        self._helpers.kill_overdue(now)
        self._enforcement.enforce(now)

    # -- reconcile -------------------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        """Drain children that are unwanted or due for recycling; fill the slots that may have a child."""
        if self.is_draining:
            return
        ready = self.children.count_ready()
        for child in self.children:
            if not self._is_wanted(child, ready) and not child.was_told_to_end:
                self._workers.drain(child)
        self._recycle()
        for pool in self._pools.hold_up(self.children.count_leaving()):
            logger.warning(wording.SUCCESSORS_WAIT, MAX_LEAVING, pool)
        for slot in self._pools.claim(self.children.slots(), self._clock()):
            self._spawn(slot)
        self._processes.show_plan(len(self._pools.plan.sizes), self._pools.plan.total)

    def _recycle(self) -> None:
        """Drain the next child that is due. Each pool recycles one at a time, until its successor is ready."""
        for child in self.children:
            pool = self._pools[child.slot.pool]
            is_due = child.recycle_reason and child.state is ChildState.READY and not child.is_old
            if is_due and not pool.is_recycling(self._pools.plan):
                pool.recycling = child.slot
                logger.info(wording.RECYCLED, child.pid, child.slot.pool, child.recycle_reason)
                self._workers.drain(child)

    def _is_wanted(self, child: Child, ready: Counter[str]) -> bool:
        """Whether a child is wanted. Old code is, until the new code has all its children ready."""
        if child.is_old:
            return ready[child.slot.pool] < self._pools.plan.size_of(child.slot.pool)
        return self._pools.plan.wants(child.slot)

    def _spawn(self, slot: Slot) -> None:
        try:
            self._workers.start(slot)
        except OSError as error:
            self._pools.delay(slot, self._clock() + FORK_RETRY_S)
            logger.error(wording.CANNOT_FORK, slot.pool, error, FORK_RETRY_S)

    # -- notify ----------------------------------------------------------------------------------------------

    def _notify(self) -> None:
        counts = self.children.count_ready()
        ready = [counts[pool] for pool in self._pools.plan.sizes]
        if self._lifecycle.is_starting and all(ready):
            self._lifecycle.apply(SupervisorEvent.ALL_POOLS_READY)
            logger.info(wording.READY, self._pools.plan)
            self._links.notifier.report_ready()
            if self._lifecycle.generation:
                outcome = wording.generation_serves(self._lifecycle.generation)
                self._history.note_reload(outcome)
            self._note_ready()
        if self._lifecycle.is_running:
            remark = wording.remark_on_reload(self._reload.failure)
            now = self._clock()
            self._links.notifier.show(self._summary.line(sum(ready), self._pools.plan.total, remark, now))

    def _note_ready(self) -> None:
        plan = self._pools.plan
        if self._lifecycle.generation:
            self._note_event(EventName.SUPERVISOR_RELOADED, wording.is_reloaded(plan), queues=plan.sizes)
        else:
            self._note_event(EventName.SUPERVISOR_READY, wording.is_ready(plan), queues=plan.sizes)

    def _note_event(self, name: EventName, description: str, **facts: object) -> None:
        common = {"supervisor_pid": os.getpid(), "generation": self._lifecycle.generation}
        self._events.note(name, description, {**common, **facts})

    # -- publish ---------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Show on the status page what has changed in this turn."""
        self._scoreboard.show_state(self._lifecycle.state)
        self._scoreboard.show_plan(self._pools.plan.shown())
        if self._history.has_changed or self._scheduler.pid != self._shown_scheduler:
            self._history.has_changed = False
            self._shown_scheduler = self._scheduler.pid
            facts = {**self._facts, "scheduler_pid": self._shown_scheduler, **self._history.as_facts()}
            self._scoreboard.show_facts(facts, self._history.checks)

    def _prove_alive(self) -> None:
        """Report a complete turn to the service manager."""
        now = self._clock()
        if self.is_draining:
            self._links.notifier.note_turn_of_drain(now, end_by=self._lifecycle.leave_at)
        else:
            self._links.notifier.note_turn(now)

    # -- finish ----------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Send the events of this turn, and stop once a drain has left nothing to wait for."""
        if not self.is_draining or self.children:
            self._events.send()
            self._service.keep()
            self._scheduler.keep()
            return
        self._service.stop()
        by = self._lifecycle.note_childless(self._clock())
        self._helpers.hasten(by)
        self._events.send(by)
        if not self._helpers and not self._events.pending:
            self._lifecycle.apply(SupervisorEvent.NO_CHILDREN)
