"""How a learner's code is checked: on fresh random input, and with a sentence for what is wrong.

A check of your own is ten lines: a function that finds what is wrong with an answer, handed to `tell_learner`.
"""

import os
from collections.abc import Callable

import torch

from paramarket.errors import ExerciseError


def fresh_generator() -> torch.Generator:
    """Another generator at every call: an answer cannot be fitted to the check."""
    generator = torch.Generator()
    generator.seed()
    return generator


def tell_learner(exercise: str, find_fault: Callable[[], str]) -> None:
    """Print whether an answer holds. `find_fault` says what is wrong, or nothing; an unwritten exercise is no error.

    A learner's notebook goes on, whatever is said. But where nbgrader executes it, to grade or to validate, an answer
    that does not hold raises ExerciseError: nbgrader gives a cell its points unless it fails.
    """
    said = _judge(exercise, find_fault)
    print(said)
    if "NBGRADER_EXECUTION" in os.environ and not said.startswith("✓"):
        raise ExerciseError(said)


def _judge(exercise: str, find_fault: Callable[[], str]) -> str:
    """What to say of an answer, in a line."""
    try:
        fault = find_fault()
    except NotImplementedError:
        return f"… {exercise} is not written yet."
    except Exception as error:  # the learner's own code may raise anything: say it, do not end the notebook
        fault = f"it raised {type(error).__name__}: {error}"
    return f"✗ {exercise}: {fault}" if fault else f"✓ {exercise} holds on fresh random input."
