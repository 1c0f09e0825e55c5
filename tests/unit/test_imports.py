"""The architecture, as a test: imports go one way."""

from __future__ import annotations

import ast
from pathlib import Path

import flask_backend

PACKAGE = Path(flask_backend.__file__).parent

# From the values, which all may use, to the edges, which nobody but the user starts. A module may import from its own
# layer and from those before it.
LAYERS = [
    {"errors", "exits", "machine", "names", "titles", "seconds", "decisions", "retry", "config", "options", "ending"}
    | {
        "bulk",
        "event_loop",
        "functions",
        "journal",
        "tracebacks",
        "visible",
        "launch",
        "patched",
        "loggers",
        "message",
        "notes",
        "procfs",
        "results",
        "stacks",
        "streams",
    },
    {"wire", "broker", "embedded", "producer", "console", "failures"},
    {"job", "task", "extension", "memory", "sync", "current", "execution"},
    {"fitting", "host", "keeper", "postmortem", "settlement", "signal_guard", "stopping", "supervisor"} | {"worker"},
    {"logs", "development", "cli", "flask_script", "testing", "__main__"},
]


def _imports(path: Path) -> set[str]:
    """The modules of the package that a file imports when it is imported, by their first name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level == 1 and path.parent == PACKAGE:
                found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
            elif node.level == 0 and node.module and node.module.startswith("flask_backend."):
                found.add(node.module.split(".")[1])
        assert not (isinstance(node, ast.ImportFrom) and node.level > 1), f"{path}: import from flask_backend. instead"
    return found


def _modules() -> dict[str, set[str]]:
    modules: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if name != "__init__":
            modules.setdefault(name, set()).update(_imports(path))
    return modules


def test_every_module_has_a_layer():
    assert set(_modules()) == set().union(*LAYERS)


def test_imports_go_one_way():
    for name, imports in _modules().items():
        layer = next(i for i, names in enumerate(LAYERS) if name in names)
        allowed = set().union(*LAYERS[: layer + 1])
        assert imports <= allowed, f"{name} imports {imports - allowed} from a later layer"


def test_the_supervisor_knows_neither_flask_nor_beanstalkd():
    assert _modules()["supervisor"] <= LAYERS[0]
    for path in (PACKAGE / "supervisor").rglob("*.py"):
        assert "import flask\n" not in path.read_text()
        assert "from flask " not in path.read_text()


def test_only_the_broker_imports_greenstalk():
    importers = {path.stem for path in PACKAGE.rglob("*.py") if "import greenstalk" in path.read_text()}
    assert importers == {"broker"}


def test_one_place_forks():
    forks = {path.stem for path in PACKAGE.rglob("*.py") if "os.fork(" in path.read_text()}
    assert forks == {"process"}
