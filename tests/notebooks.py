"""A notebook to run that waits for no torch: it starts in half the time of one that imports the library."""

from pathlib import Path

import nbformat

from paramarket import runs

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
    """All that a run printed, whole: the kernel sends it in pieces, and one may end within a line."""
    outputs = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


# A cell that records without importing the library, and so without torch.
RECORD = f"""from IPython.display import display
results = {{"square": value**2, "square_low": value, "square_high": value**3}}
record = {{"parameters": {{"value": value, "nap": nap}}, "results": results, "order": list(results)}}
display({{"{runs.MIME}": record | {{"claims": [], "environment": {{"torch": "none"}}}}}}, raw=True)"""


def write_logged(path, log):
    """A notebook that records, and whose every run leaves a line in `log` when it begins and one when it ends."""
    line = "with open({path!r}, 'a') as file:\n    print(value, file=file)"
    began, ended = line.format(path=f"{log}.began"), line.format(path=f"{log}.ended")
    return write(path, [CODE[0], CODE[1], began, *CODE[2:], RECORD, ended])


def logged(log, what):
    """The values that began or ended, sorted."""
    path = Path(f"{log}.{what}")
    return sorted(int(line) for line in path.read_text().splitlines()) if path.exists() else []


def alive(process):
    """Whether a process of Linux still runs."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def running(text):
    """The processes whose command line holds a text: those of one test, by its folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if text in command and alive(process.name):
            found.append(int(process.name))
    return found
