"""Eight few-shot tasks of sparse experts in one stack, against one task after another."""

import torch
from conftest import seconds

from paramarket import smat, stack
from paramarket.smat import answers, prototype_logits


def bench_tasks(row):
    net, tasks = stack.mlp(64, [128], 32), 8
    pretrained = stack.init(net, 1, 0)
    experts = smat.experts_of(pretrained, 4, 32, [0])
    for part in experts[:2]:
        for tensor in part.values():
            tensor.requires_grad_()
    alpha, x, y = torch.full((1, tasks, 4), 0.25), torch.randn(tasks, 75, 64), answers(5, 10)

    def step(chosen):
        models = smat.interpolate(pretrained, experts, alpha[:, chosen])
        flat = {name: tensor.flatten(0, 1) for name, tensor in models.items()}
        said = stack.run(net, flat, x[chosen], shared=False, training=True)
        logits = prototype_logits(said[:, :25], said[:, 25:], 5)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits))).backward()

    one, loop = (
        seconds(lambda: step(slice(None)), rounds=20),
        seconds(lambda: [step(slice(t, t + 1)) for t in range(tasks)], rounds=20),
    )
    row("8 tasks of sparse experts: one stack, times faster than a loop", "≥ 2.00", loop / one)
