"""JupyterLab as people use it: run all cells, move the sliders, solve an exercise."""

import json
import urllib.error
import urllib.request
import uuid

import nbformat
import pytest
from laptop import PATIENCE, SHOTS

from paramarket.__main__ import HOME

PANEL = ".jp-Notebook .jp-WindowedPanel-outer"
SLIDERS = {"01_train_two_mlps": 1, "08_share_predictions": 3}
RUN = ["01_train_two_mlps", "02_align_and_interpolate", "05_soup_of_experts"]
RUN += ["06_price_the_gain", "08_share_predictions", "09_should_we_trade"]
CELLS = "Array.from(window.jupyterapp.shell.currentWidget.content.model.cells)"
READY = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
CODE = f"{CELLS}.filter(cell => cell.type === 'code' && cell.sharedModel.source.trim())"
DONE = f"""() => {READY} && ({CODE}.every(cell => cell.executionCount)
    || {CODE}.some(cell => cell.toJSON().outputs.some(output => output.output_type === 'error')))"""
IN_VIEW = """() => Array.from(document.querySelectorAll('.jp-OutputArea-output img')).filter(img => {
    const box = img.getBoundingClientRect(), middle = (box.top + box.bottom) / 2;
    return 0 < middle && middle < window.innerHeight
}).map(img => [img.src, img.naturalWidth])"""


def open_notebook(tab, lab, name):
    address, token, _ = lab
    tab.goto(f"{address}/lab/tree/{name}.ipynb?token={token}&reset")
    tab.wait_for_function(f"() => {READY}")
    return tab


def run_all(tab):
    tab.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    tab.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
    tab.wait_for_function(DONE, timeout=PATIENCE)


def outputs(tab):
    """(cell number, output) of all cells, as JupyterLab would save them."""
    cells = tab.evaluate(f"() => {CELLS}.map(cell => cell.toJSON())")
    return [(number, each) for number, cell in enumerate(cells) for each in cell.get("outputs", [])]


def look_through(tab, name):
    """Scroll from top to bottom: the pictures that came into view, by their source; a photograph of each new one."""
    (SHOTS / name).mkdir(parents=True, exist_ok=True)
    for old in (SHOTS / name).glob("*.png"):
        old.unlink()
    panel, met, page = tab.locator(PANEL).first, {}, 0
    panel.evaluate("panel => { panel.scrollTop = 0 }")
    while True:
        tab.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        tab.wait_for_function("Array.from(document.images).every(img => img.complete)")
        found = dict(tab.evaluate(IN_VIEW))
        if found.keys() - met.keys():
            tab.screenshot(path=SHOTS / name / f"{page:02d}.png")
        met.update(found)
        page += 1
        before = panel.evaluate("panel => panel.scrollTop")
        if panel.evaluate("panel => { panel.scrollTop += panel.clientHeight * 0.9; return panel.scrollTop }") <= before:
            return met


@pytest.mark.parametrize("name", RUN)
def test_a_notebook_runs_from_the_menu_without_an_error_and_shows_its_figures(tab, lab, name):
    open_notebook(tab, lab, name)
    run_all(tab)
    found = outputs(tab)
    assert [(k, each) for k, each in found if each["output_type"] == "error"] == []
    assert [(k, each) for k, each in found if each.get("name") == "stderr"] == []  # a warning would stand there in red
    assert not any("✗" in "".join(each.get("text", "")) for _, each in found)
    figures = [each for _, each in found if "image/png" in each.get("data", {})]
    met = look_through(tab, name)
    assert len(figures) >= 5
    assert len(met) >= len(figures) - 2  # of equal figures one is met; those in widgets are met, too
    assert all(width > 50 for width in met.values())
    moved = [move_slider(tab, slider) for slider in sliders(tab)]
    assert len(moved) == SLIDERS.get(name, 0)


def sliders(tab):
    """The handles of all sliders, brought into view."""
    panel = tab.locator(PANEL).first
    panel.evaluate("panel => { panel.scrollTop = 0 }")
    while panel.evaluate("panel => panel.scrollTop + panel.clientHeight < panel.scrollHeight - 2"):
        handles = tab.locator(".widget-slider .noUi-handle")
        if handles.count():
            handles.first.scroll_into_view_if_needed()
            return handles.all()
        panel.evaluate("panel => { panel.scrollTop += panel.clientHeight * 0.9 }")
        tab.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return []


def move_slider(tab, handle):
    """Move a slider with the keyboard until its figure is another one."""
    figure = tab.locator(".widget-interact .jp-OutputArea-output img").first
    figure.wait_for()
    before = figure.get_attribute("src")
    assert handle.locator("xpath=ancestor::*[contains(@class, 'widget-slider')]//label").first.inner_text().strip()
    for _ in range(4):
        handle.press("ArrowRight")
    tab.wait_for_function(
        "before => { const img = document.querySelector('.widget-interact .jp-OutputArea-output img');"
        " return img && img.naturalWidth && img.src !== before }",
        arg=before,
    )
    return True


def test_a_check_turns_green_when_its_exercise_is_solved(tab, lab):
    solved = nbformat.read(HOME / "notebooks/01_train_two_mlps.ipynb", as_version=4).cells
    at = next(number for number, cell in enumerate(solved) if "BEGIN SOLUTION" in cell.source)
    open_notebook(tab, lab, "student")
    run_all(tab)
    says = f"() => JSON.stringify({CELLS}[{at + 1}].toJSON().outputs)"
    assert "is not written yet" in tab.evaluate(says)
    select = f"() => {{ window.jupyterapp.shell.currentWidget.content.activeCellIndex = {at} }}"
    tab.evaluate(select)
    tab.evaluate(f"() => window.jupyterapp.shell.currentWidget.content.scrollToItem({at}, 'center')")
    editor = tab.locator(".jp-Cell.jp-mod-active .cm-content")
    editor.click()
    tab.keyboard.press("ControlOrMeta+a")
    tab.keyboard.insert_text(solved[at].source)
    tab.keyboard.press("Shift+Enter")
    tab.keyboard.press("Shift+Enter")
    tab.wait_for_function(f"() => ({says})().includes('✓')")
    tab.screenshot(path=SHOTS / "solved.png")
    assert "✗" not in tab.evaluate(says)


def test_nothing_but_the_notebook_stands_on_the_screen(tab, lab):
    """No news prompt, no menu of nbgrader; all nine notebooks in the list; opening one changes nothing."""
    _, _, mine = lab
    before = (mine / "03_compare_specialists.ipynb").read_bytes()
    open_notebook(tab, lab, "03_compare_specialists")
    menus = tab.locator(".lm-MenuBar-itemLabel").all_inner_texts()
    assert [menu for menu in menus if menu] == ["File", "Edit", "View", "Run", "Kernel", "Tabs", "Settings", "Help"]
    assert tab.locator(".jp-DirListing-item").count() == 10  # the nine, and the student's
    assert tab.locator(".jp-toast-button, .Toastify__toast").count() == 0
    SHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SHOTS / "opened.png")
    assert (mine / "03_compare_specialists.ipynb").read_bytes() == before


@pytest.mark.parametrize("query", ["", "?token=wrong"])
def test_without_the_token_there_is_no_page(tab, lab, query):
    address, _, _ = lab
    tab.goto(f"{address}/lab{query}")
    assert "/login" in tab.url
    assert tab.locator(".jp-LabShell").count() == 0
    assert status(f"{address}/api/contents{query}") == 403
    assert (
        status(f"{address}/api/kernels/{uuid.uuid4()}/channels{query}", Upgrade="websocket", Connection="Upgrade")
        == 403
    )


def test_with_the_token_there_is_one(lab):
    address, token, mine = lab
    with urllib.request.urlopen(f"{address}/api/contents?token={token}") as answer:
        assert {each["name"] for each in json.load(answer)["content"]} == {path.name for path in mine.glob("*.ipynb")}


def status(link, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(link, headers=headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
