"""What the tests in a browser share: a laptop's window, where pictures are kept, how long anything may take."""

import os

from paramarket.__main__ import HOME

WINDOW = {"width": 1366, "height": 768}
SHOTS = HOME / "runs/browser"
PATIENCE = 300_000  # milliseconds: what no step comes near on a quiet machine


def a_persons(**more):
    """The environment of somebody who has set nothing for matplotlib: tests/conftest.py asks it for no window."""
    return {name: value for name, value in os.environ.items() if name != "MPLBACKEND"} | more
