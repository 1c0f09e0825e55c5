"""The calculations and reports of benchmarks/; the measurements themselves are not tested."""

from __future__ import annotations

import json
import os
import time
from array import array
from xml.etree import ElementTree as ET

import busy
import check
import goals
import measures
import pages
import pytest
import stamps
from chart import Panel, draw
from contenders import bare
from cpu import cpu_s, family_cpu_s
from facts import Fact, median, put_facts
from figures import Figure, Goal, find, judge
from measures import CALL_CPU, JOB_CPU, rotated
from report import BEGIN, END, Report, figures_table, number, put_between

from flask_backend.message import encode_call, head_of, new_uid

OURS = Figure("jobs", "ours", "jobs/s", [200.0, 330.0, 100.0])
BARE = Figure("jobs", "bare", "jobs/s", [100.0, 300.0, 400.0])


def test_the_ratio_is_the_median_of_the_rounds_ratios():
    [verdict] = judge([Goal("jobs", "ours", 1.2, is_at_least=True, against="bare")], [OURS, BARE])
    assert verdict.values == [2.0, 1.1, 0.25]
    assert verdict.median == 1.1
    assert not verdict.is_met


def test_a_goal_in_its_own_unit_looks_at_the_values():
    [verdict] = judge([Goal("jobs", "ours", 200, is_at_least=False)], [OURS])
    assert (verdict.median, verdict.unit, verdict.is_met) == (200, "jobs/s", True)


@pytest.mark.parametrize(
    "goal",
    [
        Goal("jobs", "other", 1, is_at_least=True),
        Goal("other", "ours", 1, is_at_least=True),
        Goal("jobs", "ours", 1, is_at_least=True, against="other"),
    ],
)
def test_a_figure_that_was_not_measured_has_no_verdict(goal):
    assert judge([goal], [OURS, BARE]) == []


def test_the_rate_leaves_out_the_first_and_the_last_tenth():
    steady = [round(n * 1e6) for n in range(100)]  # one each ms
    times = array("q", [-(10**9), *steady[1:95], *[10**10] * 5])
    assert stamps.rate(times) == pytest.approx(1000)


def test_the_rate_does_not_depend_on_the_order_in_which_workers_write():
    assert stamps.rate(array("q", [3, 1, 0, 2, 9, 8, 7, 5, 6, 4])) == stamps.rate(array("q", range(10)))


def test_stamps_are_read_as_they_were_written(tmp_path, monkeypatch):
    path = tmp_path / "stamps"
    assert stamps.count(path) == 0
    with path.open("wb") as file:
        monkeypatch.setattr(stamps, "_fd", file.fileno())
        stamps.stamp()
        stamps.stamp()
    assert stamps.count(path) == 2
    first, second = stamps.read(path)
    assert 0 < first <= second


def test_each_contender_is_first_in_a_round():
    assert [rotated("abc", n) for n in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert rotated([], 1) == []


def test_the_bare_loops_have_bodies_as_large_as_ours():
    body = encode_call(head_of("hello"), ["x"], {}, new_uid())
    assert len(bare.BODY) == len(body) == len(bare.BODY.decode())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0.00"),
        (0.0034, "0.0034"),
        (0.349, "0.35"),
        (9.96, "9.96"),
        (12.34, "12.3"),
        (123.4, "123"),
        (12345.6, "12,346"),
    ],
)
def test_numbers_have_three_digits_or_all(value, shown):
    assert number(value) == shown


def test_a_table_shows_the_ratio_of_our_value_to_each_one():
    assert figures_table([OURS, BARE]).splitlines()[2:] == [
        "| ours | 200 jobs/s | 100 to 330 |  |",
        "| bare | 300 jobs/s | 100 to 400 | 1.10 times |",
    ]


def test_a_table_of_figures_with_other_rounds_has_no_ratios():
    assert figures_table([OURS, Figure("jobs", "bare", "jobs/s", [1.0])]).endswith("| bare | 1.00 jobs/s |  |  |")


@pytest.fixture
def report():
    goals = [Goal("jobs", "ours", 1.2, is_at_least=True, against="bare"), Goal("jobs", "ours", 150, is_at_least=True)]
    return Report({"CPU": "a fast one"}, 3, [OURS, BARE], goals, {"ours": "as it is"})


def test_the_report_includes_missed_goals(report):
    text = report.markdown()
    assert "| jobs: ours | at least 1.2 times bare | 1.10 | 0.25 to 2.00 | **missed** |" in text
    assert "| jobs: ours | at least 150 jobs/s | 200 | 100 to 330 | met |" in text
    assert "Measured in 3 rounds on: CPU a fast one." in text
    assert "**ours.** as it is" in text


def test_the_json_has_every_value_and_every_goal(report):
    content = json.loads(report.json())
    figures = [Figure(**each) for each in content["figures"]]
    assert find(figures, "jobs", "bare") == BARE
    assert [goal["is_met"] for goal in content["goals"]] == [False, True]


def test_a_report_is_rendered_again_from_its_json_with_the_settings_of_today(report):
    again = Report.from_json(report.json(), report.goals, {"bare": "as it must be"})
    assert again.settings == {"ours": "as it is", "bare": "as it must be"}
    assert (again.machine, again.rounds, again.figures) == (report.machine, report.rounds, report.figures)


def test_new_measurements_replace_the_old_ones_and_nothing_else():
    page = put_between(f"before\n{_marked('')}\nafter\n", BEGIN, END, "one")
    assert page == f"before\n{_marked('one')}\nafter\n"
    assert put_between(page, BEGIN, END, "two") == page.replace("one", "two")
    with pytest.raises(ValueError, match="the page has no"):
        put_between("before", BEGIN, END, "one")


def _marked(text):
    return f"{BEGIN}\n\n{text}\n\n{END}"


def test_the_chart_is_well_formed_and_names_every_contender():
    figures = [OURS, Figure("jobs", "a <&> b", "jobs/s", [0.0, 0.0, 0.0])]
    root = ET.fromstring(draw("Speed", [Panel(figures, "more is better"), Panel([BARE], "more is better")]))  # noqa: S314 - our own
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Jobs", "jobs/s; more is better", "ours", "a <&> b", "bare", "200", "300"} <= texts
    widths = [float(element.get("width")) for element in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert min(widths) >= 1


# -- what a busy host pays -----------------------------------------------------------------------------------

COSTS = [
    Figure(JOB_CPU, "ours", "µs", [40.0, 50.0, 60.0]),
    Figure(JOB_CPU, "bare greenstalk loop", "µs", [40.0, 40.0, 40.0]),
    Figure(JOB_CPU, "RQ", "µs", [4000.0, 5000.0, 9000.0]),
    Figure(CALL_CPU, "ours", "µs", [30.0]),
    Figure(CALL_CPU, "RQ", "µs", [600.0, 500.0]),
]


def test_the_table_of_costs_has_a_row_for_each_contender_with_multiples_of_ours():
    assert busy.costs_table([OURS, *COSTS]).splitlines()[2:] == [
        "| ours | 50.0 |  | 30.0 |  |  |",
        "| bare greenstalk loop | 40.0, 0.80 times |  |  |  |  |",
        "| RQ | 5,000, 100 times |  | 550 |  |  |",  # other rounds have no ratio
    ]


def test_a_bar_that_is_far_longer_than_ours_is_cut_and_keeps_its_number():
    root = ET.fromstring(draw("Costs", busy.panels(COSTS[:3])))  # noqa: S314 - our own
    bars = [float(each.get("width")) for each in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert bars == pytest.approx([bars[2] / 8, bars[2] / 10, bars[2]], abs=0.1)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 1
    assert "5,000" in {each.text for each in root.iter("{http://www.w3.org/2000/svg}text")}


def test_without_costs_the_page_has_no_section_about_a_busy_host(report):
    assert busy.panels(report.figures) == []
    assert pages.BUSY not in pages.render(report)[pages.EXPLAIN / "benchmarks.md"].partition(BEGIN)[2]


def test_the_page_shows_the_costs_as_a_table_and_as_a_picture_before_the_goals(report):
    files = pages.render(Report(report.machine, 3, COSTS, report.goals, {}))
    text = files[pages.EXPLAIN / "benchmarks.md"]
    assert text.index("### What a busy host pays") < text.index("(busy.svg)") < text.index("### Goals")
    assert "What a busy host pays" in files[pages.EXPLAIN / "busy.svg"]


def test_the_cpu_time_of_a_process_includes_its_threads_and_ended_children():
    before, now = cpu_s(os.getpid()), time.process_time()
    assert before == pytest.approx(now, abs=1)
    assert family_cpu_s(os.getpid()) >= before


# -- the pages -----------------------------------------------------------------------------------------------


def test_every_page_with_measurements_is_the_one_that_their_json_makes():
    for path, text in pages.render(pages.read()).items():
        assert path.read_text() == text, f"run ./run bench --render, which writes {path.name} again"


JOBS_A_SECOND = Fact(
    "does {} jobs\na second, and {} with", lambda figures: [f"{median(figures, 'jobs', 'ours'):g}", "7"]
)


def test_a_fact_gets_the_values_of_today_and_keeps_its_line_breaks():
    page = "It does 1,000 jobs a\nsecond, and 3\nwith care."
    assert put_facts(page, [JOBS_A_SECOND], [OURS]) == "It does 200 jobs a\nsecond, and 7\nwith care."


@pytest.mark.parametrize(
    "page", ["It does many.", "does 1 jobs a second, and 2 with. It does 1 jobs a second, and 2 with"]
)
def test_a_page_that_does_not_have_a_fact_once_is_an_error(page):
    with pytest.raises(ValueError, match=r"does \{\} jobs"):
        put_facts(page, [JOBS_A_SECOND], [OURS])


def test_a_fact_whose_figure_was_not_measured_stays_as_it_is():
    page = "does 1,000 jobs a second, and 3 with"
    assert put_facts(page, [JOBS_A_SECOND], [BARE]) == page


@pytest.mark.parametrize(
    ("wanted", "measured"), [(check.LIMITS, check.MEASURES), (goals.GOALS, measures.MEASURES)], ids=["check", "goals"]
)
def test_every_goal_is_about_a_measured_contender(wanted, measured):
    found = {(name, contender) for measure in measured for name in measure.names for contender in measure.contenders}
    assert {(goal.name, name) for goal in wanted for name in (goal.contender, goal.against) if name} <= found
