from __future__ import annotations

import os
import sys
from selectors import DefaultSelector

import psutil
import pytest
from support.waiting import wait_until

from flask_backend.config import Address
from flask_backend.development.inquiry import users_files
from flask_backend.development.loop import is_here, show_files
from flask_backend.development.programs import CommandLine, Program
from flask_backend.development.transcript import Lines, Transcript
from flask_backend.system.streams import Outlet


class TestLines:
    def test_a_line_is_held_until_it_is_whole(self):
        lines = Lines()
        assert lines.feed(b"one\ntw") == [b"one"]
        assert lines.feed(b"o\n\nthree") == [b"two", b""]
        assert lines.end() == [b"three"]
        assert lines.end() == []

    def test_the_last_state_of_an_overwritten_line_counts(self):
        assert Lines().feed(b"10 %\r50 %\r100 %\r\ndone\r\n") == [b"100 %", b"done"]

    def test_a_line_without_an_end_is_not_held_forever(self):
        lines = Lines()
        assert lines.feed(b"x" * 70_000) == [b"x" * 70_000]
        assert lines.feed(b"y\n") == [b"y"]


class TestTranscript:
    def written(self, line: bytes, *, is_coloured: bool) -> bytes:
        r, w = os.pipe()
        Transcript(Outlet(w), {"web": 36, "workers": 32}, is_coloured=is_coloured).write("web", line)
        written = os.read(r, 1000)
        os.close(r)
        os.close(w)
        return written

    def test_each_line_begins_with_its_program(self):
        assert self.written(b"hello", is_coloured=False) == b"web     | hello\n"

    def test_an_empty_line_has_no_blank_at_its_end(self):
        assert self.written(b"", is_coloured=False) == b"web     |\n"

    def test_without_colours_those_of_the_program_are_removed(self):
        assert self.written(b"\x1b[33mGET / 404\x1b[0m", is_coloured=False) == b"web     | GET / 404\n"

    def test_a_colour_that_a_line_leaves_on_ends_with_it(self):
        assert self.written(b"\x1b[31mred", is_coloured=True) == b"\x1b[36mweb     |\x1b[0m \x1b[31mred\x1b[0m\n"

    def test_a_closed_reader_is_noticed(self):
        r, w = os.pipe()
        os.close(r)
        transcript = Transcript(Outlet(w), {"web": 36}, is_coloured=False)
        transcript.write("web", b"hello")
        os.close(w)
        assert transcript.is_lost


@pytest.fixture
def run():
    """Run Python code as a program; return its output, and how it ended."""
    selector = DefaultSelector()
    lines: list[bytes] = []
    program = Program("test", lines.append, selector, grace_s=0.2)

    def start(code: str) -> tuple[Program, list[bytes]]:
        program.start(CommandLine(["-c", code]))
        return program, lines

    yield start
    program.kill()
    wait_until(lambda: not program.is_running or program.reap(), "it is dead")
    selector.close()


def listen(program: Program) -> None:
    for key, _ in program._selector.select(0.05):
        key.data()


class TestProgram:
    def test_its_output_is_read_to_the_last_word_and_its_exit_is_reported(self, run):
        program, lines = run("import sys; print('out'); print('err', file=sys.stderr, end=''); sys.exit(7)")
        exit_ = wait_until(program.reap, "it has ended")
        assert (lines, str(exit_)) == ([b"out", b"err"], "exited with status 7")
        assert not program.is_running
        assert program.reap() is None

    def test_its_output_is_read_while_it_runs(self, run):
        program, lines = run("import time; print('here'); time.sleep(60)")
        wait_until(lambda: listen(program) or lines, "a line")
        assert program.is_running
        assert program.has_spoken

    def test_a_program_that_closes_its_output_goes_on(self, run):
        program, _ = run("import os, time; os.close(1); os.close(2); time.sleep(60)")
        wait_until(lambda: listen(program) or program._output < 0, "the end of its output")
        assert program.reap() is None
        assert program.is_running

    def test_processes_started_by_it_end_with_it(self, run):
        program, lines = run(
            "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE,"
            "process_group=0); print(p.pid); p.stdin = None"
        )
        wait_until(program.reap, "it has ended")
        pid = int(lines[0])
        wait_until(lambda: is_dead(pid), "its process is dead, too")

    def test_a_program_that_does_not_stop_is_killed_when_its_time_is_over(self, run):
        program, lines = run(
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(60)"
        )
        wait_until(lambda: listen(program) or lines, "it is deaf")
        program.stop()
        program.kill_overdue(program.started_at)
        assert program.reap() is None
        exit_ = wait_until(lambda: program.kill_overdue(program._kill_at) or program.reap(), "it has ended")
        assert exit_.signal == 9
        assert program.was_told_to_end

    def test_it_leads_a_session_without_a_terminal(self, run):
        program, lines = run("import os, sys; print(os.getsid(0) == os.getpid(), sys.stdin.read() == '')")
        wait_until(program.reap, "it has ended")
        assert lines == [b"True True"]


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class TestUsersFiles:
    def test_they_are_neither_the_standard_librarys_nor_installed_nor_ours(self):
        files = users_files()
        assert __file__ in files
        for name in ("json", "pytest", "flask_backend.config"):
            assert sys.modules[name].__file__ not in files

    def test_a_file_that_cannot_be_compiled_is_included(self, tmp_path):
        file = tmp_path / "broken.py"
        with pytest.raises(SyntaxError) as raised:
            compile("def (", str(file), "exec")
        assert str(file) in users_files(raised.value)

    def test_the_files_of_a_causing_exception_are_included(self, tmp_path):
        code = compile("1 / 0", str(tmp_path / "broken.py"), "exec")
        with pytest.raises(RuntimeError) as raised:
            raise_from(code)
        assert str(tmp_path / "broken.py") in users_files(raised.value)


def raise_from(code) -> None:
    try:
        exec(code)  # noqa: S102  # the test's own
    except ZeroDivisionError as error:
        raise RuntimeError from error


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("mq", False)],
)
def test_an_address_is_local_if_only_this_machine_can_reach_it(host, here):
    assert is_here(Address(host)) is here


def test_files_are_named_relative_to_the_folder_and_only_some_of_many():
    assert show_files({"/srv/app/b.py", "/srv/app/sub/a.py", "/lib/c.py"}, "/srv/app") == "/lib/c.py, b.py, sub/a.py"
    assert show_files({f"/srv/app/{n}.py" for n in range(5)}, "/srv/app") == "0.py, 1.py, 2.py and 2 more"
