"""A notebook as it is committed: without what a run leaves, in the form that JupyterLab writes."""

import json
from pathlib import Path

from paramarket.base import atomic
from paramarket.errors import DataError

_KEPT = {"nbgrader", "tags"}  # of a cell's metadata
_METADATA = {  # as JupyterLab writes it, but for the version of Python, which every machine has its own of
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}


def strip(notebook: Path | str) -> None:
    """Take out of a notebook's file outputs, counts, and metadata that hang on a run or a machine.

    Texts, tags, nbgrader's marks and the order of cells stay. To strip twice is to strip once. Raises DataError for
    what is no notebook, and leaves it as it is.
    """
    try:
        content = json.loads(Path(notebook).read_text(encoding="utf-8"))
        for cell in content["cells"]:
            cell["metadata"] = {name: value for name, value in cell["metadata"].items() if name in _KEPT and value}
            if cell["cell_type"] == "code":
                cell.update(outputs=[], execution_count=None)
    except Exception as error:  # json has its own, and a file that is json may still be no notebook
        raise DataError(f"{notebook} is no readable notebook ({' '.join(str(error).split())[:200]}).") from error
    content["metadata"] = _METADATA
    with atomic(notebook) as beside:
        text = json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True)
        beside.write_text(text + "\n", encoding="utf-8")
