import base64
import io

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from paramarket import errors, runs

BROWSER = runs.find_browser()


def write(path, shown):
    """An executed notebook that shows one thing."""
    cell = new_code_cell("x", metadata={"tags": ["headline"]}, outputs=[new_output("display_data", data=shown)])
    nbformat.write(new_notebook(cells=[cell]), path)


def test_a_small_figure_is_the_headline_in_fewer_bytes(tmp_path):
    across = np.linspace(0, 255, 400).astype("uint8")
    drawn = np.stack([np.tile(across, (300, 1)), np.tile(across[::-1], (300, 1)), np.tile(across, (300, 1))], axis=-1)
    drawn[::7] = 255
    picture = io.BytesIO()
    Image.fromarray(drawn).convert("RGBA").save(picture, format="png", compress_level=0)
    png = base64.b64encode(picture.getvalue()).decode()
    write(tmp_path / "a.ipynb", {"image/png": png})
    small = runs.small_figure(tmp_path / "a.ipynb")
    assert len(small) < len(picture.getvalue()) / 4
    again = np.asarray(Image.open(io.BytesIO(small)).convert("RGB")).astype(int)
    assert np.abs(again - drawn).mean() < 4


def test_a_notebook_without_a_figure_has_no_small_one(tmp_path):
    write(tmp_path / "a.ipynb", {})
    with pytest.raises(errors.DataError, match="shows no figure: was it executed"):
        runs.small_figure(tmp_path / "a.ipynb")
    with pytest.raises(errors.DataError, match="shows no term sheet: was it executed"):
        runs.small_term_sheet(tmp_path / "a.ipynb", "no browser")


@pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome here")
def test_a_small_term_sheet_is_the_page_without_the_white_around(tmp_path):
    ink = '<div class="sheet" style="margin: 50px; width: 300px; height: 200px; background: #1c2430"></div>'
    write(tmp_path / "a.ipynb", {"text/html": f"<!DOCTYPE html><body>{ink}</body>"})
    with Image.open(io.BytesIO(runs.small_term_sheet(tmp_path / "a.ipynb", BROWSER))) as picture:
        assert picture.size == (300 + 2 * 12, 200 + 2 * 12)
        assert picture.convert("RGB").getpixel((160, 110)) == (0x1C, 0x24, 0x30)
