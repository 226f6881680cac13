"""What we refuse, one class a kind of mistake. Imports nothing heavy: whoever needs only these starts at once."""

import difflib
from collections.abc import Iterable


class ParamarketError(Exception):
    """Whatever paramarket refuses to do. The message says what was given, what was expected and what to do."""


class ParameterError(ParamarketError, ValueError):
    """A setting that is unknown, of the wrong type or out of range."""


class DataError(ParamarketError, ValueError):
    """A dataset that is unknown, damaged, empty or unusable."""


class ShapeError(ParamarketError, ValueError):
    """Parameters, stacks or examples that do not fit together."""


class WeightsError(ParamarketError, ValueError):
    """A weights file that cannot be trusted, or weights that do not belong together."""


class TrainingError(ParamarketError, ArithmeticError):
    """Training that left the finite numbers."""


class ExerciseError(ParamarketError, ValueError):
    """A learner's answer that does not hold. Raised only where nbgrader grades, so that the cell earns no points."""


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The text of an error for a name that nobody knows, with the nearest known one offered.

    >>> unknown("dataset", "digit", ["digits", "mnist-5k"])
    "unknown dataset 'digit'. Did you mean 'digits'? Known: digits, mnist-5k."
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}."
