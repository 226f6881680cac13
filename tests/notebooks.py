"""A notebook to run that waits for no torch: it starts in half the time of one that imports the library."""

import nbformat

CODE = [
    "import os, time",
    "value: int = 1  # what is squared\nnap: float = 0.0  # seconds",
    "if value > 9:\n    raise ValueError(f'{value} is too much')",
    "time.sleep(nap)\nprint(value**2, 'on', os.environ['OMP_NUM_THREADS'], 'thread')",
]


def write(path, code=CODE):
    """Write code cells as a notebook, the second one being its parameters."""
    cells = [nbformat.v4.new_code_cell(source) for source in code]
    cells[1].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def printed(path):
    """All that a run printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
