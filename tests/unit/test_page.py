"""The status page: its layout, its reader and the places where it is."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flask_backend.outcome import Ending
from flask_backend.supervisor.scoreboard import Publication, Row, Scoreboard
from flask_backend.supervisor.states import ChildState
from flask_backend.system import health, page

LABELS = {"q": ["hello", "resize"], "other": []}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Let supervisors publish in a folder of this test, and readers look there."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    assert next(page._folders()) == str(tmp_path)
    monkeypatch.setattr(page, "_folders", lambda: [str(tmp_path)])  # and not at those of other tests
    return tmp_path


@pytest.fixture
def publish(folder):
    boards = []

    def publish(generation=0, memories=(), **options):
        board = Scoreboard(LABELS, 8, Publication(str(folder), generation), **options)
        boards.append(board)
        board.words = board.inherit(memories)
        board.publish()
        return board

    yield publish
    for board in boards:
        board.close()


def ours():
    return page.find(os.getpid()).get(os.getpid())


def test_each_word_of_the_layout_has_a_name_and_a_place():
    for names in (page.HEADER, page.QUEUE, page.ROW, page.LABEL):
        assert len(set(names)) == len(names)
    assert (page.HEADER[page.SEQUENCE], page.HEADER[page.QUEUES]) == ("sequence", "queues")
    assert (page.ROW[page.AWAY_SINCE_NS], page.ROW[page.BURIED_BEFORE]) == ("away_since_ns", "buried_before")
    assert (page.ROW[page.SLOT], page.ROW[page.LIMITED_SINCE_NS]) == ("slot", "limited_since_ns")
    assert page.LABEL[page.DONE : page.BUSY_NS + 1][4:] == ("expired", "crashed", "given_back", "reconnects", "busy_ns")
    assert (page.LABEL[page.DURATIONS], page.LABEL[page.WAITED_US - 1]) == ("ran_below_1_ms", "ran_below_inf")
    assert page.LABEL[page.WAITED_US : page.WAITS + 1] == ("waited_us", "waited_below_1_ms")
    assert len(page.LABEL) == page.WAITS + page.BUCKETS
    assert page.LABEL[page.DONE : page.EXPIRED + 1] == tuple(ending.name.lower() for ending in Ending)
    assert tuple(state.name.lower() for state in ChildState) == page.WORKER_STATES
    assert len(page.HEADER) <= page.HEADER_WORDS


def test_a_page_says_what_a_supervisor_and_its_workers_do(publish):
    board = publish()
    board.show_state("running")
    board.show_plan([("q", 2, 1, 4), ("other", 1, 1, 1)])
    row = board.take("q")
    row.show_state(ChildState.READY)
    row.show_memory(5 << 20)
    row.occupy(4711)
    row.begin(7)
    row.run("resize", None)
    board.show_facts({"deaths": []}, checks=3)
    found = ours()
    assert (found.page.state, found.page.pid, found.page.header[page.CHECKS]) == ("running", os.getpid(), 3)
    assert (found.frozen_s, found.is_stopped) == (None, False)
    assert [(each.wanted, each.minimum, each.maximum) for each in found.page.queues] == [(2, 1, 4), (1, 1, 1)]
    assert found.page.labels() == {"q": ["?", "hello", "resize"], "other": ["?"]}
    assert found.page.facts() == {"deaths": []}
    queue, other = found.page.queues
    assert (queue.wanted, queue.count_serving(), other.wanted, other.workers) == (2, 1, 1, [])
    (worker,) = queue.workers
    assert (worker.pid, worker.state, worker.job, worker.words[page.LABEL_NUMBER]) == (4711, "ready", 7, 2)
    assert worker.words[page.PRIVATE_BYTES] == 5 << 20
    row.show_broker(is_away=True)
    row.end(Ending.RETRIED)
    (queue, _) = ours().page.queues
    assert (queue.count_serving(), queue.workers[0].job, queue.workers[0].total(page.RETRIED)) == (0, None, 1)


def test_a_file_explains_itself(publish, folder):
    publish()
    path, stacks = sorted(folder.iterdir())
    assert stacks.name == path.name + page.STACKS
    assert {stat.S_IMODE(each.stat().st_mode) for each in (path, stacks)} == {0o600}
    data = path.read_bytes()
    words = memoryview(data[: 8 * page.HEADER_WORDS]).cast("Q")
    told = json.loads(data[words[page.LABELS_AT] :][: words[page.LABELS_BYTES]])
    assert told["format"] == page.FORMAT
    assert told["queues"] == {"q": ["?", "hello", "resize"], "other": ["?"]}
    assert tuple(told["words"]["row"]) == page.ROW
    header = dict(zip(told["words"]["header"], words, strict=False))
    assert (header["pid"], header["started_ticks"]) == (os.getpid(), page.read_process(os.getpid())[1])


def test_a_job_that_waits_for_a_limit_is_not_stuck(publish, capsys):
    board = publish()
    row = board.take("q")
    row.occupy(os.getpid())
    row.begin(7)
    row.show_limit(is_waiting=True)
    row._words[page.JOB_SINCE_NS] -= 10**12
    stuck = health.Request(live=True, ready=False, pid=os.getpid(), stuck_after_s=60)
    assert health.report(stuck) == 0
    assert capsys.readouterr().out.endswith("1 worker, 0 busy\n")
    row.show_limit(is_waiting=False)
    assert health.report(stuck) == 1


def test_a_workers_counts_begin_again_with_the_worker_and_those_of_the_queue_go_on(publish):
    board = publish()
    for pid in (1, 2):
        row = board.take("q")
        row.occupy(pid)
        row.begin(1)
        row.end(Ending.DONE)
        (worker,) = ours().page.queues[0].workers
        assert worker.pid == pid
        assert worker.total(page.DONE) == pid
        assert worker.words[page.DONE_BEFORE] == pid - 1
        board.give_back("q", row)
    assert ours().page.queues[0].workers == []


def test_a_page_of_a_supervisor_that_is_gone_is_recognised_and_removed_by_the_next_one(publish, folder):
    code = (
        "import os, sys\nfrom flask_backend.supervisor.scoreboard import Publication, Scoreboard\n"
        "Scoreboard({}, 1, Publication(sys.argv[1])).publish(); print(os.getpid())"
    )
    gone = int(subprocess.run([sys.executable, "-c", code, folder], capture_output=True, check=True).stdout)
    stale, _ = sorted(folder.iterdir())
    draft = folder / f".{stale.name}"
    draft.touch()
    stranger = folder / "9.0.1"  # of another namespace of pids
    stranger.touch()
    assert page.parse_name(stale.name) == (gone, 0)
    assert gone not in page.find()  # which also has those of other programs
    publish()
    assert gone not in page.find()
    assert os.getpid() in page.find()
    own = page.name_for(os.getpid(), 0)
    assert sorted(path.name for path in folder.iterdir()) == sorted([own, own + page.STACKS, stranger.name])


def test_a_page_whose_pid_belongs_to_another_process_now_is_stale(publish, folder):
    board = publish()
    board._words[page.STARTED_TICKS] -= 1
    assert ours() is None
    assert page.is_stale(board.memory.path, os.getpid())
    board._words[page.STARTED_TICKS] += 1
    assert ours()
    assert not page.is_stale(board.memory.path, os.getpid())


def test_a_page_is_read_though_proc_hides_its_process(publish, folder, monkeypatch):
    """As in a command of a systemd unit with PrivateUsers= and ProtectProc=."""
    board = publish()
    with subprocess.Popen(["true"]) as gone:
        gone.wait()

    def refuse(path, *_, **__):
        raise FileNotFoundError(path)

    monkeypatch.setattr(page, "open", refuse, raising=False)
    assert page.read_process(os.getpid()) == ("?", 0)
    assert ours().page.state == "starting"
    assert ours().frozen_s is None
    assert not page.is_stale(board.memory.path, os.getpid())
    assert page.read_process(gone.pid) is None
    assert page.is_stale(board.memory.path, gone.pid)


def test_an_unfinished_change_is_not_read_as_a_finished_one(publish):
    board = publish()
    with board._changing():
        changed = threading.Timer(0.01, board._words.__setitem__, (page.STATE, 3))
        ended = threading.Timer(0.02, board._words.__setitem__, (page.SEQUENCE, 8))
        changed.start()
        ended.start()
        assert ours().page.state == "draining"
        ended.join()
        board._words[page.SEQUENCE] = 9
        assert ours().page.state == "draining"  # its writer was stopped in between: better than nothing


def test_a_job_that_changes_during_each_reading_is_not_shown(publish, monkeypatch):
    board = publish()
    row = board.take("q")
    row.occupy(1)
    read_words = page._read_words

    def change(*args):
        row.begin(row._words[page.JOB] + 1)
        return read_words(*args)

    monkeypatch.setattr(page, "_read_words", change)
    (worker,) = ours().page.queues[0].workers
    assert (worker.is_torn, worker.job) == (True, None)


def test_older_pages_count_only_their_living_workers(publish):
    board = publish()
    ended, alive = board.take("q"), board.take("q")
    for number, row in enumerate((ended, alive)):
        row.occupy(10 + number)
        row.begin(1)
        row.end(Ending.DONE)
    board.give_back("q", ended)
    memory = os.dup(board.memory.fd), board.memory.path
    new = publish(1, [memory], past=board.totals_of_exited(alive=[("q", alive)]))
    place = dataclasses.replace(alive.place, fd=memory[0])
    new.adopt(11, "q", Row.find(place, new.words[place.fd]))
    new.let_go_of_earlier()
    newest, older = ours().pages
    assert newest.queues[0].past.total(page.DONE) == 1
    assert [worker.pid for worker in older.queues[0].workers] == [11]
    new.retire(11)
    (newest,) = ours().pages
    assert newest.queues[0].past.total(page.DONE) == 2


def test_without_a_folder_the_page_is_found_through_proc():
    board = Scoreboard(LABELS, 8)
    board.publish()
    assert ours().page.pid == os.getpid()
    os.close(board.memory.fd)


def test_a_full_file_system_refuses_a_worker_instead_of_killing_it(publish, monkeypatch):
    board = publish()

    def refuse(fd, *_args):
        if "memfd:" not in str(Path(f"/proc/self/fd/{fd}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space left"):
        board.take("q")
    in_memory = publish(1)
    assert in_memory.memory.path is None
    assert in_memory.take("q")


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, page.MAGIC.to_bytes(8, "little") + b"\xff" * 1000, page.MAGIC.to_bytes(8, "little")]
)
def test_a_file_that_is_not_a_page_is_refused(folder, content):
    path = folder / page.name_for(os.getpid(), 0)
    path.write_bytes(content)
    assert ours() is None
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(page.PageError):
        page.read(fd)
    os.close(fd)


def test_a_page_whose_rows_have_other_words_is_refused(publish, monkeypatch):
    publish()
    assert ours() is not None
    monkeypatch.setattr(page, "LABEL_WORDS", page.LABEL_WORDS + 1)  # those of another version
    assert ours() is None


def test_a_pipe_in_place_of_a_page_does_not_block(folder):
    os.mkfifo(folder / page.name_for(os.getpid(), 0))
    assert ours() is None


def test_the_folder_belongs_to_its_user_alone(folder, monkeypatch):
    assert page.folder_for(os.environ) == str(folder)
    assert page.folder_for({"RUNTIME_DIRECTORY": f"{folder}:/other"}) == str(folder)
    monkeypatch.setattr(os, "getuid", lambda: 987654)
    made = page.folder_for({})  # it cannot belong to that user
    Path("/dev/shm/flask-backend-987654").rmdir()  # noqa: S108  # the one that it has just tried
    assert made is None


def test_a_page_of_another_layout_is_not_read(publish):
    """Another release may run beside this one: its supervisor must not keep `status` from showing the others."""
    board = publish()
    assert os.getpid() in page.find(os.getpid())
    path = Path(board.memory.path)
    data = bytearray(path.read_bytes())
    data[:8] = (page.MAGIC + 1).to_bytes(8, sys.byteorder)
    path.write_bytes(data)
    assert os.getpid() not in page.find(os.getpid())
    code = "from flask_backend.system import page\nprint(page.FORMAT)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert int(told) == page.FORMAT  # the same in each process


def test_the_reader_needs_few_modules():
    code = "import sys\nimport flask_backend.system.page\nprint(*sys.modules)"
    modules = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"json", "re", "typing", "dataclasses", "click", "flask", "pathlib"} & set(modules.split()) == set()
