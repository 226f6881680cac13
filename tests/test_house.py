"""The rules of the house, checked on the house itself."""

import ast
import doctest
import inspect
import re
from functools import cache
from importlib import import_module

import nbformat
import pytest

from paramarket.__main__ import HOME

LIB = HOME / "lib/paramarket"
# The rooms in the order of the story: each imports only from rooms above its own.
ROOMS = ["errors", "base", "data", "stack", "train", "align", "merge", "cka", "specialists", "smat", "soup"]
ROOMS += ["price", "market", "contract", "decide", "plot", "teach", "runs", "__main__"]
# What no notebook of ours calls, and stays all the same: for readers' own notebooks.
OFFERED = {
    "align.random_permutations": "any element of a net's symmetry, to plant and to find again",
    "align.side_by_side": "a spec written by hand for a net that cannot be traced",
    "align.verify": "whether a spec written by hand is right",
    "cka.rbf_cka": "similarity with another kernel",
    "cka.StreamingCKA": "similarity where the examples do not fit into memory at once",
    "contract.extensive_form": "the games as Gambit reads them, to solve them with other means",
    "decide.safeguards": "the lines of a warranty and of a rollback",
    "decide.term_sheet": "one page for two firms, every number with its source",
    "decide.Way": "what a way of one's own has to keep",
    "price.PriceRule": "what a pricing rule of one's own has to keep",
    "smat.task_models": "the plain network of a task, to be shipped",
    "runs.cached": "what an earlier notebook built, without building it again",
}
# The functions that a reader meets first: each shows an example that runs.
FIRST_MET = ["base.stream", "base.interval", "data.load", "stack.mlp", "stack.init", "stack.join", "stack.take"]
FIRST_MET += ["stack.map", "stack.mix", "stack.forward", "train.fit", "train.evaluate", "align.permutation_spec"]
FIRST_MET += ["align.permute", "align.weight_matching", "merge.path", "merge.barrier", "merge.average"]
FIRST_MET += ["cka.linear_cka", "specialists.specialise", "smat.interpolate", "soup.specialists", "price.posted_price"]
FIRST_MET += ["price.settle", "market.Terms", "market.revert", "contract.judge", "contract.equilibria"]
FIRST_MET += ["decide.compatibility", "runs.claim"]
OPENED_LATE = {"plot"}  # faces whose files open when one of their names is first asked for
PATHS = {
    ".".join(path.relative_to(LIB).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(LIB.rglob("*.py"))
    if path != LIB / "__init__.py"
}
TREES = {name: ast.parse(path.read_text()) for name, path in PATHS.items()}
NOTEBOOKS = sorted((HOME / "notebooks").glob("[0-9]*.ipynb"))
SCRIPTS = {"runs.child", "teach.laptop"}  # run by their path, in an environment that need not have this library

each_file = pytest.mark.parametrize("name", PATHS)
each_room = pytest.mark.parametrize("room", [room for room in ROOMS if room != "__main__"])


def room_of(name):
    return name.split(".")[0]


def code(path):
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def face(room):
    """The public names of a room: its list, or, of a room that is one file, what does not start with an underscore."""
    module = import_module(f"paramarket.{room}")
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return list(getattr(module, "__all__", [name for name in own if not name.startswith("_")]))


def imports(tree):
    """(room or "", the rest of the module's name, names) of every import from the house."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("paramarket.") for alias in node.names), (
                "write: from paramarket import"
            )
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            first, _, rest = (node.module or "").partition(".")
            if first == "paramarket":
                room, _, file = rest.partition(".")
                yield room, file, [alias.name for alias in node.names]


def test_every_room_has_its_place():
    children = {path.stem for path in LIB.glob("*") if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert children - {"__init__"} == set(ROOMS)


@each_room
def test_a_face_is_a_docstring_imports_from_its_own_files_and_one_list(room):
    tree = TREES[room]
    assert ast.get_docstring(tree)
    if PATHS[room].name != "__init__.py":
        return
    if room in OPENED_LATE:
        (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
        body = guarded.body
    else:
        *body, last = tree.body[1:]
        assert isinstance(last, ast.Assign)
        assert last.targets[0].id == "__all__"
    assert all(isinstance(node, ast.ImportFrom) and node.module.startswith(f"paramarket.{room}.") for node in body)
    assert sorted(face(room)) == sorted(alias.name for node in body for alias in node.names)


@pytest.mark.parametrize("room", sorted(OPENED_LATE))
def test_a_face_that_opens_late_gives_what_its_files_define(room):
    module = import_module(f"paramarket.{room}")
    for _, file, names in imports(TREES[room]):
        opened = import_module(f"paramarket.{room}.{file}")
        assert all(getattr(module, name) is getattr(opened, name) for name in names)
    assert dir(module) == face(room)
    with pytest.raises(AttributeError, match=f"'paramarket.{room}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


@each_file
def test_a_room_imports_only_faces_and_only_from_rooms_above(name):
    room, own = room_of(name), PATHS[name].parent != LIB
    above = ROOMS[: ROOMS.index(room)]
    for other, file, names in imports(TREES[name]):
        if other == "":
            assert set(names) - {"__version__"} <= set(above), names
        elif other == room and own:
            assert file or all((LIB / room / f"{each}.py").exists() for each in names), "import the file, not the face"
        else:
            assert other in above, f"{name} imports from {other}"
            assert not file, f"{name} reaches into {other}.{file}"
            assert set(names) <= set(face(other)), (other, names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_use_faces_only(path):
    tree, rooms = ast.parse(code(path)), set()
    for other, file, names in imports(tree):
        assert not file
        assert set(names) <= set(face(other) if other else ROOMS)
        rooms |= set() if other else set(names)
    own = {argument.arg for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for argument in node.args.args}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in rooms - own:
            assert node.attr in face(node.value.id), f"{node.value.id}.{node.attr}"


def signatures(room):
    """(name, node, docstring) of every public function of a room."""
    public = set(face(room))
    for name, tree in TREES.items():
        if room_of(name) == room:
            for node in tree.body:
                if isinstance(node, ast.FunctionDef) and node.name in public:
                    yield node.name, node, ast.get_docstring(node) or ""


@each_room
def test_what_is_public_is_documented(room):
    module = import_module(f"paramarket.{room}")
    for name in face(room):
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), name
            assert inspect.getdoc(value) != inspect.getdoc(object), name


@each_room
def test_a_public_function_says_what_it_takes_and_gives(room):
    """Every argument and result has a type; a bare Tensor has its shape in the docstring, behind its name."""
    for function, node, doc in signatures(room):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        assert all(argument.annotation for argument in arguments), function
        assert node.returns is not None, function
        for argument in arguments:
            if ast.unparse(argument.annotation) == "Tensor":
                assert re.search(rf"\b{argument.arg}\b[^\n]{{0,60}}\[", doc), f"{function}: the shape of {argument.arg}"
        if ast.unparse(node.returns) == "Tensor":
            assert re.search(r"\[[^\]]*\]", doc), f"{function}: the shape of what it gives"


def loads(tree):
    """Every name that code reads: plain names, attributes, and what is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def unused(source, elsewhere=()):
    """Top-level functions and classes of a source that nobody reads: not even elsewhere, and not only themselves."""
    tree = ast.parse(source)
    dead = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.decorator_list:
            others = [other for other in tree.body if other is not node]
            if node.name not in {*elsewhere, *(name for other in others for name in loads(other))}:
                dead.append(node.name)
    return dead


def test_a_name_that_only_reads_itself_is_found():
    source = "def used(): return 1\ndef dead(): return dead()\ndef _helper(): return used()\nclass Gone: ...\n"
    assert unused(source) == ["dead", "_helper", "Gone"]
    assert unused(source, elsewhere=["dead"]) == ["_helper", "Gone"]


@each_file
def test_no_name_is_dead(name):
    """What a file defines is read there, in another file of its room, or stands on the face of the room."""
    room = room_of(name)
    others = [tree for other, tree in TREES.items() if room_of(other) == room and other != name]
    elsewhere = {each for tree in others for each in loads(tree)} | {"main", "__getattr__", "__dir__"}
    if PATHS[name].parent == LIB:
        elsewhere |= set(face(room))
    assert unused(PATHS[name].read_text(), elsewhere) == []


@each_room
def test_what_stands_on_a_face_is_used(room):
    """By the house, a notebook, a benchmark or the pages about it, if only in a signature. A test is no user."""
    read = read_anywhere()
    for path in [HOME / "README.md", HOME / "docs/library.md", *NOTEBOOKS]:
        read = read | set(re.findall(rf"\b{room}\.(\w+)", path.read_text(encoding="utf-8")))
    offered = {name for name in face(room) if f"{room}.{name}" in OFFERED}
    assert set(face(room)) - read - offered == set()


@cache
def read_anywhere():
    """Every name that the house, a notebook or a benchmark reads."""
    files = [tree for name, tree in TREES.items() if PATHS[name].name != "__init__.py"]
    trees = files + [ast.parse(code(path)) for path in NOTEBOOKS]
    trees += [ast.parse(path.read_text()) for path in (HOME / "tests/benchmarks").glob("*.py")]
    return {name for tree in trees for name in loads(tree)} | {name for tree in files for name in annotations(tree)}


def annotations(tree):
    """The names that stand in the signatures of functions and in the fields of classes."""
    for node in ast.walk(tree):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for part in filter(None, parts):
            for inner in ast.walk(part):
                if isinstance(inner, ast.Name):
                    yield inner.id
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    yield inner.value


def stacks(function):
    """The names of a function's arguments and variables that hold models."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    for argument in arguments:
        if argument.annotation and ast.unparse(argument.annotation) in ("Stack", "Params", "Stack | Params"):
            yield argument.arg
    makers = {"take", "join", "chain", "mix", "init", "flat", "unflat", "copy", "from_vectors"}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func).removeprefix("stack.")
            yield from (target.id for target in node.targets if called in makers and isinstance(target, ast.Name))


def handwritten(tree):
    """Dict comprehensions over a stack's names, and next(iter(….values())): what the verbs of `stack` are for.

    A comprehension that needs the name itself, to look something else up, is none of these.
    """
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            known = set(stacks(function))
            for node in ast.walk(function):
                if isinstance(node, ast.DictComp) and is_map(node, known):
                    yield ast.unparse(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and re.fullmatch(r"next\(iter\(.+\.values\(\)\)\)", ast.unparse(node)):
            yield ast.unparse(node)


def is_map(node, known):
    """{name: f(tensor, other[name]) for name, tensor in models.items()}, models being one of the `known`."""
    (first, *more) = node.generators
    if more or first.ifs or ast.unparse(first.iter).removesuffix(".items()") not in known:
        return False
    name = ast.unparse(node.key)
    subscripts = [each.slice for each in ast.walk(node.value) if isinstance(each, ast.Subscript)]
    uses = [each for each in ast.walk(node.value) if isinstance(each, ast.Name) and each.id == name]
    return isinstance(node.key, ast.Name) and all(use in subscripts for use in uses)


def test_handwritten_loops_over_names_are_found():
    source = "def f(models: Stack):\n    some = take(models, 0)\n    return {n: t + 1 for n, t in some.items()}\n"
    assert list(handwritten(ast.parse(source))) == ["{n: t + 1 for n, t in some.items()}"]
    source = "def f(a: Stack, b: Stack):\n    return {n: t + b[n] for n, t in a.items()}\n"
    assert list(handwritten(ast.parse(source))) == ["{n: t + b[n] for n, t in a.items()}"]
    source = "def f(a: Stack):\n    return {n: move(t, spec.get(n)) for n, t in a.items()}\n"
    assert list(handwritten(ast.parse(source))) == []
    assert list(handwritten(ast.parse("x = next(iter(models.values()))"))) == ["next(iter(models.values()))"]


@pytest.mark.parametrize("name", [name for name in PATHS if room_of(name) != "stack"])
def test_only_the_stack_room_loops_over_the_names_of_a_stack(name):
    assert list(handwritten(TREES[name])) == []


@each_room
def test_what_a_public_function_returns_can_be_imported(room):
    """The class of its result, if it is one of the room's own, stands on the face."""
    own = {node.name for name, tree in TREES.items() if room_of(name) == room for node in classes(tree)}
    for function, node, _ in signatures(room):
        given = {each.id for each in ast.walk(node.returns) if isinstance(each, ast.Name)}
        assert given & own <= set(face(room)), function


def classes(tree):
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


@each_file
def test_no_seed_is_made_by_arithmetic(name):
    """Sums of seeds collide; streams have names (see `base.stream`)."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.BinOp):
            for side in (node.left, node.right):
                assert not re.fullmatch(r"(\w+\.)?(initial_)?seeds?(\(\))?", ast.unparse(side)), ast.unparse(node)


@each_file
def test_nothing_is_unpickled_and_no_hash_seeds_anything(name):
    refused = ("torch.load", "pickle.load", "pickle.loads", "hash", "torch.manual_seed")
    called = [ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    assert not set(called) & set(refused)


TEXT = ("open", "read_text", "write_text")


@each_file
def test_every_text_file_says_its_encoding(name):
    """Windows would read and write the letters of its own country."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in TEXT:
            words = [word.arg for word in node.keywords]
            is_text = all(
                mode not in ast.unparse(node) for mode in ("'rb'", "'wb'", "'xb'", "Image.open", "archive.open")
            )
            assert "encoding" in words or "framework" in words or not is_text, ast.unparse(node)


@pytest.mark.parametrize("name", [name for name in PATHS if name not in SCRIPTS and name != "__main__"])
def test_examples_in_docstrings_run(name):
    found = doctest.testmod(import_module(f"paramarket.{name}"))
    assert found.failed == 0


@pytest.mark.parametrize("name", FIRST_MET)
def test_what_a_reader_meets_first_has_an_example(name):
    room, function = name.split(".")
    assert ">>>" in inspect.getdoc(getattr(import_module(f"paramarket.{room}"), function))
