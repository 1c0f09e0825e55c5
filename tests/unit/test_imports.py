"""The layers of the architecture: imports go one way."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import flask_backend

PACKAGE = Path(flask_backend.__file__).parent
NAME = PACKAGE.name

# The values, which all rooms may use; they import only each other.
VALUES = {"bulk", "config", "deaths", "decisions", "durations", "errors", "functions", "message", "names", "options"}
VALUES |= {
    "limit",
    "masking",
    "middleware",
    "outcome",
    "quantities",
    "retry",
    "stories",
    "tracebacks",
    "visible",
    "zones",
}
# The rooms that each of the others imports, beside the values: docs/architecture.md draws these arrows.
ARROWS = {
    "values": set(),
    "system": set(),
    "registry": set(),
    "broker": {"system"},
    "current": {"broker", "system", "transactions"},
    "embedded": set(),
    "supervisor": {"system"},
    "signals": {"system"},
    "tracing": {"current", "system"},
    "worker": {"current", "broker", "registry", "signals", "system", "tracing"},
    "inprocess": {"worker", "current", "broker", "embedded", "registry", "signals", "tracing"},
    "job": set(),
    "transactions": set(),
    "deferral": {"broker", "job", "registry", "signals", "system", "transactions"},
    "batch": {"broker", "deferral", "job", "scheduling", "task", "tracing", "transactions"},
    "scheduling": {"job"},
    "task": {"current", "job", "scheduling", "tracing", "worker"},
    "periodic": {"broker", "system"},
    "extension": {"task", "job", "scheduling", "current", "inprocess", "broker", "registry", "signals", "system"}
    | {"batch", "deferral", "periodic", "tracing", "transactions"},
    "operations": {"broker", "periodic", "registry", "system"},
    "metrics": {"operations", "system"},
    "dashboard": {"broker", "extension", "operations", "signals", "system"},
    "logs": {"current", "system"},
    "development": {"system"},
    "testing": {"extension", "task", "job", "inprocess", "broker", "periodic", "registry"},
    "cli": {"extension", "task", "operations", "signals", "worker", "supervisor", "broker", "registry", "system"}
    | {"dashboard", "development", "embedded", "logs", "metrics", "periodic", "tracing", "transactions"},
    "contrib": {"current", "signals", "system", "tracing"},
    "flask_script": {"cli"},
    "__main__": {"cli", "system"},
}


def read_imports(package: Path) -> dict[str, set[str]]:
    """Return for each module the modules that it imports, at its top, in a function or for type checkers only."""
    modules = {_name_of(path, package): path for path in package.rglob("*.py")}
    return {name: set(_imports_of(name, path, set(modules))) for name, path in modules.items()}


def _name_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports_of(name: str, path: Path, modules: set[str]):
    folder = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = folder.split(".")[: len(folder.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                if (found := f"{source}.{alias.name}") in modules or (found := source) in modules:
                    yield found


IMPORTS = read_imports(PACKAGE)
# The package's own __init__ imports the public names for type checkers, and on first access.
INNER = {name: imports - {NAME} for name, imports in IMPORTS.items() if name != NAME}


def _room(name: str) -> str:
    first = name.split(".")[1]
    return "values" if first in VALUES else first


def test_all_kinds_of_imports_are_seen(tmp_path):
    package = tmp_path / "house"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "hall.py").write_text("import house.room.table\ndef f():\n    from .room import chair\n")
    (package / "room" / "__init__.py").write_text("from . import table\n")
    (package / "room" / "table.py").write_text("import os\nfrom ..hall import f\nfrom house import hall as h\n")
    (package / "room" / "chair.py").write_text("if TYPE_CHECKING:\n    from .table import Leg\n")
    assert read_imports(package) == {
        "house": set(),
        "house.hall": {"house.room.table", "house.room.chair"},
        "house.room": {"house.room.table"},
        "house.room.table": {"house.hall"},
        "house.room.chair": {"house.room.table"},
    }


def test_there_is_no_cycle_of_modules():
    TopologicalSorter(INNER).prepare()  # raises CycleError, which names one


def test_the_imports_between_the_rooms_match_the_table():
    found: dict[str, set[str]] = {}
    for name, imports in INNER.items():
        found.setdefault(_room(name), set()).update(_room(each) for each in imports)
    assert {room: rooms - {room, "values"} for room, rooms in found.items()} == ARROWS


def test_there_is_no_cycle_of_rooms():
    TopologicalSorter(ARROWS).prepare()


def test_the_supervisor_knows_neither_flask_nor_beanstalkd():
    for path in (PACKAGE / "supervisor").rglob("*.py"):
        assert "import flask\n" not in path.read_text()
        assert "from flask " not in path.read_text()
    used = set().union(*(imports for name, imports in INNER.items() if _room(name) == "supervisor"))
    assert {each for each in used if _room(each) == "values"} == {f"{NAME}.deaths", f"{NAME}.outcome"}


def test_only_the_broker_imports_greenstalk():
    importers = {path.stem for path in PACKAGE.rglob("*.py") if "import greenstalk" in path.read_text()}
    assert importers == {"connection"}


def test_only_the_broker_speaks_the_protocol():
    speakers = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "metrics"  # which speaks HTTP
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes) and b"\r\n" in node.value
    }
    assert speakers == {"broker", "embedded"}


def test_one_place_forks():
    forks = {path.stem for path in PACKAGE.rglob("*.py") if "os.fork(" in path.read_text()}
    assert forks == {"process"}


def test_only_their_own_integration_imports_tracers():
    foreign = ("opentelemetry", "sentry_sdk")
    importers = {
        f"{path.parent.name}/{path.stem}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(alias.name.startswith(foreign) for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith(foreign))
    }
    assert importers == {"contrib/opentelemetry", "contrib/sentry"}
