"""The command for Flask-Script: ``manager.add_command("backend", BackendCommand)``.

Flask-Script 2.0.6, its last release, cannot be imported with Flask 2.3 or later. Flask-Script-NG can, but is named
``flask_script_ng``. Importing this module lets ``from flask_script import Manager`` find Flask-Script-NG where
Flask-Script is absent or broken: programs written for the old name work unchanged.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flask import Flask
from flask.cli import ScriptInfo


def _import_flask_script() -> Any:
    try:
        return importlib.import_module("flask_script")
    except ImportError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "flask_script"]:
            del sys.modules[name]  # left behind by a broken one
    try:
        successor = importlib.import_module("flask_script_ng")
    except ImportError as error:
        raise ImportError("BackendCommand needs Flask-Script: pip install 'flask-backend[flask-script]'") from error
    for name, module in list(sys.modules.items()):
        package, dot, rest = name.partition(".")
        if package == "flask_script_ng":
            sys.modules[f"flask_script{dot}{rest}"] = module
    return successor


_flask_script = _import_flask_script()

if TYPE_CHECKING:

    class _Command:
        """Neither Flask-Script nor its successor has types."""

else:
    _Command = _flask_script.Command


class BackendCommand(_Command):
    """Runs backend workers: `backend QUEUE`, or `backend supervise --queue QUEUE --workers 4`; see `backend --help`."""

    name = "backend"
    # All arguments after the command's name go to our own command line, --help included.
    capture_all_args = True
    help_args = ()

    def __call__(self, app: Flask, args: Sequence[str] = (), **_options: Any) -> None:
        """Run without a web request: the inherited method would put a fake one around the workers."""
        from .cli import COMMANDS, commands

        arguments = list(args)
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            arguments.insert(0, "worker")  # the old form: `backend com.example/default`
        commands(arguments, prog_name=f"{sys.argv[0]} backend", obj=ScriptInfo(create_app=lambda: app))
