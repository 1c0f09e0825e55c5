"""The files in deploy/prometheus: what they refer to is exposed, and Prometheus understands them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.published import Published, work

from flask_backend.system import page
from flask_backend.system.procfs import PROC_IS_THERE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]},
    **{each["name"]: each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"},
}
# Labels that Prometheus or its user adds.
OF_PROMETHEUS = {"cluster", "namespace", "job", "instance", "le", "__name__"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool, of the package prometheus"
)


@pytest.fixture
def exposed(tmp_path, monkeypatch):
    """The labels of each sample that is exposed, and the values of each."""
    monkeypatch.setattr(page, "_folders", lambda: [str(tmp_path)])
    published = Published(tmp_path)
    work(published.start())
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(published.text()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    yield found
    for board in published.boards:
        board.close()


@pytest.mark.skipif(not PROC_IS_THERE, reason="needs Linux")
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_each_metric_label_and_value_in_an_expression_is_exposed(exposed, name):
    expression = EXPRESSIONS[name]
    names = set(re.findall(r"flask_backend_\w+", expression))
    assert names
    assert names <= set(exposed)
    known: dict[str, set[str]] = {}
    for each in names:
        for label, values in exposed[each].items():
            known.setdefault(label, set()).update(values)
    for label, values in re.findall(r'(\w+)(?:=|=~|!=|!~)"([^"]*)"', expression):
        if label not in OF_PROMETHEUS and not values.startswith("$"):
            assert set(values.split("|")) <= known[label]
    grouped = [label for group in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for label in group.split(", ")]
    assert set(grouped) <= set(known) | OF_PROMETHEUS


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_says_what_is_wrong_how_bad_it_is_and_where_its_runbook_is(rule):
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/oncall/alerts.md#{rule['alert'].lower()}"
    assert rule["alert"].startswith("FlaskBackend")


def test_each_alert_has_a_test():
    tests = yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES}


def test_the_dashboard_can_be_imported_and_its_panels_do_not_overlap():
    assert (DASHBOARD["uid"], DASHBOARD["schemaVersion"]) == ("flask-backend", 39)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        taken |= cells
        assert all(0 <= x < 24 for x, _ in cells)
    for panel in PANELS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@needs_promtool
@pytest.mark.parametrize(
    "command",
    [("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml"), ("check", "config", "scrape.yaml")],
)
def test_promtool_accepts_the_rules_with_their_tests_and_the_configuration(command):
    checked = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "SUCCESS" in checked.stdout


@needs_promtool
@pytest.mark.parametrize("name", [name for name in EXPRESSIONS if "label_values" not in EXPRESSIONS[name]])
def test_promtool_can_parse_each_expression_of_the_dashboard(tmp_path, name):
    expression = EXPRESSIONS[name].replace("$__rate_interval", "5m")
    rules = {"groups": [{"name": "g", "rules": [{"record": "r", "expr": expression}]}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    checked = subprocess.run(["promtool", "check", "rules", "rules.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
