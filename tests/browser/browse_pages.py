"""The pages of a run, opened from file:// without a network: pictures, formulas, links, words for every figure."""

import subprocess
import sys
from collections import Counter

import pytest
import yaml
from laptop import SHOTS, a_persons

from paramarket.__main__ import HOME

RUN = ["01_train_two_mlps", "06_price_the_gain", "09_should_we_trade"]
TOO_WIDE = """() => Array.from(document.querySelectorAll('img, table, math, h1, h2, p')).filter(
    each => each.getBoundingClientRect().right > document.documentElement.clientWidth + 1
).map(each => each.outerHTML)"""


@pytest.fixture(scope="module")
def site(browser, tmp_path_factory):
    """What `python -m paramarket notebooks` leaves, on quick parameters."""
    out = tmp_path_factory.mktemp("site") / "results"
    chosen = [HOME / f"notebooks/{name}.ipynb" for name in RUN]
    values = yaml.safe_load((HOME / "tests/quick.yaml").read_text())
    quick = out.with_name("quick.yaml")
    quick.write_text(yaml.safe_dump({name: values[name] for name in RUN}))
    call = [sys.executable, "-m", "paramarket", "notebooks", *chosen, "--parameters", quick, "--out", out]
    done = subprocess.run(list(map(str, call)), env=a_persons(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.fixture
def offline(tab):
    """A tab without a network, and the list of what it asked of one: to stay empty."""
    asked = []
    tab.context.set_offline(True)
    tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or asked.append(request.url))
    yield tab
    assert asked == []


def test_the_index_leads_to_every_page_and_back(offline, site):
    offline.goto((site / "index.html").as_uri())
    for name in RUN:
        offline.locator(f"a[href='{name}.html']").first.click()
        offline.wait_for_url(f"**/{name}.html")
        offline.get_by_role("link", name="All notebooks").click()
        offline.wait_for_url("**/index.html")


@pytest.mark.parametrize("name", ["index", *RUN])
def test_a_page_shows_its_pictures_and_says_each_in_words(offline, site, name):
    offline.goto((site / f"{name}.html").as_uri())
    offline.wait_for_function("Array.from(document.images).every(img => img.complete)")
    pictures = offline.evaluate("Array.from(document.images, img => [img.naturalWidth, img.alt])")
    assert len(pictures) >= 3
    assert all(width > 100 for width, _ in pictures)
    words = Counter(alt for _, alt in pictures)
    assert all(len(alt) > 8 for alt in words)
    assert max(words.values()) <= 2
    assert offline.evaluate("document.body.clientWidth") > 1200  # no style of an output has narrowed the page
    assert offline.evaluate(TOO_WIDE) == []
    SHOTS.mkdir(parents=True, exist_ok=True)
    offline.screenshot(path=SHOTS / f"page_{name}.png", full_page=True)


@pytest.mark.parametrize("name", RUN)
def test_formulas_are_drawn(offline, site, name):
    offline.goto((site / f"{name}.html").as_uri())
    boxes = offline.evaluate(
        "Array.from(document.querySelectorAll('math'), math => math.getBoundingClientRect().height)"
    )
    assert boxes
    assert all(height > 5 for height in boxes)
