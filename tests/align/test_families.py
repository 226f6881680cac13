import pytest
from click.testing import CliRunner

from paramarket import align
from paramarket.__main__ import cli
from paramarket.errors import ParameterError


def test_the_smallest_of_each_family_is_traced_and_put_into_a_table(tmp_path):
    page = tmp_path / "page.md"
    result = CliRunner().invoke(cli, ["symmetries", "squeezenet1_1", "--out", str(page)], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.output.startswith("squeezenet1_1: traced, 25 permutations, 0 in blocks")
    assert "| squeezenet1_1 | traced | 1.2 | 25 | 0 |" in page.read_text()
    assert "1 of 1" in page.read_text()


def test_an_unknown_model_is_refused():
    with pytest.raises(ParameterError, match="unknown model 'resnet'"):
        list(align.families(["resnet"]))
