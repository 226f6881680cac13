"""Every path of the library that takes a device, on a GPU and on the CPU: the same numbers? And how fast?

    python -m paramarket gpu                  # or: make gpu
    python -m paramarket gpu --device cpu     # a dry run: the CPU against itself

Each function of PATHS yields (what, numbers) for a device. Both devices get the same seeds, and random numbers come
from the CPU, so what they yield may differ by rounding alone: by 1e-4, absolute up to 1, relative above. TensorFloat-32
(products of numbers with ten binary digits) is off meanwhile. It ends with 0 if all agree, 1 if something differs, 3 if
there is no such device, so that nothing was checked.
"""

import sys
import time
import traceback
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import nn

from paramarket import align, base, cka, data, decide, market, merge, smat, soup, specialists, stack, train
from paramarket.base import stream
from paramarket.data import Split
from paramarket.errors import ParameterError

BAR = 1e-4
MLP = stack.mlp(64, [16, 12], 10)
TANH = nn.Sequential(*[nn.Tanh() if isinstance(layer, nn.ReLU) else layer for layer in MLP])  # see `matching`
RESIDUAL = stack.residual_mlp(64, 8, 2, 10)
DIGITS = data.load("digits")
SOME = Split(DIGITS.train.x[:200], DIGITS.train.y[:200])
HOW = {"batch": 32, "lr": 5e-3, "schedule": "constant"}


def moved(tensors, device):
    return stack.map(lambda tensor: tensor.to(device), tensors)


def at(split, device):
    return Split(split.x.to(device), split.y.to(device))


def one_and_other(models):
    return stack.take(models, 0), stack.take(models, 1)


def stacks(device):
    models = stack.init(MLP, 3, seed=0, device=device)
    assert stack.device(models).type == torch.device(device).type
    shares = torch.tensor([[0.2, 0.3, 0.5]])
    yield "stack.init", models
    yield "stack.forward", stack.forward(MLP, models, stack.place(SOME.x, models))
    yield "stack.mix", stack.mix(shares, models)
    yield "stack.copy", stack.copy(models)


def training(device):
    models = stack.init(MLP, 3, seed=0, device=device)
    done = train.fit(MLP, models, SOME, steps=10, keep=[5], pull={"1.weight": torch.ones(3, 1, 1)}, **HOW)
    yield "train.fit", [done.stack, done.kept[5], done.history]
    measured = stack.table(stack.grid(model=range(3)), bias=done.stack["1.bias"].sum(dim=1))
    yield "stack.table", torch.tensor(measured.bias.to_numpy())
    yield "train.fit, going on", train.fit(MLP, done.stack, SOME, steps=2, state=done.state, **HOW).stack
    yield "train.evaluate", train.evaluate(MLP, done.stack, SOME)
    gradients = stack.map(torch.empty_like, models)
    x, targets = SOME.x[:96].view(3, 32, 1, 8, 8).to(device), train.probabilities(SOME.y[:96], 10).view(3, 32, 10)
    yield "train.make_backward", [train.make_backward(MLP, models, gradients, 32)(x, targets.to(device)), gradients]


def matching(device):
    """Of a net with Tanh: a unit that a ReLU silences could stand anywhere, and rounding would choose its place."""
    models, x = stack.init(TANH, 3, seed=0, device=device), SOME.x.to(device)
    spec = align.permutation_spec(TANH, x)
    one, other = one_and_other(models)
    by_weights = align.weight_matching(spec, one, other)
    yield "align.weight_matching", by_weights
    yield "align.activation_matching", align.activation_matching(spec, one, other, net=TANH, x=SOME.x)
    yield "align.match_many", align.match_many(spec, models)
    yield "align.identity", align.identity(spec, one)
    yield "align.permute", align.permute(spec, by_weights, other)
    yield "align.reorder_pairs", align.reorder_pairs(spec, models, stack.take(models, torch.tensor([1, 2, 0])))


def merging(device):
    models = stack.init(MLP, 3, seed=0, device=device)
    spec, (one, other) = align.permutation_spec(MLP, SOME.x[:1]), one_and_other(models)
    for name, method in merge.METHODS.items():
        yield f"merge.METHODS, {name}", method(MLP, spec, models, SOME, stream(0, "merge"))
    yield "merge.distil", merge.distil(MLP, spec, models, SOME, stream(0, "merge"))
    yield "merge.ensemble", merge.ensemble(MLP, models, SOME.x)
    pairs = merge.merge_pairs(MLP, spec, models, models, SOME, stream(0, "pairs"), method=merge.repair)
    yield "merge.merge_pairs", pairs
    yield "merge.repaired_path", merge.repaired_path(MLP, spec, one, other, SOME.x, points=5)
    line, grid = merge.path(one, other, 4), merge.plane(one, other, stack.take(models, 2), 3)
    yield "merge.path", line
    yield "merge.plane", [grid.models, grid.x, grid.y, grid.corners]
    yield "merge.walk", merge.walk(MLP, [line, line], SOME)
    yield "merge.barrier", merge.barrier(train.evaluate(MLP, line, SOME).loss.to(device))
    yield "merge.layer_path", merge.layer_path(one, other, ["1.bias"], 3)
    yield "merge.layer_rise", merge.layer_rise(MLP, [(one, other)], SOME)
    two, three = (stack.take(models, torch.tensor(chosen)) for chosen in ([0, 1], [2, 0]))
    yield "merge.average_pairs", merge.average_pairs(two, three)
    yield "merge.walk_pairs", merge.walk_pairs(MLP, two, three, SOME, points=3)
    yield "merge.best_blend", merge.best_blend(MLP, two, three, SOME, shares=[0.2, 0.8])


def similarity(device):
    xs = {name: torch.randn(2, 80, 6, generator=stream(0, name)).to(device) for name in ("1", "3")}
    ys = {name: x + torch.randn(2, 80, 6, generator=stream(1, name)).to(device) for name, x in xs.items()}
    for debiased in (False, True):
        yield f"cka.linear_cka, debiased={debiased}", cka.linear_cka(xs["1"], ys["1"], debiased)
        yield f"cka.cka_matrix, debiased={debiased}", cka.cka_matrix(xs, ys, debiased)
        yield f"cka.rbf_cka, debiased={debiased}", cka.rbf_cka(xs["1"][0], ys["1"][0], 1.0, debiased)
    streaming = cka.StreamingCKA()
    streaming.update(xs, ys)
    yield "cka.StreamingCKA", streaming.compute()


def growing(device):
    start = stack.init(RESIDUAL, 3, seed=0, device=device)
    left, right = ([data.rotate_split(DIGITS.quote, angle)] * 3 for angle in (-20.0, 20.0))
    couples = specialists.specialise(RESIDUAL, start, left, right, keep=[0, 4, 8], **HOW)
    yield "specialists.specialise", couples
    origin = stack.chain([start] * 3)
    yield "specialists.measure", specialists.measure(RESIDUAL, *couples, origin, DIGITS.quote)
    yield "specialists.gradient_cosine", specialists.gradient_cosine(RESIDUAL, start, left[0], right[0])
    logits = train.logits(RESIDUAL, couples.a, DIGITS.quote.x)
    yield "train.fit_temperatures", train.fit_temperatures(logits, DIGITS.quote.y)
    yield "specialists.block_outputs", specialists.block_outputs(RESIDUAL, couples.a, SOME.x)
    family = moved(stack.unflat(stack.init(RESIDUAL, 6, seed=0), (2, 3)), device)
    yield "specialists.kinship", specialists.kinship(RESIDUAL, family, SOME.x)
    one, other = one_and_other(start)
    yield "decide.compatibility", decide.compatibility(RESIDUAL, one, other, DIGITS.quote)


def trading(device):
    models = stack.init(TANH, 3, seed=0, device=device)
    spec, examples = align.permutation_spec(TANH, SOME.x[:1]), at(SOME, device)
    for match in market.MATCHES:
        meet = {"buyers": [0, 2], "sellers": [[1, 2], [0, 1]], "match": match}
        line = market.lineup(TANH, spec, models, **meet, x=examples.x)
        yield f"market.lineup, {match}", line
    weights = market.purchase_weights([0.2, 0.5], len(stack.layers(models)), sellers=2)
    own = torch.arange(20, device=device).view(2, 10) % 3 > 0
    offer = market.quote(TANH, line, weights, examples, own_classes=own, max_class_loss=1.0)
    yield "market.quote", offer
    found = market.audit(TANH, stack.take(line, (slice(None), 0)), offer.models, examples)
    yield "market.audit", found[:3]
    plants = market.plants(DIGITS.train, 10, count=3, share=0.05, bid=100.0, seed=0)
    splits = market.Splits(DIGITS.quote, DIGITS.audit, DIGITS.test)
    held = market.Market(plants, market.Terms(), 0)
    done = market.run(MLP, [held], splits, rounds=2, steps=4, lr=5e-3, batch=32, device=device)
    yield "market.run", [done.models, done.accuracy, done.euros]
    yield "market.revert", [market.revert(done.ledger, number) for number in done.ledger.before]


def tuning(device):
    pool = smat.task_pool(DIGITS.quote, {name: data.DOMAINS[name] for name in ("upright", "invert")}, seed=0)
    tasks = smat.fresh_tasks(pool, range(10), seeds=[3, 4], tasks=4)
    pretrained = smat.pretrain_foundation(MLP, pool, range(10), seeds=[3, 4], steps=3, device=device)
    yield "smat.pretrain_foundation", pretrained
    own = smat.one_per_task(pretrained, tasks)
    yield "smat.tuned_accuracy", smat.tuned_accuracy(MLP, own, tasks, ways=4, steps=3, lr=1e-2)
    start = smat.experts_of(pretrained, experts=2, features=10, seeds=[3, 4])
    masks = smat.fixed_masks(start, ["learnt", "random"], density=0.3, seeds=[0, 1])
    yield "smat.experts_of", [start.delta, start.gates]
    yield "smat.fixed_masks", masks.gates
    yield "smat.sparsity", smat.sparsity(masks.gates)
    yield "smat.overlap", smat.overlap(masks.gates, masks.gates)
    yield "smat.shuffle_within", smat.shuffle_within(masks.gates, "rows", stream(0, "shuffled"))
    yield "smat.storage", smat.storage(masks.gates)
    plain = torch.ones(2)
    aims = smat.Aims(
        sparsity=torch.tensor([0.2, 0.5]),
        pretrained_teacher=0.5 * plain,
        dense_teacher=0.5 * plain,
        learn_gates=plain > 0,
    )
    sizes = {"tasks": 2, "ways": 3, "shots": 2, "queries": 3}
    found = smat.meta_tune(MLP, pretrained, start, aims, pool, range(6), seeds=[3, 4], steps=3, **sizes)
    yield "smat.meta_tune", [found.experts.delta, found.experts.gates, found.history]
    yield "smat.interpolate", smat.interpolate(pretrained, found.experts, torch.full((2, 4, 2), 0.5))
    mixed = smat.task_models(MLP, pretrained, found.experts, tasks)
    yield "smat.task_models", mixed
    yield "smat.task_logits", smat.task_logits(MLP, mixed, tasks, ways=4)
    yield "smat.accuracies", smat.accuracies(MLP, pretrained, found.experts, tasks)
    by_domain = smat.mean_alpha_by_domain(MLP, pretrained, found.experts, tasks, domains=2)
    yield "smat.mean_alpha_by_domain", by_domain
    law, gates = smat.HardConcrete(), torch.linspace(-3, 3, 50).to(device)
    yield "smat.HardConcrete", [asked(gates) for asked in (law.median, law.nonzero, law.mean)]
    multiplier, closed = torch.full((2, 3), 0.5).to(device), torch.tensor([[0.1, 0.6, 0.2]] * 2).to(device)
    yield "smat.dual_ascent_step", smat.dual_ascent_step(multiplier, closed, torch.tensor([0.0, 0.5]), 2.0)


def soups(device):
    net, how = stack.mlp(64, [6], 10), {"batch": 16, "lr": 1e-2}
    names = ("upright", "invert", "edges")
    domains = [Split(data.DOMAINS[name](SOME.x, stream(0, name)), SOME.y) for name in names]
    h = torch.stack([soup.draw_weights(soup.WeightLaw(), 3, 4, stream(seed, "h")) for seed in (0, 1)])
    start = soup.init_soups(net, 3, experts=[3, 2], seeds=[0, 1], device=device)
    yield "soup.init_soups", start
    drawn = soup.batches(domains, h.to(device), 8, [stream(0), stream(1)])
    yield "soup.batches", [[part.clone() for part in step] for step in drawn]
    fit = soup.train_soups(net, start, domains, h, seeds=[0, 1], **how)
    yield "soup.train_soups", [fit.soup, fit.losses]
    yield "soup.alphas", soup.alphas(fit.soup, h[:, 0])
    yield "soup.specialists", soup.specialists(fit.soup, h[:, 0])
    law = soup.WeightLaw((1, 2))
    every = {"generic": soup.Kind(0), "soup": soup.Kind(3, law), "low rank": soup.Kind(3, law, rank=2)}
    kinds = soup.train_kinds(net, domains, every, steps=3, seeds=[0], device=device, **how)
    yield "soup.train_kinds", kinds
    begun = soup.specialists(kinds["generic"], h[0, :1])
    alone = soup.train_alone(net, domains, h[0, :1], steps=3, seeds=[0], start=begun, device=device, **how)
    yield "soup.train_alone", alone
    yield "soup.score_single_domains", soup.score_single_domains(net, kinds, domains)
    classifier = soup.train_domain_classifier(domains, 8, seed=0, device=device, steps=10, lr=0.01)
    yield "soup.train_domain_classifier", classifier.model
    features = [soup.hidden_features(classifier, split.x) for split in domains]
    yield "soup.hidden_features", features
    clusters = soup.cluster_features(features, 3, seed=0)
    yield "soup.domain_weights", soup.domain_weights(clusters, features[0][None])
    experts = moved(stack.unflat(stack.init(net, 6, seed=1), (2, 3)), device)
    yield "soup.score_mixtures", soup.score_mixtures(net, experts, domains, h[0, :3])
    yield "soup.score_ensemble", soup.score_ensemble(net, experts, classifier, domains, h[0, :2])
    x, y = SOME.x[:40].view(2, 20, 1, 8, 8), SOME.y[:40].view(2, 20)
    yield "soup.trial", soup.trial(net, *[stack.take(experts, (slice(None), k)) for k in range(2)], x, y)


def any_net(device):
    """A net that is no MLP: vectorised by torch.func, with a BatchNorm's statistics."""
    convolution = nn.Conv2d(1, 6, 3)
    net = nn.Sequential(convolution, nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(216, 10))
    models = stack.init(net, 3, seed=0, device=device)
    spec, (one, other) = align.permutation_spec(net, SOME.x[:2]), one_and_other(models)
    found = align.weight_matching(spec, one, other)
    done = train.fit(net, models, SOME, steps=5, **HOW)
    yield "any net: train.fit", done.stack
    yield "any net: train.evaluate", train.evaluate(net, done.stack, SOME)
    yield "any net: align.weight_matching", found
    yield "any net: align.activation_matching", align.activation_matching(spec, one, other, net=net, x=SOME.x)
    yield "any net: merge.repaired_path", merge.repaired_path(net, spec, one, other, SOME.x, points=3)
    experts = [stack.init(MLP, 2, seed=k, device=device) for k in range(2)]
    router = specialists.Router(MLP, 2)
    routers = specialists.init_router(router, experts)
    yield "specialists.init_router", stack.forward(router, routers, SOME.x.to(device))
    yield "specialists.fit_router", specialists.fit_router(router, experts, SOME, steps=3, batch=32).stack


FUNCTIONAL = any_net  # runs torch.func, which the second device of the tests does not serve
PATHS = [stacks, training, matching, merging, similarity, growing, trading, tuning, soups, any_net]


def leaves(value):
    """All numbers of a result, one array or single value after another."""
    if isinstance(value, torch.Tensor):
        return [value.detach().cpu().numpy()]
    if isinstance(value, pd.DataFrame):
        return [value[column].to_numpy() for column in value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in leaves(each)]
    return [value]


def difference(found, expected):
    """The largest difference of two results: absolute up to 1, relative above; infinite where nothing may differ."""
    pairs = list(zip(leaves(found), leaves(expected), strict=True))
    return max((_leaf_difference(*pair) for pair in pairs), default=0.0)


def _leaf_difference(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return np.inf
    if found.dtype.kind != "f":
        return 0.0 if (found == expected).all() else np.inf
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    if same.all():
        return 0.0
    away = np.abs(found[~same].astype(float) - expected[~same]) / np.maximum(1, np.abs(expected[~same]))
    return np.inf if np.isnan(away).any() else away.max().item()


def compare(path, device):
    """[(what, difference from the CPU)] of one function of PATHS; an error counts as infinitely far."""
    expected = list(path("cpu"))
    rows, steps = [], path(device)
    for what, wanted in expected:
        try:
            rows.append((what, difference(next(steps)[1], wanted)))
        except Exception:
            traceback.print_exc()
            return [*rows, (what, np.inf)]
    return rows


def seconds(call, device, rounds=2):
    """The least of some rounds after one to warm up, all work of the GPU included."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def training_speed(device, images, copies, width):
    net = stack.mlp(784, [width] * 2, 10)
    models, split = stack.init(net, copies, seed=0, device=device), at(images.train, device)
    took = seconds(lambda: train.fit(net, models, split, steps=20, batch=64), device)
    return copies * 20 * 64 / took


def matching_speeds(device, images, width):
    """Two nets that have learnt a little; both come from the CPU."""
    net, x = stack.mlp(784, [width] * 2, 10), images.train.x[:2000].to(device)
    models = moved(train.fit(net, stack.init(net, 2, seed=0), images.train, steps=30).stack, device)
    spec, pair = align.permutation_spec(net, images.train.x[:1]), one_and_other(models)
    by_weights = seconds(lambda: align.weight_matching(spec, *pair), device)
    by_activations = seconds(lambda: align.activation_matching(spec, *pair, net=net, x=x), device)
    return 1 / by_weights, 1 / by_activations


def cka_speed(device, n, layers):
    xs, ys = (
        {k: torch.randn(n, 512, generator=stream(side, k)).to(device) for k in range(layers)} for side in range(2)
    )
    return 1 / seconds(lambda: cka.cka_matrix(xs, ys, debiased=True), device)


def speeds(device):
    """{what: (number a second, of what)} on a device, of training, matching and CKA."""
    images, found = data.load("mnist-5k"), {}
    for copies, width in ((8, 64), (32, 64), (8, 512), (32, 512)):
        what = f"training, {copies} MLPs of width {width}, batch 64"
        found[what] = training_speed(device, images, copies, width), "images/s"
    for width in (512, 1024):
        by_weights, by_activations = matching_speeds(device, images, width)
        found[f"weight matching, width {width}"] = by_weights, "pairs/s"
        found[f"activation matching, width {width}"] = by_activations, "pairs/s"
    for n, layers in ((2000, 8), (8000, 1)):
        found[f"debiased CKA, {layers} × {layers} layers, n = {n:,}"] = cka_speed(device, n, layers), "tables/s"
    return found


def main(name):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        device = base.device(name)
    except ParameterError as error:
        print(f"No {name} device here, so nothing was checked. ({error})")
        return 3
    called = torch.cuda.get_device_name(device) if device.type == "cuda" else f"the CPU as {device}"
    print(
        f"{called} against the CPU ({torch.get_num_threads()} threads), torch {torch.__version__}, no TensorFloat-32\n"
    )
    rows = [row for path in PATHS for row in compare(path, device)]
    for what, away in rows:
        print(f"{'' if away <= BAR else 'FAILED':7}{what:45} {away:.1e} from the CPU")
    failed = sum(away > BAR for _, away in rows)
    print(f"\n{len(rows) - failed} of {len(rows)} agree to {BAR:g}.\n")
    here, there = speeds("cpu"), speeds(device)
    for what, (number, unit) in here.items():
        other, _ = there[what]
        print(f"{what:45} CPU {number:12,.1f}   {device} {other:12,.1f} {unit:8}   × {other / number:.2f}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "cuda"))
