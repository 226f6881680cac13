"""Where a notebook says that it can run on a learner's own function, it can, and gives what it gave before.

01 and 09 promise nothing of the kind. What is promised stands in a text; so a promise that changes is noticed here.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import nbformat
import notebooks
import pytest
import yaml
from exercises import NOTEBOOKS

from paramarket import runs
from paramarket.__main__ import HOME

QUICK = yaml.safe_load((HOME / "tests/quick.yaml").read_text())
PATHS = {path.stem[:2]: path for path in NOTEBOOKS}
BY_HAND_06 = """choice = int(losses.mean(dim=1).argmin())
accuracy = 100 * hits.float().mean(dim=1)
gain_by_hand = accuracy[choice] - accuracy[0]
"""
TURNING = 'turning = mean_on_quote.unstack("step").idxmax(axis="columns")'
BEST = "        if earned_a >= best_a - 1e-12 and earned_b >= best_b - 1e-12:"
SAME_STEP = """yours = soup_step(net, S, E, router, h, x, y, 0.3)
fits = [torch.allclose(yours[0][name], new_S[name], atol=1e-6) for name in new_S]
fits += [torch.allclose(yours[1][name], new_E[name], atol=1e-6) for name in new_E]
print("Your step is the one by hand:", all(fits))"""
MINE = """merge.METHODS["mine"] = merge_method
methods.append("mine")
results_of = {"different thirds": merge_all(apart), "the same third": merge_all(alike)}
merges = pd.concat(results_of, names=["images"]).reset_index("images")
by_group = merges.pivot(index=["images", "group"], columns="way", values="accuracy")
gained = 100 * by_group.sub(by_group["one of them"], axis=0)
print("Mine gains", gained["mine, matched"].round(3).tolist())"""


class Promise(NamedTuple):
    """What a text says can be written, the edits of code that follow it, and a mistake in the learner's function.

    edits: (text in a code cell, what takes its place); begins: of a text that takes the place of all that follows it,
    up to `ends` · below: the id of a cell under which new code goes, or "" · mistake: (text in a solution, wrong text)
    """

    notebook: str
    says: str
    edits: list[tuple[str, str]]
    mistake: tuple[str, str]
    below: str = ""
    code: str = ""
    parameters: Mapping = MappingProxyType({})


PROMISES = [
    Promise(
        "02",
        '`merge.METHODS["mine"] = merge_method` and `methods.append("mine")`, and run section 8 again',
        [],
        ("wanted / length", "3 * wanted / length"),
        below="check-merge-method",
        code=MINE,
    ),
    Promise(
        "03",
        '`on_quote.groupby("setting").apply(turning_step)` where `turning` is made',
        [(TURNING, 'turning = on_quote.groupby("setting").apply(turning_step)')],
        (".idxmax()", ".idxmin()"),
    ),
    Promise(
        "04",
        "write the two lines that stand in the comments",
        [
            ("    # alpha = router(", "    alpha = router("),
            ("    # weights = interpolate(", "    weights = interpolate("),
        ],
        ("return scores / scores.sum()", "return scores"),
    ),
    Promise(
        "05",
        "`yours = soup_step(net, S, E, router, h, x, y, 0.3)`. Then `yours[0]` must be `new_S`, and `yours[1]`",
        [],
        ("rate * tensor.grad", "2 * rate * tensor.grad"),
        below="c019",
        code=SAME_STEP,
    ),
    Promise(
        "06",
        "let `choice, gain_by_hand = quote_and_audit(losses, hits)` take the place of the last lines",
        [(BY_HAND_06, "choice, gain_by_hand = quote_and_audit(losses, hits)\n")],
        ("losses.mean(dim=1).argmin()", "losses.mean(dim=1).argmax()"),
    ),
    Promise(
        "07",
        "let `own, paid = purchase(net, spec, own, seller, splits, bid, cost)` take the place of the five steps",
        [],
        ("    if value <= 0 or value < cost:\n        return buyer, 0.0\n", ""),
        parameters={"fee": 0.0},
    ),
    Promise(
        "08",
        "write `plan_a == best_answer(score, plan_b) and plan_b == best_answer(score.T, plan_a)` behind the `if`",
        [(BEST, "        if plan_a == best_answer(score, plan_b) and plan_b == best_answer(score.T, plan_a):")],
        ("taking[0] > 0", "taking[0] < 0"),
    ),
]


def five_steps(notebook):
    """Notebook 07: the five steps give way to one call, and the table keeps what it can still say."""
    for cell in notebook.cells:
        if "# 1 match" in cell.source:
            head, rest = cell.source.split("    # 1 match")
            _, rest = rest.split("    by_hand.append(")
            call = "    own, paid = purchase(net, spec, own, seller, splits, bid, cost)\n"
            rest = rest.replace("shares[best].item(), promised, ", "").replace('"share", "promised", ', "")
            cell.source = f"{head}{call}    by_hand.append({rest}"


def write(promise, path, mistake=None):
    """The notebook with the promise followed, and with a wrong function besides if there is a mistake."""
    notebook = nbformat.read(PATHS[promise.notebook], as_version=4)
    if mistake:
        (cell,) = [cell for cell in notebook.cells if "BEGIN SOLUTION" in cell.source and mistake[0] in cell.source]
        cell.source = cell.source.replace(*mistake)
    for old, new in promise.edits:
        (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        cell.source = cell.source.replace(old, new)
    if promise.below:
        (k,) = [k for k, cell in enumerate(notebook.cells) if cell.id == promise.below]
        notebook.cells.insert(k + 1, nbformat.v4.new_code_cell(promise.code))
    if promise.notebook == "07":
        five_steps(notebook)
    nbformat.write(notebook, path)


def parameters_of(promise):
    return {**QUICK[PATHS[promise.notebook].stem], **promise.parameters}


def told(output, promise):
    """The lines that show a learner whether the own function does the same."""
    lines = notebooks.printed(output).splitlines()
    return [line for line in lines if TOLD[promise.notebook] in line and "✗" not in line]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.notebook)
def test_the_promise_stands_in_the_notebook(promise):
    text = "".join(c.source for c in nbformat.read(PATHS[promise.notebook], as_version=4).cells)
    assert promise.says in text


@pytest.mark.full
@pytest.mark.long
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.notebook)
def test_a_notebook_runs_on_a_learners_own_function_and_leaves_the_same_record(promise, run_once, tmp_path):
    write(promise, tmp_path / "own.ipynb")
    output = run_once(tmp_path / "own.ipynb", parameters_of(promise))
    story = run_once(PATHS[promise.notebook], parameters_of(promise))
    lines = told(output, promise)
    assert lines
    if not promise.below:  # the story says it, too; a learner's table may have another order
        assert sorted(lines) == sorted(told(story, promise))
    own, record = runs.read(output), runs.read(story)
    if promise.notebook == "02":  # the learner's way is one more among those that were tried
        assert own["parameters"]["methods"] == [*record["parameters"].pop("methods"), "mine"]
        own["parameters"].pop("methods")
    assert own == record


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.notebook)
def test_a_wrong_function_shows(promise, run_once, tmp_path):
    """Nothing but the function differs, so it is the learner's that the notebook ran on."""
    write(promise, tmp_path / "own.ipynb")
    write(promise, tmp_path / "wrong.ipynb", mistake=promise.mistake)
    own, wrong = (run_once(tmp_path / name, parameters_of(promise)) for name in ("own.ipynb", "wrong.ipynb"))
    assert told(own, promise) != told(wrong, promise)


# What stands in the lines that show a learner whether the own function does the same.
TOLD = {
    "02": "Mine gains",
    "03": "best on quote at step",
    "04": "by hand",
    "05": "Your step is the one by hand: True",
    "06": "A buys",
    "07": "The same prices, to the cent or two of rounding: True",
    "08": ": A earns",
}
