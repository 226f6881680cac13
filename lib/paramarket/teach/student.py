"""Student copies: the notebooks without their solutions."""

import re
from pathlib import Path

from paramarket.base import atomic
from paramarket.errors import DataError

_SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION", re.S | re.M)


def student_copy(notebook: Path | str, output: Path | str) -> None:
    """Write the notebook without its solutions and outputs: what stands between the solution marks becomes a stub.

    Only cells with nbgrader's solution metadata are touched. A copy that exists already, perhaps with a learner's own
    work in it, is never overwritten.
    """
    if Path(output).exists():
        raise DataError(
            f"{output} exists already, perhaps with a learner's work in it: move it, or name another folder."
        )
    import nbformat  # not above: it takes as long to import as all the rest a notebook needs

    copy = nbformat.read(notebook, as_version=4)
    solutions = [cell for cell in copy.cells if cell.metadata.get("nbgrader", {}).get("solution")]
    for cell in solutions:
        cell.source, found = _SOLUTION.subn(r"\1raise NotImplementedError", cell.source)
        if not found:
            raise DataError(f"{notebook}: the solution cell {cell.id!r} has no ### BEGIN SOLUTION … ### END SOLUTION.")
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with atomic(output) as beside:
        nbformat.write(copy, beside)
