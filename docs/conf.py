"""Sphinx's settings. Build with `./run docs`, which needs no network."""

from __future__ import annotations

import inspect
import zlib
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import flask_backend.batch
import flask_backend.extension
from flask_backend.config import KEYS, Settings

HERE = Path(__file__).parent

# autodoc reads all annotations of Backend.batch or none, and this one is only imported when it is called.
flask_backend.extension.Batch = flask_backend.batch.Batch

project = "Flask-Backend"
copyright = "2026, the Flask-Backend authors"  # noqa: A001  # Sphinx's name
version = release = flask_backend.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_click",
    "sphinx_copybutton",
]
highlight_language = "text"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
# A reference that leads nowhere is a warning, and `./run docs` fails.
nitpicky = True
smartquotes = False  # they make a dash of the hyphens of an option
default_role = "code"  # for the single backticks in the help of commands
# Type variables and aliases have no page.
nitpick_ignore_regex = [
    ("py:(class|obj)", ".*~?\\b(P|R|R_co|T|AfterCommit|AnyTask|AroundRun|AroundSchedule|Hook|Receiver)")
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "Flask-Backend"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

# Sphinx would download the inventories of these sites at each build. The build needs only the names that these pages
# and the docstrings link to, so the repository has these as text, and the build makes inventories of them.
SITES = {
    "python": "https://docs.python.org/3/",
    "flask": "https://flask.palletsprojects.com/en/stable/",
    "click": "https://click.palletsprojects.com/en/stable/",
    "sqlalchemy": "https://docs.sqlalchemy.org/en/20/",
}


def make_inventory(name: str) -> str:
    """Write ``inventories/NAME.txt`` in Sphinx's format, and return the path.

    Each of its lines has the role of a name, the name, and its location on the site, where $ stands for the name.
    """
    lines = (HERE / "inventories" / f"{name}.txt").read_text().splitlines()
    entries = [line.split() for line in lines]
    body = "".join(f"{target} {role} 1 {location} -\n" for role, target, location in entries)
    head = f"# Sphinx inventory version 2\n# Project: {name}\n# Version: \n# The remainder is compressed using zlib.\n"
    path = HERE.parent / "build" / "inventories" / f"{name}.inv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head.encode() + zlib.compress(body.encode()))
    return str(path)


intersphinx_mapping = {name: (site, make_inventory(name)) for name, site in SITES.items()}


class SettingsDirective(SphinxDirective):
    """The settings of the app, from the docstring that ``flask_backend.config.Settings`` gives each of them."""

    def run(self) -> list[nodes.Node]:
        _, _, text = (inspect.getdoc(Settings) or "").partition("\n\n")
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith("``"):
                name, _, default = line.partition(" ")
                lines += ["", f".. confval:: {name.strip('`')}", f"   :default: {default.strip('()')}", ""]
            else:
                lines.append(line and f"   {line.strip()}")
        documented = [line.split()[-1] for line in lines if "confval::" in line]
        if documented != list(KEYS):
            raise self.error(f"Settings documents {documented}; the keys are {list(KEYS)}")
        return self.parse_text_to_nodes(StringList(lines, source=inspect.getfile(Settings)))


# The classes that users create. The others come from calls, and their parameters are internal.
CREATED = {"Backend", "FlaskBackendIntegration", "Retry", "RetryLater", "Bury", "Discard"}


def adapt_signature(
    _app: Sphinx, what: str, name: str, _obj: object, _options: object, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    if not signature:
        return None
    if what in {"class", "exception"} and name.rpartition(".")[2] not in CREATED:
        return "", None
    return signature.replace("<class 'BaseException'>", "BaseException"), returns  # a default of a dataclass


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("settings", SettingsDirective)
    app.connect("autodoc-process-signature", adapt_signature)
    # Mermaid's diagrams stay text: drawing them takes its library, in the browser or at the build.
    app.add_lexer("mermaid", TextLexer)
    return {"parallel_read_safe": True}
