"""The rules of the house, checked on the house itself."""

import ast
import inspect
import re
from importlib import import_module

import nbformat
import pytest

from paramarket.__main__ import HOME

# A module imports only from rooms before its own.
ROOMS = ["base", "sources", "data", "weights", "mlps", "stack", "optim", "train", "symmetry", "align", "landscape"]
ROOMS += ["merge", "cka", "route", "specialists", "price", "worth", "broker", "ledger"]
ROOMS += ["terms", "trades", "market", "classroom"]
ROOMS += ["gates", "episodes", "interpolated", "smat", "adapt", "mixtures", "soup"]
ROOMS += ["decide", "charts", "pictures", "scatters", "tallies", "plot", "tasks", "teach"]
ROOMS += ["runs", "sweep", "pages", "__main__"]
MODULES = {path.stem: path for path in (HOME / "lib/paramarket").glob("*.py") if path.stem != "__init__"}

each = pytest.mark.parametrize("name", ROOMS)


def tree(name):
    return ast.parse(MODULES[name].read_text())


def functions(name):
    """(name, lines, node) of every function; docstrings and signatures do not count as lines."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield node.name, body[-1].end_lineno - body[0].lineno + 1 if body else 0, node


def test_every_module_has_its_room():
    assert sorted(MODULES) == sorted(ROOMS)


@each
def test_a_module_imports_only_upwards(name):
    above = set(ROOMS[: ROOMS.index(name)])
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom) and node.module == "paramarket":
            assert {alias.name for alias in node.names} - {"__version__"} <= above
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paramarket."):
            assert node.module.split(".")[1] in above
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative import"


@each
def test_a_module_is_one_idea_long(name):
    assert 60 <= len(MODULES[name].read_text().splitlines()) <= 250


@each
def test_a_function_is_short(name):
    for function, lines, _ in functions(name):
        assert lines <= 25, (function, lines)


@each
def test_what_is_public_is_documented(name):
    module = import_module(f"paramarket.{name}")
    assert module.__doc__
    public = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    own = [value for value in public.values() if getattr(value, "__module__", "") == module.__name__]
    for value in own:
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), value


@each
def test_a_public_function_says_what_it_takes_and_gives(name):
    """Every argument and result has a type; a bare Tensor in a public signature has its shape in the docstring."""
    for function, _, node in functions(name):
        if function.startswith("_") or name == "__main__" or node.col_offset:
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        assert all(argument.annotation for argument in arguments), function
        assert node.returns is not None, function
        bare = any(ast.unparse(argument.annotation) == "Tensor" for argument in arguments)
        assert not bare or "[" in (ast.get_docstring(node) or ""), f"{function}: give the shape"


@each
def test_no_name_is_dead(name):
    """Every private function is used in its module; every public one somewhere in the project."""
    sources = [path.read_text() for pattern in ("lib/**/*.py", "tests/**/*.py") for path in HOME.glob(pattern)]
    sources += [cell.source for path in HOME.glob("notebooks/*.ipynb") for cell in nbformat.read(path, 4).cells]
    for function, _, node in functions(name):
        if node.decorator_list or node.col_offset or function == "main":
            continue
        text = MODULES[name].read_text() if function.startswith("_") else "\n".join(sources)
        assert len(re.findall(rf"\b{function}\b", text)) > 1, function


def test_nothing_is_unpickled_and_no_hash_seeds_anything():
    for name in MODULES:
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "pickle.load", "pickle.loads", "hash", "torch.manual_seed"), name
