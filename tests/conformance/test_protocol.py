"""Each command and each of its replies: one suite for beanstalkd and for the embedded broker."""

from __future__ import annotations

import pytest
from support.waiting import wait_until

LONG = "a" * 200

# A line and its reply. Each on its own connection, which uses the tube `t`.
LINES = {
    "an empty line": (b"", b"UNKNOWN_COMMAND"),
    "a word": (b"hello", b"UNKNOWN_COMMAND"),
    "a command in capitals": (b"USE t", b"UNKNOWN_COMMAND"),
    "a space in front": (b" use t", b"UNKNOWN_COMMAND"),
    "a tab for a space": (b"use\tt", b"UNKNOWN_COMMAND"),
    "a longer word": (b"usex t", b"UNKNOWN_COMMAND"),
    "put without anything": (b"put", b"UNKNOWN_COMMAND"),
    "put with too little": (b"put 0 0 1", b"BAD_FORMAT"),
    "put with more": (b"put 0 0 1 1 1", b"BAD_FORMAT"),
    "put with a space at its end": (b"put 0 0 1 1 ", b"BAD_FORMAT"),
    "put with tabs": (b"put 0\t0\t1\t1", b"BAD_FORMAT"),
    "put with a negative priority": (b"put -1 0 1 1", b"BAD_FORMAT"),
    "put with a priority that is too large": (b"put 4294967296 0 1 1", b"BAD_FORMAT"),
    "put with a delay that is too large": (b"put 0 4294967296 1 1", b"BAD_FORMAT"),
    "put with a TTR that is too large": (b"put 0 0 4294967296 1", b"BAD_FORMAT"),
    "put with a size that is too large": (b"put 0 0 1 4294967296", b"BAD_FORMAT"),
    "put with a negative size": (b"put 0 0 1 -1", b"BAD_FORMAT"),
    "put with a word for a number": (b"put a 0 1 1", b"BAD_FORMAT"),
    "put with a fraction": (b"put 0 0.5 1 1", b"BAD_FORMAT"),
    "use of nothing": (b"use", b"UNKNOWN_COMMAND"),
    "use of no name": (b"use ", b"BAD_FORMAT"),
    "use of two names": (b"use a b", b"BAD_FORMAT"),
    "use of a name after two spaces": (b"use  a", b"BAD_FORMAT"),
    "use of a name with all kinds of letters": (b"use aZ09-+/;.$_()", b"USING aZ09-+/;.$_()"),
    "use of a name with a hyphen in front": (b"use -a", b"BAD_FORMAT"),
    "use of a name with a colon": (b"use a:b", b"BAD_FORMAT"),
    "use of a name that is not ASCII": ("use \u00e4".encode(), b"BAD_FORMAT"),
    "use of a name with a zero byte": (b"use a\0b", b"BAD_FORMAT"),
    "use of a name with a line feed": (b"use a\nb", b"BAD_FORMAT"),
    "use of a name of 200 bytes": (f"use {LONG}".encode(), f"USING {LONG}".encode()),
    "use of a name of 201 bytes": (f"use {LONG}a".encode(), b"BAD_FORMAT"),
    "a line of 224 bytes": (b"use " + b"a" * 218, b"BAD_FORMAT"),
    "a line of 226 bytes": (b"use " + b"a" * 220, b"BAD_FORMAT"),
    "a line of 100,000 bytes": (b"use " + b"a" * 100_000, b"BAD_FORMAT"),
    "watch of nothing": (b"watch", b"UNKNOWN_COMMAND"),
    "watch of no name": (b"watch -", b"BAD_FORMAT"),
    "ignore of nothing": (b"ignore", b"UNKNOWN_COMMAND"),
    "ignore of no name": (b"ignore a b", b"BAD_FORMAT"),
    "ignore of what is not watched": (b"ignore never-seen", b"WATCHING 1"),
    "ignore of the only tube": (b"ignore default", b"NOT_IGNORED"),
    "reserve with more": (b"reserve 1", b"BAD_FORMAT"),
    "reserve with a longer word": (b"reserves", b"BAD_FORMAT"),
    "reserve-with-timeout without one": (b"reserve-with-timeout", b"BAD_FORMAT"),
    "reserve-with-timeout of a word": (b"reserve-with-timeout soon", b"BAD_FORMAT"),
    "reserve-with-timeout of nothing": (b"reserve-with-timeout ", b"BAD_FORMAT"),
    "reserve-with-timeout of a sign": (b"reserve-with-timeout +0", b"BAD_FORMAT"),
    "reserve-with-timeout of a tab": (b"reserve-with-timeout \t0", b"BAD_FORMAT"),
    "reserve-with-timeout of spaces": (b"reserve-with-timeout   0", b"TIMED_OUT"),
    "reserve-with-timeout of 2**32": (b"reserve-with-timeout 4294967296", b"BAD_FORMAT"),
    "reserve-with-timeout of zero and more": (b"reserve-with-timeout 0 or so", b"TIMED_OUT"),
    "reserve-with-timeout beyond any number": (b"reserve-with-timeout 99999999999999999999", b"BAD_FORMAT"),
    "reserve-job of nothing": (b"reserve-job", b"BAD_FORMAT"),
    "reserve-job of a word": (b"reserve-job x", b"BAD_FORMAT"),
    "reserve-job of no job": (b"reserve-job 999999", b"NOT_FOUND"),
    "delete of nothing": (b"delete", b"UNKNOWN_COMMAND"),
    "delete of a word": (b"delete x", b"BAD_FORMAT"),
    "delete of a negative number": (b"delete -1", b"BAD_FORMAT"),
    "delete with more": (b"delete 999999 1", b"BAD_FORMAT"),
    "delete of no job": (b"delete 999999", b"NOT_FOUND"),
    "delete of job 0": (b"delete 0", b"NOT_FOUND"),
    "delete of the largest id": (b"delete 18446744073709551615", b"NOT_FOUND"),
    "delete beyond the largest id": (b"delete 18446744073709551616", b"BAD_FORMAT"),
    "release with too little": (b"release 999999 0", b"BAD_FORMAT"),
    "release with more": (b"release 999999 0 0 0", b"BAD_FORMAT"),
    "release with a negative delay": (b"release 999999 0 -1", b"BAD_FORMAT"),
    "release of no job": (b"release 999999 0 0", b"NOT_FOUND"),
    "release with many spaces": (b"release  999999  0  0", b"NOT_FOUND"),
    "bury with too little": (b"bury 999999", b"BAD_FORMAT"),
    "bury with a priority that is too large": (b"bury 999999 4294967296", b"BAD_FORMAT"),
    "bury of no job": (b"bury 999999 0", b"NOT_FOUND"),
    "touch of nothing": (b"touch", b"UNKNOWN_COMMAND"),
    "touch of a word": (b"touch x", b"BAD_FORMAT"),
    "touch of no job": (b"touch 999999", b"NOT_FOUND"),
    "peek of nothing": (b"peek", b"UNKNOWN_COMMAND"),
    "peek of a word": (b"peek x", b"BAD_FORMAT"),
    "peek of no job": (b"peek 999999", b"NOT_FOUND"),
    "peek-ready with more": (b"peek-ready 1", b"BAD_FORMAT"),
    "peek-ready of an empty tube": (b"peek-ready", b"NOT_FOUND"),
    "peek-delayed with more": (b"peek-delayed ", b"BAD_FORMAT"),
    "peek-delayed of an empty tube": (b"peek-delayed", b"NOT_FOUND"),
    "peek-buried with more": (b"peek-buriedx", b"BAD_FORMAT"),
    "peek-buried of an empty tube": (b"peek-buried", b"NOT_FOUND"),
    "peek of an unknown state": (b"peek-reserved", b"UNKNOWN_COMMAND"),
    "kick of nothing": (b"kick", b"UNKNOWN_COMMAND"),
    "kick of a word": (b"kick x", b"BAD_FORMAT"),
    "kick of none": (b"kick 0", b"KICKED 0"),
    "kick with more": (b"kick 1 or 2", b"KICKED 0"),
    "kick of a negative number": (b"kick -1", b"KICKED 0"),
    "kick beyond any number": (b"kick 99999999999999999999", b"BAD_FORMAT"),
    "kick-job of nothing": (b"kick-job", b"UNKNOWN_COMMAND"),
    "kick-job with more": (b"kick-job 999999 1", b"BAD_FORMAT"),
    "kick-job of no job": (b"kick-job 999999", b"NOT_FOUND"),
    "stats with more": (b"stats x", b"BAD_FORMAT"),
    "stats-job of nothing": (b"stats-job", b"BAD_FORMAT"),
    "stats-job of a word": (b"stats-job x", b"BAD_FORMAT"),
    "stats-job of no job": (b"stats-job 999999", b"NOT_FOUND"),
    "stats-tube of nothing": (b"stats-tube", b"BAD_FORMAT"),
    "stats-tube of no name": (b"stats-tube a:b", b"BAD_FORMAT"),
    "stats-tube of no tube": (b"stats-tube never-seen", b"NOT_FOUND"),
    "list-tubes with more": (b"list-tubes x", b"BAD_FORMAT"),
    "list-tube-used": (b"list-tube-used", b"USING t"),
    "list-tube-used with more": (b"list-tube-used t", b"BAD_FORMAT"),
    "list-tubes-watched with more": (b"list-tubes-watchedx", b"BAD_FORMAT"),
    "list-tube": (b"list-tube", b"UNKNOWN_COMMAND"),
    "pause-tube without a time": (b"pause-tube default", b"BAD_FORMAT"),
    "pause-tube of a negative time": (b"pause-tube default -1", b"BAD_FORMAT"),
    "pause-tube of too long a time": (b"pause-tube default 4294967296", b"BAD_FORMAT"),
    "pause-tube with more": (b"pause-tube default 0 0", b"BAD_FORMAT"),
    "pause-tube of no tube": (b"pause-tube never-seen 1", b"NOT_FOUND"),
    "pause-tube of no time": (b"pause-tube default 0", b"PAUSED"),
    "quit": (b"quit", b""),
    "quit with more": (b"quit now", b""),
}


# A timeout that is not a number counted as 0 before 1.13.
BEFORE_1_13 = dict.fromkeys(
    (
        *("reserve-with-timeout of a word", "reserve-with-timeout of nothing", "reserve-with-timeout of a sign"),
        *("reserve-with-timeout of a tab", "reserve-with-timeout of 2**32"),
    ),
    b"TIMED_OUT",
)


@pytest.mark.parametrize("name", LINES)
def test_a_line_has_its_reply(server, connect, name):
    line, reply = LINES[name]
    if server.release < (1, 13):
        reply = BEFORE_1_13.get(name, reply)
    wire = connect(tube=None)
    wire.ask("use t")
    assert wire.ask(line) == reply
    if reply:
        assert wire.ask("list-tube-used").startswith(b"USING")  # the next reply is to the next command


# -- put -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"x", b"\r\n", b"a\r\ndelete 1\r\nb", bytes(range(256)), b"y" * 1000], ids=len)
def test_a_body_comes_back_as_it_was(wire, body):
    job_id = wire.put(body)
    data = b"%d %d\r\n%b" % (job_id, len(body), body)
    assert wire.ask(f"peek {job_id}") == b"FOUND " + data
    assert wire.ask("reserve") == b"RESERVED " + data


def test_ids_grow(wire):
    first = wire.put()
    assert [wire.put(), wire.put()] == [first + 1, first + 2]


def test_a_body_may_come_in_pieces(wire):
    for piece in (b"pu", b"t 0 0 1 5\r", b"\nab", b"cde", b"\r"):
        wire.socket.sendall(piece)
        assert not wire.has_reply(0.01)
    wire.socket.sendall(b"\n")
    assert wire.read().startswith(b"INSERTED")


def test_a_body_of_the_largest_size_is_taken_and_one_byte_more_is_too_big(wire):
    wire.put(b"x" * 1000)
    assert wire.ask("put 0 0 1 1001", b"x" * 1001) == b"JOB_TOO_BIG"
    assert wire.ask("list-tubes-watched").startswith(b"OK")


def test_a_body_that_is_too_big_is_skipped_with_any_content(wire):
    wire.send("put 0 0 1 5000")
    for _ in range(5):
        wire.socket.sendall(b"delete 1\r\n" * 100)
    assert not wire.has_reply(0.01)
    wire.send("", "list-tube-used")
    assert wire.read() == b"JOB_TOO_BIG"
    assert wire.read().startswith(b"USING")


def test_after_a_body_of_another_length_the_rest_is_read_as_commands(wire, tube):
    # The line break is expected after the announced length, and two more bytes are skipped in any case.
    wire.send("put 0 0 1 3", "abcXXlist-tube-used")
    assert wire.read() == b"EXPECTED_CRLF"
    assert wire.read() == b"USING " + tube.encode()
    assert wire.ask("peek-ready") == b"NOT_FOUND"


def test_after_a_put_with_a_bad_header_its_body_is_run_as_commands(wire, tube):
    wire.send("put -1 0 1 14", "list-tube-used")
    assert wire.read() == b"BAD_FORMAT"
    assert wire.read() == b"USING " + tube.encode()


def test_spaces_may_be_many_between_numbers(wire):
    assert wire.ask("put  0  0  1  1", "x").startswith(b"INSERTED")


def test_a_time_to_run_of_zero_seconds_becomes_one_second(wire):
    assert wire.stats(f"-job {wire.put(ttr=0)}")["ttr"] == "1"


def test_the_largest_numbers_are_taken(wire):
    stats = wire.stats(f"-job {wire.put(priority=4294967295, delay=4294967295, ttr=4294967295)}")
    assert [stats[key] for key in ("pri", "delay", "ttr", "time-left")] == ["4294967295"] * 3 + ["4294967294"]


# -- reserve -------------------------------------------------------------------------------------------------


def test_the_smallest_priority_comes_first_then_the_oldest_job(wire):
    ids = [wire.put(priority=priority) for priority in (5, 4294967295, 0, 5, 0)]
    assert [wire.reserve() for _ in ids] == [ids[i] for i in (2, 4, 0, 3, 1)]


def test_several_tubes_are_one_queue(connect, tube):
    wire, other = connect(), connect(f"{tube}-b")
    late, first, second = wire.put(priority=3), other.put(priority=1), wire.put(priority=1)
    wire.ask(f"watch {tube}-b")
    assert [wire.reserve() for _ in range(3)] == [first, second, late]


def test_a_tube_that_is_no_longer_watched_gives_no_jobs(wire, tube):
    wire.put()
    assert wire.ask(f"watch {tube}-b") == b"WATCHING 2"
    assert wire.ask(f"watch {tube}-b") == b"WATCHING 2"
    assert wire.ask(f"ignore {tube}") == b"WATCHING 1"
    assert wire.ask(f"ignore {tube}-b") == b"NOT_IGNORED"
    assert wire.reserve() is None


def test_a_job_goes_to_a_waiting_client(connect):
    waiting, other = connect(), connect()
    waiting.send("reserve")
    job_id = other.put(b"abc")
    assert waiting.read() == b"RESERVED %d 3\r\nabc" % job_id


def test_a_job_goes_to_one_of_the_waiting_clients(connect, tube):
    waiting, other = [connect() for _ in range(3)], connect()
    for wire in waiting:
        wire.send("reserve-with-timeout 100")
    wait_until(lambda: other.stats(f"-tube {tube}")["current-waiting"] == "3", "all wait")
    ids = {other.put(), other.put(), other.put()}
    assert {int(wire.read().split()[1]) for wire in waiting} == ids


def test_a_client_that_waits_for_several_tubes_gets_the_first_job_of_any(connect, tube):
    waiting, other = connect(), connect(f"{tube}-b")
    waiting.ask(f"watch {tube}-b")
    waiting.send("reserve")
    job_id = other.put()
    assert waiting.read() == b"RESERVED %d 1\r\nx" % job_id
    assert other.stats(f"-tube {tube}")["current-waiting"] == "0"


def test_commands_behind_a_waiting_reserve_run_after_it(connect, tube):
    waiting, other = connect(), connect()
    waiting.send("reserve", "list-tube-used", "quit")
    wait_until(lambda: other.stats(f"-tube {tube}")["current-waiting"] == "1", "it waits")
    job_id = other.put()
    assert waiting.read_all() == b"RESERVED %d 1\r\nx\r\nUSING %b\r\n" % (job_id, tube.encode())


def test_a_negative_timeout_waited_forever_before_1_13_and_is_malformed_since(server, connect):
    waiting, other = connect(), connect()
    waiting.send("reserve-with-timeout -1")
    if server.release >= (1, 13):
        assert waiting.read() == b"BAD_FORMAT"
        return
    assert not waiting.has_reply(0.05)
    job_id = other.put()
    assert waiting.read() == b"RESERVED %d 1\r\nx" % job_id


def test_a_reserve_ends_when_the_client_closes_its_sending_side(connect, tube):
    waiting = connect()
    waiting.send("reserve", "list-tube-used")
    waiting.socket.shutdown(1)
    assert waiting.read_all() == b"TIMED_OUT\r\nUSING %b\r\n" % tube.encode()


@pytest.mark.parametrize("rest", [b"", b"put 0 0 1 5\r\nab", b"list-tube"])
def test_half_a_command_at_the_end_is_not_run(connect, tube, rest):
    wire = connect()
    wire.socket.sendall(b"list-tube-used\r\n" + rest)
    wire.socket.shutdown(1)
    assert wire.read_all() == b"USING %b\r\n" % tube.encode()


@pytest.mark.parametrize("state", ["ready", "delayed", "buried"])
def test_a_job_of_any_state_except_reserved_can_be_reserved_by_its_id(connect, state):
    wire, other = connect(), connect()
    job_id = in_state(wire, state)
    assert other.ask(f"reserve-job {job_id}") == b"RESERVED %d 1\r\nx" % job_id
    assert wire.ask(f"reserve-job {job_id}") == b"NOT_FOUND"
    assert other.ask(f"reserve-job {job_id}") == b"NOT_FOUND"
    assert wire.state(job_id) == "reserved"


def test_replies_come_in_the_order_of_the_commands(wire, tube):
    wire.send("list-tube-used", "put 0 0 1 1", "x", "kick 1", "peek-ready", "nonsense", "list-tube-used")
    words = [wire.read().split()[0] for _ in range(6)]
    assert words == [b"USING", b"INSERTED", b"KICKED", b"FOUND", b"UNKNOWN_COMMAND", b"USING"]


# -- the life of a job ---------------------------------------------------------------------------------------


def in_state(wire, state, **options):
    """Make a job in the given state."""
    if state == "delayed":
        return wire.put(delay=100, **options)
    if state == "ready":
        return wire.put(**options)
    job_id = wire.reserved(**options)
    if state == "buried":
        assert wire.ask(f"bury {job_id} 0") == b"BURIED"
    return job_id


@pytest.mark.parametrize("state", ["ready", "delayed", "buried", "reserved"])
def test_the_holder_can_delete_a_job_of_any_state(wire, state):
    job_id = in_state(wire, state)
    assert wire.state(job_id) == state
    assert wire.ask(f"delete {job_id}") == b"DELETED"
    assert wire.ask(f"delete {job_id}") == b"NOT_FOUND"
    assert wire.state(job_id) is None


@pytest.mark.parametrize(
    ("state", "reply"),
    [("ready", b"DELETED"), ("delayed", b"DELETED"), ("buried", b"DELETED"), ("reserved", b"NOT_FOUND")],
)
def test_others_can_delete_a_job_that_is_not_reserved(connect, state, reply):
    job_id = in_state(connect(), state)
    assert connect().ask(f"delete {job_id}") == reply


@pytest.mark.parametrize("command", ["release {} 0 0", "bury {} 0", "touch {}"])
@pytest.mark.parametrize("state", ["ready", "delayed", "buried", "reserved"])
def test_only_the_holder_of_a_job_can_give_it_back_or_touch_it(connect, state, command):
    wire = connect()
    job_id = in_state(wire, state)
    assert connect().ask(command.format(job_id)) == b"NOT_FOUND"
    if state != "reserved":
        assert wire.ask(command.format(job_id)) == b"NOT_FOUND"
    assert wire.state(job_id) == state


def test_a_released_job_has_its_new_priority_and_delay(wire):
    job_id = wire.reserved(priority=7, delay=3)
    assert wire.ask(f"release {job_id} 5 60") == b"RELEASED"
    stats = wire.stats(f"-job {job_id}")
    assert [stats[key] for key in ("state", "pri", "delay", "releases")] == ["delayed", "5", "60", "1"]
    assert int(stats["time-left"]) in (59, 60)


def test_a_job_released_without_a_delay_goes_in_front_of_newer_ones(wire):
    job_id, newer = wire.put(), wire.put()
    assert wire.reserve() == job_id
    assert wire.ask(f"release {job_id} 0 0") == b"RELEASED"
    assert [wire.reserve(), wire.reserve()] == [job_id, newer]


def test_a_released_job_goes_to_a_waiting_client(connect):
    wire, waiting = connect(), connect()
    job_id = wire.reserved()
    waiting.send("reserve")
    assert wire.ask(f"release {job_id} 0 0") == b"RELEASED"
    assert waiting.read() == b"RESERVED %d 1\r\nx" % job_id


def test_a_buried_job_has_its_new_priority(wire):
    job_id = wire.reserved()
    assert wire.ask(f"bury {job_id} 9") == b"BURIED"
    stats = wire.stats(f"-job {job_id}")
    assert [stats[key] for key in ("state", "pri", "buries", "time-left")] == ["buried", "9", "1", "0"]
    assert wire.reserve() is None


def test_buried_jobs_are_kicked_in_the_order_in_which_they_were_buried(wire):
    ids = [wire.reserved(priority=priority) for priority in (1, 2, 3)]
    for job_id in reversed(ids):
        wire.ask(f"bury {job_id} 0")
    assert wire.ask("peek-buried") == b"FOUND %d 1\r\nx" % ids[2]
    assert wire.ask("kick 2") == b"KICKED 2"
    assert [wire.state(job_id) for job_id in ids] == ["buried", "ready", "ready"]
    assert wire.ask("kick 100") == b"KICKED 1"
    assert wire.stats(f"-job {ids[0]}")["kicks"] == "1"


def test_delayed_jobs_are_kicked_earliest_first_only_if_none_are_buried(wire):
    late, early = wire.put(delay=200), wire.put(delay=100)
    buried = in_state(wire, "buried")
    assert wire.ask("peek-delayed") == b"FOUND %d 1\r\nx" % early
    assert wire.ask("kick 100") == b"KICKED 1"
    assert [wire.state(job_id) for job_id in (late, early, buried)] == ["delayed", "delayed", "ready"]
    assert wire.ask("kick 1") == b"KICKED 1"
    assert [wire.state(job_id) for job_id in (late, early)] == ["delayed", "ready"]


def test_a_kick_is_for_the_tube_in_use(connect, tube):
    job_id = in_state(connect(), "buried")
    other = connect(f"{tube}-b")
    assert other.ask("kick 10") == b"KICKED 0"
    assert other.ask(f"kick-job {job_id}") == b"KICKED"


@pytest.mark.parametrize(
    ("state", "reply"),
    [("ready", b"NOT_FOUND"), ("reserved", b"NOT_FOUND"), ("delayed", b"KICKED"), ("buried", b"KICKED")],
)
def test_a_buried_or_delayed_job_can_be_kicked_by_its_id(wire, state, reply):
    assert wire.ask(f"kick-job {in_state(wire, state)}") == reply


def test_the_first_kicked_job_goes_to_a_waiting_client(connect):
    wire, waiting = connect(), connect()
    first, second = (wire.reserved() for _ in range(2))
    wire.ask(f"bury {first} 10")
    wire.ask(f"bury {second} 1")
    waiting.send("reserve")
    assert not waiting.has_reply(0.02)
    assert wire.ask("kick 2") == b"KICKED 2"
    assert waiting.read() == b"RESERVED %d 1\r\nx" % first


def test_peek_ready_shows_the_next_job_of_the_tube_in_use(wire):
    wire.put(b"b", priority=2)
    job_id = wire.put(b"a", priority=1)
    assert wire.ask("peek-ready") == b"FOUND %d 1\r\na" % job_id
    assert wire.reserve() == job_id


# -- clients that leave ----------------------------------------------------------------------------------------


def test_the_jobs_of_a_lost_connection_go_to_a_waiting_client_at_once(connect):
    holder, waiting = connect(), connect()
    ids = [holder.reserved(), holder.reserved()]
    waiting.send("reserve")
    assert not waiting.has_reply(0.02)
    holder.close()
    assert waiting.read() == b"RESERVED %d 1\r\nx" % ids[0]
    assert waiting.reserve(timeout=5) == ids[1]
    stats = waiting.stats(f"-job {ids[0]}")
    assert [stats[key] for key in ("reserves", "releases", "timeouts")] == ["2", "0", "0"]


def test_a_client_that_has_left_gets_no_jobs(connect, tube):
    gone, wire = connect(), connect()
    gone.send("reserve")
    wait_until(lambda: wire.stats(f"-tube {tube}")["current-waiting"] == "1", "it waits")
    gone.close()
    wait_until(lambda: wire.stats(f"-tube {tube}")["current-waiting"] == "0", "it is gone")
    job_id = wire.put()
    assert wire.reserve() == job_id


def test_quit_gives_back_held_jobs(connect):
    holder, wire = connect(), connect()
    job_id = holder.reserved()
    holder.send("quit")
    assert holder.read_all() == b""
    assert wire.reserve(timeout=5) == job_id


# -- tubes -----------------------------------------------------------------------------------------------------


def test_a_tube_exists_as_long_as_it_is_used_watched_or_has_jobs(connect, tube):
    def is_there() -> bool:
        return f"- {name}\n".encode() in wire.ask("list-tubes")

    wire, name = connect(), f"{tube}-b"
    wire.ask(f"use {name}")
    assert is_there()
    job_id = wire.put()
    wire.ask(f"use {tube}")
    assert is_there()
    wire.ask(f"watch {name}")
    wire.ask(f"delete {job_id}")
    assert is_there()
    wire.ask(f"ignore {name}")
    assert not is_there()


def test_the_tubes_of_a_connection_end_with_it(connect, tube):
    wire, gone = connect(), connect(f"{tube}-b")
    assert wire.stats(f"-tube {tube}-b")["current-using"] == "1"
    gone.close()
    wait_until(lambda: not wire.stats(f"-tube {tube}-b"), "the tube is gone")


def test_tubes_are_listed(connect, tube):
    wire = connect(tube=None)
    assert wire.ask("list-tubes-watched") == b"OK 14\r\n---\n- default\n"
    wire.ask(f"watch {tube}")
    assert set(wire.ask("list-tubes-watched").split(b"\n")[2:]) == {b"- default", b"- " + tube.encode(), b""}
    assert b"\n- default\n" in wire.ask("list-tubes")


def test_a_paused_tube_gives_no_jobs_until_its_pause_is_ended(connect, tube):
    wire, waiting = connect(), connect()
    assert wire.ask(f"pause-tube {tube} 100") == b"PAUSED"
    job_id = wire.put()
    assert wire.reserve() is None
    stats = wire.stats(f"-tube {tube}")
    assert [stats[key] for key in ("pause", "current-jobs-ready", "cmd-pause-tube")] == ["100", "1", "1"]
    assert int(stats["pause-time-left"]) in (99, 100)
    waiting.send("reserve")
    assert not waiting.has_reply(0.02)
    assert wire.ask(f"pause-tube {tube} 0") == b"PAUSED"
    assert waiting.read() == b"RESERVED %d 1\r\nx" % job_id
    assert wire.stats(f"-tube {tube}")["pause"] == "0"


def test_a_job_of_a_paused_tube_can_be_reserved_by_its_id(wire, tube):
    job_id = wire.put()
    wire.ask(f"pause-tube {tube} 100")
    assert wire.ask(f"reserve-job {job_id}").startswith(b"RESERVED")


# -- statistics ------------------------------------------------------------------------------------------------


def in_statistics(server, name):
    """Return a name as it appears in the server's statistics: in quotes since 1.13."""
    return f'"{name}"' if server.release >= (1, 13) else name


def test_the_statistics_of_a_job(server, wire, tube):
    job_id = wire.put(priority=5, delay=10, ttr=20)
    reply = wire.ask(f"stats-job {job_id}").decode()
    assert reply.partition("\r\n")[2].replace("time-left: 10", "time-left: 9") == (
        f"---\nid: {job_id}\ntube: {in_statistics(server, tube)}\nstate: delayed\npri: 5\nage: 0\ndelay: 10\nttr: 20\n"
        "time-left: 9\nfile: 0\nreserves: 0\ntimeouts: 0\nreleases: 0\nburies: 0\nkicks: 0\n"
    )


def test_the_statistics_of_a_tube(server, connect, tube):
    wire, other = connect(), connect()
    for state in ("ready", "delayed", "buried", "reserved"):
        in_state(wire, state)
    in_state(wire, "ready", priority=1024)  # not an urgent one
    wire.ask(f"delete {wire.put()}")
    other.send("reserve-job 999999")
    assert other.read() == b"NOT_FOUND"
    assert wire.ask(f"stats-tube {tube}").partition(b"\r\n")[2].decode() == (
        f"---\nname: {in_statistics(server, tube)}\ncurrent-jobs-urgent: 1\ncurrent-jobs-ready: 2\n"
        "current-jobs-reserved: 1\ncurrent-jobs-delayed: 1\ncurrent-jobs-buried: 1\ntotal-jobs: 6\n"
        "current-using: 2\ncurrent-watching: 2\ncurrent-waiting: 0\n"
        "cmd-delete: 1\ncmd-pause-tube: 0\npause: 0\npause-time-left: 0\n"
    )


def test_the_statistics_of_the_server_count_commands_and_clients(connect):
    wire = connect()

    def change(*lines: str) -> dict[str, int]:
        before = wire.stats()
        for line in lines:
            wire.ask(line)
        after = wire.stats()
        numbers = {key: int(after[key]) - int(before[key]) for key in after if re_number(after[key])}
        return {key: number for key, number in numbers.items() if number and key not in ("uptime", "cmd-stats")}

    job_id = wire.put()
    assert change(f"delete {job_id}", "release 999999 0 0", "delete x") == {
        "cmd-delete": 1,
        "cmd-release": 1,
        "current-jobs-ready": -1,
        "current-jobs-urgent": -1,
    }
    assert change("reserve-with-timeout 0") == {"cmd-reserve-with-timeout": 1, "current-workers": 1}
    assert change("use a", "watch b") == {"cmd-use": 1, "cmd-watch": 1, "current-tubes": 2}
    connect()
    assert int(wire.stats()["current-connections"]) >= 2


def re_number(value: str) -> bool:
    return value.lstrip("-").isdecimal()


def test_the_server_describes_itself(server, wire):
    stats = wire.stats()
    assert stats["max-job-size"] == "1000"
    assert stats["draining"] == "false"
    assert stats["version"] == '"{}.{}"'.format(*server.release)
    for name in ("hostname", "os", "platform"):
        assert stats[name] == in_statistics(server, stats[name].strip('"'))
    assert int(stats["pid"]) > 0
    assert len(stats) == 51
