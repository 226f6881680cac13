"""The exercises of the notebooks: what each asks for, its solution as a function, the check beneath it."""

import ast
from pathlib import Path
from typing import NamedTuple

import nbformat

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))


class Exercise(NamedTuple):
    """One exercise: its notebook, the prompt above, the cells (solution and check), and the name of its check."""

    path: Path
    prompt: str
    solution: nbformat.NotebookNode
    checking: nbformat.NotebookNode
    check: str


def exercises(path):
    """The exercises of a notebook, in order."""
    cells = nbformat.read(path, as_version=4).cells
    found = []
    for k, cell in enumerate(cells):
        if "BEGIN SOLUTION" in cell.source:
            check = ast.parse(cells[k + 1].source).body[-1].value
            found.append(Exercise(path, cells[k - 1].source, cell, cells[k + 1], check.func.attr))
    return found


def solution(exercise, old="", new=""):
    """The function that solves it, with the imports of its notebook that it needs; with a text in it replaced."""
    assert old in exercise.solution.source
    tree = ast.parse(exercise.solution.source.replace(old, new) if old else exercise.solution.source)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    space = {}
    for cell in nbformat.read(exercise.path, as_version=4).cells:
        if cell.cell_type == "code":
            for node in ast.parse(cell.source).body:
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    node.names = [name for name in node.names if (name.asname or name.name.split(".")[0]) in used]
                    if node.names:
                        exec(compile(ast.Module([node], []), "imports", "exec"), space)
    exec(compile(tree, exercise.path.name, "exec"), space)
    return space[tree.body[0].name]
