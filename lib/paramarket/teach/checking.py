"""How a learner's code is checked: on fresh random input, and with a sentence for what is wrong.

A check of your own is ten lines: a function that finds what is wrong with an answer, handed to `tell_learner`.
"""

from collections.abc import Callable

import torch


def fresh_generator() -> torch.Generator:
    """Another generator at every call: an answer cannot be fitted to the check."""
    generator = torch.Generator()
    generator.seed()
    return generator


def tell_learner(exercise: str, find_fault: Callable[[], str]) -> None:
    """Print whether an answer holds. `find_fault` says what is wrong, or nothing; an unwritten exercise is no error."""
    try:
        fault = find_fault()
    except NotImplementedError:
        print(f"… {exercise} is not written yet.")
        return
    except Exception as error:  # the learner's own code may raise anything: say it, do not end the notebook
        fault = f"it raised {type(error).__name__}: {error}"
    print(f"✗ {exercise}: {fault}" if fault else f"✓ {exercise} holds on fresh random input.")
