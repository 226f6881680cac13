"""Every notebook, executed by papermill on its quick parameters; and what must hold of the files themselves."""

import ast
import builtins
import re
import symtable

import nbformat
import notebooks
import pytest
import yaml
from exercises import NOTEBOOKS, exercises

from paramarket import runs, teach
from paramarket.__main__ import HOME

QUICK = yaml.safe_load((HOME / "tests/quick.yaml").read_text())

RESULTS = (HOME / "RESULTS.md").read_text()
KEYS = {
    "01_train_two_mlps": ["accuracy", "agreement", "averaged_accuracy", "plant_a_accuracy", "plant_b_accuracy"],
    "02_align_and_interpolate": [
        "naive_barrier",
        "aligned_barrier",
        "repaired_barrier",
        "midpoint_accuracy",
        "end_accuracy",
    ],
    "03_compare_specialists": [
        *(f"{what}_{where}" for what in ("rise", "fall", "cka_at_end") for where in ("20", "30", "never_30")),
        *("rift_saw", "rift_never", "held_gain_20", "held_gain_30"),
        *("which_by_cka", "which_by_surer", "when_by_surer", "when_by_500_labels"),
    ],
    "04_sparse_meta_tuning": [
        *("unseen_smat", "unseen_dense", "unseen_pretrained", "foundation_smat", "foundation_dense", "sparsity"),
        *("unseen_above_pretrained_points", "unseen_above_dense_points", "sides_differ_points"),
    ],
    "05_soup_of_experts": [
        *("soup_loss", "generic_loss", "loss_ratio", "experts_loss_equal_compute"),
        *("one_base_less_soup_mixed", "hill_less_apart", "lead_by_operations_5", "lead_by_clock_5"),
    ],
    "06_price_the_gain": [
        *("gain_points", "gain_relative", "gain_relative_on_quote", "winners_curse", "own_class_change"),
        *("worth_labels", "training_less_purchase_points", "rivals_stop_at", "curse_of_few_images"),
    ],
    "07_run_the_market": [
        *("accuracy_alone", "accuracy_trading", "gain_points", "first_trade_gain_aligned"),
        *("first_trade_gain_unaligned", "money_error", "poisoned_trades"),
    ],
    "08_share_predictions": [
        *("contract_stability", "leak_auc_weights", "leak_auc_predictions", "copycat_gap_points"),
    ],
    "09_should_we_trade": [
        *("gain_points", "own_class_change", "forecast_points", "coverage", "forecast_coverage", "gain_money"),
    ],
}
# Results that are words: exact, the same whatever the parameters.
WORDS = {
    "08_share_predictions": {
        "two_hypotheses_contract": "infer",
        "one_sample_contract": "full",
        "train_point_contract": "train",
    }
}
# Results that are words or plain numbers, and hang on the parameters.
PLAIN = {
    "05_soup_of_experts": {
        *("pays_after_by_operations", "pays_after_by_clock", "runs_censored"),  # medians: runs are censored
        *("ahead_from_by_operations", "ahead_from_by_clock"),  # or "none to 100"
    },
    "06_price_the_gain": {"nash_price_lowest", "nash_price_median", "nash_price_highest", "trades_by_mean"},
    "09_should_we_trade": {
        *("recommendation", "best_way", "compatible", "price_low", "price_high", "pilot_examples", "payback_months"),
    },
}

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_every_notebook_has_quick_parameters_and_asked_for_results():
    assert sorted(QUICK) == sorted(KEYS) == [path.stem for path in NOTEBOOKS]


@pytest.mark.long
@each
def test_the_solved_notebook_leaves_the_results_and_claims_it_promises(path, run_once):
    output = run_once(path, QUICK[path.stem])
    solved = runs.read(output)
    assert solved["parameters"].items() >= QUICK[path.stem].items()
    for key in KEYS[path.stem]:
        assert solved["results"][f"{key}_low"] <= solved["results"][key] <= solved["results"][f"{key}_high"]
    assert solved["results"].items() >= WORDS.get(path.stem, {}).items()
    assert solved["results"].keys() >= PLAIN.get(path.stem, set())
    for each in solved["claims"]:
        unit = each["unit"].removeprefix("% ")
        row = (
            re.escape(f"| {each['claim']} | {path.stem} | {each['figure']} | ")
            + r"[^|]+\] ?"
            + re.escape(unit)
            + r" \| "
        )
        assert re.search(row, RESULTS), row
    assert solved["claims"]
    assert solved["answer"]
    exercises = path.read_text().count("BEGIN SOLUTION")
    assert notebooks.printed(output).count("holds on fresh random input") == exercises >= 2
    assert "✗" not in notebooks.printed(output)


@pytest.mark.full
@pytest.mark.long
@each
def test_the_solved_notebook_and_its_student_copy_leave_the_same_record(path, run_once, tmp_path):
    """So the story does not hang on a learner's code, and the same parameters give the same record, bit for bit.

    The first half is proven without a run below; the second is what the two runs are for.
    """
    teach.student_copy(path, tmp_path / "copy.ipynb")
    student = run_once(tmp_path / "copy.ipynb", QUICK[path.stem])
    assert runs.read(student) == runs.read(run_once(path, QUICK[path.stem]))
    exercises = path.read_text().count("BEGIN SOLUTION")
    assert notebooks.printed(student).count("is not written yet") == exercises


def cells(path):
    return nbformat.read(path, as_version=4).cells


def code(path):
    return [cell for cell in cells(path) if cell.cell_type == "code"]


@each
def test_nothing_that_a_run_leaves_is_committed(path):
    assert "papermill" not in nbformat.read(path, as_version=4).metadata
    for cell in code(path):
        assert "papermill" not in cell.metadata
        assert not cell.outputs
        assert cell.execution_count is None


@each
def test_a_notebook_is_committed_as_strip_leaves_it(path, tmp_path):
    """In the form that JupyterLab writes, so that opening one adds nothing but the version of Python."""
    (tmp_path / path.name).write_bytes(path.read_bytes())
    runs.strip(tmp_path / path.name)
    assert (tmp_path / path.name).read_text() == path.read_text()


@each
def test_the_title_is_a_question_and_the_frame_is_there(path):
    first, *rest = [cell.source for cell in cells(path) if cell.cell_type == "markdown"]
    assert re.match(rf"# {path.stem[:2]} · .+\?\n", first)
    assert all(f"**{what}" in first for what in ("The case", "You will", "You need", "Time"))
    headings = re.findall(r"^## (.+)$", "\n".join(rest), re.M)
    assert {"Parameters", "The record", "What this does not show", "Say it in a meeting", "Next"} <= set(headings)
    assert 6 <= len([heading for heading in headings if heading[0].isdigit()]) <= 12
    assert "\n".join(rest).count("**Predict first.**") >= 2


@each
def test_parameters_are_annotated_commented_literals_and_checked_right_after(path):
    tagged = [k for k, cell in enumerate(code(path)) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    parameters, check = code(path)[tagged[0]].source, code(path)[tagged[0] + 1].source
    for node, line in zip(ast.parse(parameters).body, parameters.splitlines(), strict=True):
        assert isinstance(node, ast.AnnAssign), line
        ast.literal_eval(node.value)
        assert "  # " in line, f"say what it is: {line}"
    assert "runs.check_parameters(" in check


@each
def test_no_variable_is_named_like_a_room(path):
    rooms = {room.stem for room in (HOME / "lib/paramarket").iterdir() if not room.name.startswith("_")}
    assert {"errors", "base", "stack", "runs"} <= rooms
    for cell in code(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                assert node.id not in rooms


@each
def test_no_cell_gives_a_parameter_another_meaning(path):
    """What was checked stays what it is: a later cell that needs the parameter would get something else."""
    parameters, others = set(), set()
    for cell in code(path):
        tagged = "parameters" in cell.metadata.get("tags", [])
        (parameters if tagged else others).update(bound(cell.source))
    assert len(parameters) > 5
    assert not parameters & others


def bound(source):
    """The names that a cell gives a value in the notebook itself, not inside a function or a comprehension."""
    symbols = symtable.symtable(source, "cell", "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned()}


POINTS = {"easy": 1, "medium": 2, "hard": 3}


@each
def test_an_exercise_has_one_form(path):
    """A prompt with minutes and difficulty, a hint folded in; the solution; its check, which earns the points."""
    found = exercises(path)
    assert 2 <= len(found) <= 3
    for number, exercise in enumerate(found, start=1):
        head = rf"### Exercise {number} · .+ \(\d+ minutes, (easy|medium|hard)(; .+)?\)\n"
        (difficulty, _) = re.findall(head, exercise.prompt)[0]
        assert exercise.prompt.count("### Exercise") == 1
        assert re.search(r"<details><summary>Hint</summary>\n\n[^<]+\n\n</details>$", exercise.prompt)
        name = exercise.solution.id
        solves = {"solution": True, "grade": False, "locked": False, "task": False, "schema_version": 3}
        earns = {"solution": False, "grade": True, "locked": True, "task": False, "schema_version": 3}
        assert exercise.solution.metadata == {"nbgrader": {**solves, "grade_id": name}}
        assert exercise.checking.id == f"check-{name}"
        assert exercise.checking.metadata == {
            "nbgrader": {**earns, "grade_id": f"check-{name}", "points": POINTS[difficulty]}
        }
    text = "".join(cell.source for cell in cells(path))
    assert text.count("### Exercise") == text.count("<summary>Hint</summary>") == len(found)
    assert len([cell for cell in cells(path) if "nbgrader" in cell.metadata]) == 2 * len(found)


UNSEEN = {"eval", "exec", "vars", "locals", "get_ipython"}  # with these, code could use a name that it does not show


def names(tree):
    """Every name that code reads, binds, imports or takes as an argument; attributes are none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.ExceptHandler)):
            yield node.name


def globals_of(table):
    """The names that a scope, and what is defined inside it, takes from the notebook or from Python itself."""
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return own.union(*map(globals_of, table.get_children()))


def unmarked(source, function):
    """Whether a function does anything outside the marks of its solution."""
    lines = [line.strip() for line in source.splitlines()]
    begin, end = (lines.index(f"### {word} SOLUTION") + 1 for word in ("BEGIN", "END"))
    statements = function.body[1:] if ast.get_docstring(function) else function.body
    return not all(begin < each.lineno <= each.end_lineno < end for each in statements)


def what_a_copy_could_change(sources):
    """Why a run of these code cells could differ from one of their student copy; nothing if only a check's words can.

    A solution cell defines one plain function, which takes from the notebook no more than what it imported. The copy
    lacks its body. The cell beneath hands the function to its check and does nothing else; no other cell knows it.
    """
    trees = [ast.parse(source) for source in sources]
    imports = [node for tree in trees for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    known = {name for node in imports for name in names(node)} | set(dir(builtins))
    for k, tree in enumerate(trees):
        if UNSEEN & set(names(tree)):
            yield f"cell {k} could use a name unseen"
        if "### BEGIN SOLUTION" not in sources[k]:
            continue
        function, *more = tree.body
        if more or not isinstance(function, ast.FunctionDef) or function.decorator_list:
            yield f"cell {k} is not one plain function"
            continue
        if unmarked(sources[k], function):
            yield f"cell {k}: {function.name} does something outside the marks"
        (scope,) = symtable.symtable(sources[k], "cell", "exec").get_children()
        if globals_of(scope) - known:
            yield f"cell {k}: {function.name} takes {globals_of(scope) - known} from the notebook"
        check = ast.unparse(trees[k + 1]) if k + 1 < len(trees) else ""
        if not re.fullmatch(rf"teach\.check_\w+\({function.name}\)", check):
            yield f"cell {k + 1} does not just check {function.name}"
        for other, elsewhere in enumerate(trees):
            if other not in (k, k + 1) and function.name in names(elsewhere):
                yield f"cell {other} knows {function.name}"


@each
def test_nothing_but_a_check_hangs_on_a_learners_code(path):
    """So a student copy, whatever is written into it, leaves the record of the solved notebook."""
    assert list(what_a_copy_could_change([cell.source for cell in code(path)])) == []


SOLUTION = "def f(x):\n    ### BEGIN SOLUTION\n    return torch.ones(1)\n    ### END SOLUTION"


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        (["import torch", SOLUTION, "teach.check_f(f)", "y = x.f + dict(f=1)['f']"], None),
        (["import torch", SOLUTION, "teach.check_f(f)", "y = f(1)"], "cell 3 knows f"),
        (["import torch", SOLUTION, "teach.check_f(f)", "def f(x): ..."], "cell 3 knows f"),
        (["from a import b as f", SOLUTION, "teach.check_f(f)"], "cell 0 knows f"),
        (["import torch", SOLUTION, "y = f(1)"], "cell 2 does not just check f"),
        (["import torch", SOLUTION, "teach.check_f(f)\ny = 1"], "cell 2 does not just check f"),
        (["import torch", SOLUTION], "cell 2 does not just check f"),
        (["import torch", SOLUTION + "\ny = f(1)", "teach.check_f(f)"], "cell 1 is not one plain function"),
        (["import torch", "@keep\n" + SOLUTION, "teach.check_f(f)"], "cell 1 is not one plain function"),
        (["import torch", SOLUTION + "\n    return 2", "teach.check_f(f)"], "cell 1: f does something outside"),
        (["torch = 1", SOLUTION, "teach.check_f(f)"], "cell 1: f takes {'torch'} from the notebook"),
        (
            ["import torch", SOLUTION.replace("re", "global y; y = 1; re", 1), "teach.check_f(f)"],
            "cell 1: f takes {'y'}",
        ),
        (["import torch", SOLUTION, "teach.check_f(f)", "y = eval('f')"], "cell 3 could use a name unseen"),
    ],
)
def test_what_could_hang_on_a_learners_code_is_found(cells, fault):
    found = list(what_a_copy_could_change(cells))
    assert not found if fault is None else any(each.startswith(fault) for each in found)


@each
def test_code_never_runs_away_from_the_story(path):
    """Between two prose cells stand at most two code cells; the first word and the last are prose."""
    kinds = [cell.cell_type for cell in cells(path)]
    assert "code code code" not in " ".join(kinds)
    assert kinds[-1] == kinds[0] == "markdown"
