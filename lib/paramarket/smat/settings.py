"""Settings that several functions of the room take, refused by their name before any work starts."""

from collections.abc import Sequence

from paramarket.errors import ParameterError


def check_list(name: str, given: object) -> None:
    """Raises ParameterError unless `given` is a list (a range, a tuple); one number or one word is none."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ParameterError(f"{name} = {given!r} is one {type(given).__name__}: expected a list.")


def check_seeds(seeds: Sequence[int], runs: int) -> None:
    """Raises ParameterError unless `seeds` is a list of one whole number for each run."""
    check_list("seeds", seeds)
    if len(seeds) != runs:
        raise ParameterError(f"seeds: {len(seeds)} given, expected one for each of the {runs} runs.")
