"""The README's pictures, in few bytes: a notebook's headline figure, and the term sheet as a browser shows it."""

import base64
import io
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from paramarket.errors import DataError
from paramarket.runs.pages import headline_figure

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def small_figure(path: Path | str) -> bytes:
    """The headline figure of an executed notebook as a PNG file of 128 colours: a third of the bytes.

    Raises DataError if the notebook shows no figure.
    """
    import nbformat
    from PIL import Image

    figure = headline_figure(nbformat.read(path, as_version=4)).png
    if not figure:
        raise DataError(f"{path} shows no figure: was it executed?")
    return _in_few_colours(Image.open(io.BytesIO(base64.b64decode(figure))), 128)


def small_term_sheet(path: Path | str, browser: str) -> bytes:
    """The term sheet in an executed notebook as a browser shows it, without the white around: a PNG file of 48 colours.

    browser: what starts Chromium, see `find_browser`. Raises DataError if the notebook shows no term sheet.
    """
    import nbformat
    from PIL import Image, ImageChops

    outputs = [each for cell in nbformat.read(path, as_version=4).cells for each in cell.get("outputs", [])]
    pages = [each["data"]["text/html"] for each in outputs if "text/html" in each.get("data", {})]
    sheets = [page for page in pages if 'class="sheet"' in page]
    if not sheets:
        raise DataError(f"{path} shows no term sheet: was it executed?")
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder) / "sheet.html", Path(folder) / "sheet.png"
        page.write_text(sheets[-1], encoding="utf-8")
        call = [browser, "--headless", "--hide-scrollbars", "--window-size=760,1200", f"--screenshot={picture}"]
        if getattr(os, "geteuid", lambda: 1)() == 0:  # root has no sandbox
            call.append("--no-sandbox")
        subprocess.run([*call, page.as_uri()], capture_output=True, check=True, timeout=60)
        with Image.open(picture) as shown:
            whole = shown.convert("RGB")
    ink = ImageChops.invert(whole).getbbox() or (0, 0, *whole.size)
    return _in_few_colours(whole.crop((ink[0] - 12, ink[1] - 12, ink[2] + 12, ink[3] + 12)), 48)


def find_browser() -> str | None:
    """What starts Chromium or Chrome on this machine: the variable BROWSER_PROGRAM, or a usual name; None: nothing."""
    return os.environ.get("BROWSER_PROGRAM") or next(filter(None, map(shutil.which, BROWSERS)), None)


def _in_few_colours(picture: Any, colours: int) -> bytes:
    small = io.BytesIO()
    picture.convert("RGB").quantize(colours).save(small, format="png", optimize=True)
    return small.getvalue()
