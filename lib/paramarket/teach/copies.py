"""Copies of the notebooks to explore: a learner's own, so that what is tracked stays as it is."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from paramarket.base import atomic
from paramarket.errors import DataError

_STAMP = "paramarket"  # in the copy's metadata: the hash of what it was copied from

CopyState = Literal["new", "renewed", "kept", "outdated", "unreadable"]


def own_copy(notebook: Path | str, copy: Path | str) -> CopyState:
    """Bring a learner's own copy of a notebook up to date, and say what became of it; a learner's work is never lost.

    "new": there was none · "renewed": nobody had edited it, and the notebook has changed · "kept": it stays as it is ·
    "outdated": it stays, since it was edited, and the notebook has changed since · "unreadable": it stays, since it is
    no readable notebook. To edit is to change the text of cells, or which there are: outputs do not count. A notebook
    of that name which is no copy of ours is kept, too. Raises DataError if `notebook` itself cannot be read.
    """
    try:
        content = _read(notebook)
        told = _hash(content)
    except Exception as error:  # json has its own, and a file that is json may still be no notebook
        raise DataError(f"{notebook} is no readable notebook ({' '.join(str(error).split())[:200]}).") from error
    state = _state(Path(copy), told)
    if state in ("new", "renewed"):
        content["metadata"][_STAMP] = {"copied_from": told}
        with atomic(copy) as beside:
            beside.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return state


def _state(copy: Path, told: str) -> CopyState:
    """What is to become of a copy, `told` being the hash of the notebook as it is now."""
    if not copy.exists():
        return "new"
    try:
        content = _read(copy)
        found = _hash(content)
        stamp = content["metadata"].get(_STAMP, {}).get("copied_from", told)
    except Exception:  # whatever stands there, perhaps with a learner's work in it, is no notebook
        return "unreadable"
    if stamp == told:
        return "kept"
    return "renewed" if found == stamp else "outdated"


def _read(path: Path | str) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _hash(content: dict[str, Any]) -> str:
    """Of the kinds and texts of all cells, in order."""
    cells = [[cell["cell_type"], "".join(cell["source"])] for cell in content["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()
