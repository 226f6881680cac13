import nbformat
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from paramarket import align, cka, merge, stack, teach, train
from paramarket.errors import DataError


def same(a, b, truth):
    both = (a != truth) & (b != truth)
    return (a == b)[both].float().mean().item()


def average(a, b):
    return {name: (a[name] + b[name]) / 2 for name in a}


def overwrite(a, b):
    for name in a:
        a[name] += b[name]
    return a


def swap(params, i, j):
    order = torch.arange(len(params["1.bias"]))
    order[[i, j]] = order[[j, i]]
    swapped = {name: params[name][order] for name in ("1.weight", "1.bias")}
    return {**params, **swapped, "3.weight": params["3.weight"][:, order]}


def reverse(params, i, j):
    order = torch.arange(len(params["1.bias"])).flip(0)
    turned = {name: params[name][order] for name in ("1.weight", "1.bias")}
    return {**params, **turned, "3.weight": params["3.weight"][:, order]}


def half_a_swap(params, i, j):
    return {**swap(params, i, j), "3.weight": params["3.weight"]}


def matched(a, b):
    return torch.from_numpy(linear_sum_assignment(a @ b.T, maximize=True)[1])


def copy_barriers(net, spec, params, p, split):
    copy = align.permute(spec, p, params)
    losses = [train.evaluate(net, merge.path(params, other, 11), split).loss for other in (copy, params)]
    return tuple(merge.barrier(each).item() for each in losses)


def unmatched(net, spec, params, p, split):
    return (copy_barriers(net, spec, params, p, split)[0],) * 2


def in_place(net, spec, models, split, generator):
    for tensor in models.values():
        tensor.mul_(0.5)
    return stack.take(models, 0)


def shrunk(net, spec, models, split, generator):
    return {name: tensor[0] / 2 for name, tensor in models.items()}


def uncentred(x, y):
    return ((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def outlier(x, far=1000.0):
    moved = x.clone()
    moved[0] += far
    return moved


def stub(*_):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("check", "answer", "says"),
    [
        (teach.check_same_mistake, same, "✓ same_mistake holds"),
        (teach.check_same_mistake, lambda a, b, _: (a == b).float().mean().item(), "look only at the"),
        (teach.check_same_mistake, stub, "… same_mistake is not written yet"),
        (teach.check_average, average, "✓ average holds"),
        (teach.check_average, lambda a, b: a, "is not half-way"),
        (teach.check_average, lambda a, b: {}, "expected ['0.bias', '0.weight']"),
        (teach.check_average, overwrite, "it changes the first model"),
        (teach.check_average, lambda a: a, "it raised TypeError"),
        (teach.check_swap_units, swap, "✓ swap_units holds"),
        (teach.check_swap_units, reverse, "it moved other rows"),
        (teach.check_swap_units, half_a_swap, "computes something else now"),
        (teach.check_swap_units, lambda params, i, j: params, "nothing was swapped"),
        (teach.check_swap_units, stub, "… swap_units is not written yet"),
        (teach.check_match_layer, matched, "✓ match_layer holds"),
        (teach.check_match_layer, lambda a, b: matched(a, b).argsort(), "You have it the wrong way round"),
        (teach.check_match_layer, lambda a, b: (a @ b.T).argmax(dim=1) * 0, "is no order of 12 units"),
        (teach.check_match_layer, lambda a, b: torch.arange(12), "is possible"),
        (teach.check_copy_barriers, copy_barriers, "✓ copy_barriers holds"),
        (teach.check_copy_barriers, unmatched, "the barrier after matching is"),
        (teach.check_copy_barriers, lambda *_: (0.0, 0.0), "on a path of 11 points"),
        (teach.check_merge_method, merge.average, "✓ merge_method holds"),
        (teach.check_merge_method, lambda net, spec, models, *_: stack.take(models, 0), "gives back the first model"),
        (teach.check_merge_method, in_place, "it changes the models it is given"),
        (teach.check_merge_method, shrunk, "two equal models should merge into that model"),
        (teach.check_merge_method, lambda net, spec, models, *_: models, "should be one finite tensor of shape"),
        (teach.check_cka, cka.linear_cka, "✓ my_cka holds"),
        (teach.check_cka, uncentred, "Did you centre every feature?"),
        (teach.check_cka, lambda x, y: 1.0, "for a random pair it says 1.000"),
        (teach.check_cka, lambda x, y: 0.5, "should be like itself: 1, not 0.500."),
        (teach.check_fool, outlier, "✓ fool holds"),
        (teach.check_fool, lambda x: x.clone(), "0 examples differ, expected one"),
        (teach.check_fool, lambda x: outlier(x, 0.5), "move the one example further away"),
        (teach.check_fool, lambda x: outlier(x, torch.inf), "expected finite numbers of shape (1000, 10)"),
        (teach.check_fool, torch.Tensor.neg_, "it changes x itself"),
    ],
)
def test_checks_tell_right_from_wrong(capsys, check, answer, says):
    before = torch.get_rng_state()
    check(answer)
    assert says in capsys.readouterr().out
    assert torch.equal(before, torch.get_rng_state())


def write(path, source, solution=True):
    cell = nbformat.v4.new_code_cell(source, execution_count=3, outputs=[nbformat.v4.new_output("stream", text="x")])
    if solution:
        cell.metadata["nbgrader"] = {
            "solution": True,
            "grade_id": "a",
            "schema_version": 3,
            "grade": False,
            "locked": False,
        }
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)


def test_a_student_copy_has_stubs_for_solutions_and_no_outputs(tmp_path):
    write(
        tmp_path / "a.ipynb", "def f(x):\n    '''Doc.'''\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION\nf"
    )
    teach.student_copy(tmp_path / "a.ipynb", tmp_path / "out/a.ipynb")
    (cell,) = nbformat.read(tmp_path / "out/a.ipynb", as_version=4).cells
    assert cell.source == "def f(x):\n    '''Doc.'''\n    raise NotImplementedError\nf"
    assert (cell.outputs, cell.execution_count) == ([], None)
    assert cell.metadata["nbgrader"]["solution"]


def test_a_solution_cell_without_marks_is_refused(tmp_path):
    write(tmp_path / "a.ipynb", "def f(x):\n    return x")
    with pytest.raises(DataError, match="has no ### BEGIN SOLUTION"):
        teach.student_copy(tmp_path / "a.ipynb", tmp_path / "out/a.ipynb")
    assert not (tmp_path / "out").exists()
