"""The entry point of the script, and of ``python -m flask_backend``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run a command. A health check must be fast: it is dispatched before click is imported."""
    if sys.argv[1:2] == ["health"]:
        from .system import health

        code = health.run(sys.argv[2:])
        if code is not None:
            sys.exit(code)
    from .cli import main as run

    run(prog_name="python -m flask_backend" if __name__ == "__main__" else None)


if __name__ == "__main__":
    main()
