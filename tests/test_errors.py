import subprocess
import sys

import pytest

from paramarket import errors


def test_errors_load_nothing_heavy():
    """Whoever only wants to refuse something, as the command line, must not wait for torch, numpy or pandas."""
    code = (
        "import sys, paramarket.errors; print([name for name in ('torch', 'numpy', 'pandas') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("kind", [value for name, value in vars(errors).items() if name.endswith("Error")])
def test_every_kind_of_error_is_ours_and_one_of_pythons(kind):
    assert issubclass(kind, errors.ParamarketError)
    assert kind is errors.ParamarketError or issubclass(kind, (ValueError, ArithmeticError))


def test_an_unknown_name_is_quoted_with_the_nearest_known_one():
    said = errors.unknown("dataset", "digit", ["mnist", "digits"])
    assert said == "unknown dataset 'digit'. Did you mean 'digits'? Known: digits, mnist."
    assert "Did you mean" not in errors.unknown("dataset", "zzz", ["mnist", "digits"])
