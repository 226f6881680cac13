"""`python -m paramarket`: every command, for all roads and for where there is no make.

Commands import what they need when they run: papermill and nbconvert take seconds, a help text should not.
"""

import importlib.util
import os
import re
import reprlib
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
import yaml

from paramarket import __version__
from paramarket.errors import ParamarketError, ParameterError, unknown

sys.modules.setdefault("rfc3987_syntax", None)  # nbformat would wait seconds for its grammar: see runs/child.py

HOME = Path(__file__).parents[2]
LATEST = HOME / "runs/latest"
SHOWN = ("02_align_and_interpolate", "05_soup_of_experts", "07_run_the_market", "09_should_we_trade")  # in the README
MARK = ".paramarket"  # in a folder of results: the list of what we wrote, so that nothing else is ever replaced


class OneLineErrors(click.Group):
    """Commands whose own errors are one line, not a traceback."""

    def invoke(self, context: click.Context) -> None:
        try:
            super().invoke(context)
        except ParamarketError as error:
            raise click.ClickException(str(error)) from error


some_notebooks = click.argument(
    "chosen", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="[NOTEBOOK]..."
)


def _chosen_or_all(chosen: Sequence[Path]) -> list[Path]:
    """The notebooks named on the command line, or all of them."""
    return sorted(chosen or (HOME / "notebooks").glob("[0-9]*.ipynb"))


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Are neural-network weights worth trading? Notebooks, and what runs them."""
    for stream in (sys.stdout, sys.stderr):  # Windows, into a file: its own 256 letters, without € and ✓
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@cli.command()
@some_notebooks
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=LATEST,
    help="Folder for the results.  [default: runs/latest]",
)
@click.option(
    "--parameters",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file: notebook name -> its parameters.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=os.cpu_count(),
    help="Notebooks at a time, one thread each.  [default: all cores]",
)
@click.option(
    "--timeout", type=click.FloatRange(1), default=600, show_default=True, help="Limit for one notebook, in seconds."
)
def notebooks(chosen: Sequence[Path], out: Path, parameters: Path | None, jobs: int, timeout: float) -> None:
    """Execute notebooks (default: all) and write them, their pages, index.html and results.md into a folder."""
    chosen, out = _chosen_or_all(chosen), out.resolve()
    values = _read_parameters(parameters, [path.stem for path in chosen]) if parameters else {}
    if out.exists() and not {path.name for path in out.iterdir()} <= {*_written_before(out), MARK}:
        raise ParameterError(f"--out {out} holds something else than results; it would be replaced. Name a new folder.")
    from paramarket import runs  # not above: what is refused is refused at once, without torch

    fresh = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
    points = [
        runs.Point(path, fresh / path.name, values.get(path.stem, {}), timeout, row=number % jobs)
        for number, path in enumerate(chosen)
    ]
    try:
        with ThreadPoolExecutor(jobs) as executor:
            outcomes = list(runs.execute(points, executor))
        runs.build_pages(outcomes, fresh)
        names = "".join(f"{path.name}\n" for path in sorted(fresh.iterdir()))
        (fresh / MARK).write_text(names, encoding="utf-8")
        _replace_folder(out, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _report(outcomes, out)


def _read_parameters(path: Path, names: Sequence[str]) -> dict[str, dict]:
    """{notebook name: its parameters} from a YAML file; a name of no chosen notebook is an error.

    An empty file, or nothing under a name, means no parameters.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except Exception as error:  # yaml has its own; a date of month 13, or a thousand brackets, end in Python's
        why = " ".join(str(error).split()) or type(error).__name__
        raise ParameterError(f"{path} is no readable YAML file ({why}).") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ParameterError(f"{path} holds {reprlib.repr(values)}, expected `notebook name: {{parameter: value}}`.")
    found = {}
    for name, parameters in values.items():
        if name not in names:
            raise ParameterError(f"{path}: {unknown('notebook', name, names)}")
        found[name] = {} if parameters is None else parameters
        if not isinstance(found[name], dict):
            raise ParameterError(
                f"{path}: {name} is {reprlib.repr(parameters)}, expected `{name}: {{parameter: value}}`."
            )
        for parameter in found[name]:
            if not isinstance(parameter, str):
                raise ParameterError(f"{path}: {name} has a parameter called {parameter!r}, expected a name.")
    return found


class _Loader(yaml.SafeLoader):
    """Refuses what YAML allows and nobody means: a name twice, of which the last would win, and anchors.

    Ten anchors, each ten times the one before, are a list of ten billion entries.
    Numbers are those of YAML 1.2: 1e-3 is one, and 1:30 is a text, not ninety.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith((":int", ":float"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: *{event.anchor}, write out what it stands for")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {twice[0]!r} stands there twice")
        return super().construct_mapping(node, deep)


_SIGNED = list("-+.0123456789")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), _SIGNED)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(([0-9][0-9_]*\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"),
    _SIGNED,
)


def _written_before(out: Path) -> list[str]:
    """What an earlier run wrote into a folder, by its own list."""
    return (out / MARK).read_text(encoding="utf-8").splitlines() if (out / MARK).is_file() else []


def _replace_folder(out: Path, fresh: Path) -> None:
    """Put the new results in the place of the old ones: whoever looks finds one or the other, whole."""
    old = fresh.with_name(f"{fresh.name}-old")
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _report(outcomes: Sequence, out: Path) -> None:
    failed = [outcome for outcome in outcomes if outcome.error]
    click.echo(f"\n{len(outcomes) - len(failed)} of {len(outcomes)} notebooks ran. Open {out / 'index.html'}")
    for outcome in failed:
        click.echo(f"FAILED {outcome.point.notebook.name}: {outcome.error}", err=True)
    sys.exit(bool(failed))


@cli.command()
@click.argument("notebook", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--grid", "grids", multiple=True, metavar="NAME=VALUES", help="64,128 or 0:5 (0 to 4) or [1,2],[3].")
@click.option("--set", "fixed", multiple=True, metavar="NAME=VALUE", help="The same for all points.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the points and their table.  [default: runs/sweeps/NOTEBOOK]",
)
@click.option("--workers", type=click.IntRange(1), help="Points at a time, one thread each.  [default: all cores]")
@click.option("--scheduler", metavar="ADDRESS", help="Of a running dask scheduler, tcp://host:8786 say.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=600, show_default=True, help="Limit for one point, in seconds."
)
@click.option("--retry", is_flag=True, help="Run points again that failed before.")
@click.option("--part", metavar="K/N", help="Only every N-th point, from the K-th: one of N jobs. Writes no table.")
def sweep(
    notebook: Path,
    grids: Sequence[str],
    fixed: Sequence[str],
    out: Path | None,
    workers: int | None,
    scheduler: str | None,
    timeout: float,
    retry: bool,
    part: str | None,
) -> None:
    """Run a notebook once for every combination of parameters, here or on a cluster; go on where it stopped.

    Finished points never run again: stop it, start it again, let the grid grow.
    """
    if workers and scheduler:
        raise ParameterError("--workers is for this machine, --scheduler for another: give one of the two.")
    first, step = _part(part) if part else (1, 1)
    grid = {name: _read_list(name, text) for name, text in _by_name("--grid", grids)}
    parameters = {name: _read_value(name, text) for name, text in _by_name("--set", fixed)}
    from paramarket import runs

    out = (out or HOME / "runs/sweeps" / notebook.stem).resolve()
    points = runs.points(notebook, grid, out, parameters=parameters, timeout=timeout)[first - 1 :: step]
    told = []
    try:
        with (
            _executor(workers or os.cpu_count(), scheduler) as executor,
            closing(runs.execute(points, executor, retry=retry)) as outcomes,
        ):
            for outcome in _tell_progress(outcomes, len(points)):
                told.append(outcome)
    except KeyboardInterrupt:
        click.echo(f"\nStopped with {len(told)} of {len(points)} points done: the same command goes on.", err=True)
        sys.exit(130)
    _report_sweep(told, grid, out, retry)
    if not part:
        _keep_table(out, grid)
    sys.exit(any(outcome.error for outcome in told))


@cli.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def gather(folder: Path) -> None:
    """Write what a sweep has found so far into its folder, as table.csv and table.parquet."""
    _keep_table(folder, ())


def _by_name(option: str, words: Sequence[str]) -> list[tuple[str, str]]:
    """(name, text) of every NAME=TEXT; no name twice."""
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ParameterError(f"{option} {word}: expected NAME=VALUE, width=64 say.")
        if name in found:
            raise ParameterError(f"{option} {word}: {name} stands there twice.")
        found[name] = text
    return list(found.items())


def _read_value(name: str, text: str) -> Any:
    """A value from the command line, written as in YAML; nothing is the empty text."""
    try:
        return yaml.load(text, _Loader) if text.strip() else ""
    except Exception as error:  # yaml has its own; a thousand brackets end in Python's
        why = " ".join(str(error).split()) or type(error).__name__
        raise ParameterError(f"{name}={text} cannot be read as YAML ({why}).") from error


def _read_list(name: str, text: str) -> list[Any]:
    """Values with commas between; a:b stands for the whole numbers from a to b, without b, as in Python."""
    values = []
    for value in _read_value(name, f"[{text}]"):
        ends = re.fullmatch(r"(-?\d+):(-?\d+)", value) if isinstance(value, str) else None
        if ends and int(ends[1]) >= int(ends[2]):
            raise ParameterError(f"{name}={text}: {value} is no range: the second number must be the larger one.")
        values.extend(range(int(ends[1]), int(ends[2])) if ends else [value])
    return values


def _part(text: str) -> tuple[int, int]:
    """K and N of K/N."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ParameterError(f"--part {text}: expected K/N, K from 1 to N: 3/50 say.")
    return int(found[1]), int(found[2])


@contextmanager
def _executor(workers: int, scheduler: str | None) -> Iterator[Executor]:
    """Threads that wait for processes on this machine, or a dask scheduler that is running somewhere."""
    if scheduler is None:
        with ThreadPoolExecutor(workers) as executor:
            yield executor
        return
    try:
        import distributed
    except ImportError as error:
        raise ParameterError("--scheduler needs dask.distributed: pip install 'paramarket[cluster]'.") from error
    try:
        client = distributed.Client(scheduler, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ParameterError(f"--scheduler {scheduler}: no dask scheduler answers there ({error}).") from error
    with client:
        yield client.get_executor(pure=False, retries=3)


def _tell_progress(outcomes: Iterable, count: int) -> Iterator:
    """Pass outcomes on, and tell how many are done, failed and left, and for how long: a bar in a terminal, or lines.

    A line comes twice a minute at most: what a job on a cluster writes is read in a file.
    """
    start = said = time.monotonic()
    done = failed = ran = 0
    bar = None
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(total=count, unit="point", smoothing=0)
    for outcome in outcomes:
        done, failed, ran = done + 1, failed + bool(outcome.error), ran + outcome.ran
        if bar is not None:
            bar.initial += not outcome.ran  # what was there takes no time, and tells nothing of what is left
            bar.set_postfix(failed=failed, refresh=False)
            bar.update()
        elif time.monotonic() - said > 30:
            said = time.monotonic()
            minutes = (said - start) / max(ran, 1) * (count - done) / 60
            left = f"{count - done} left, about {minutes:.0f} min"
            click.echo(f"{done} of {count} done, {failed} failed, {left}", err=True)
        yield outcome
    if bar is not None:
        bar.close()


def _report_sweep(outcomes: Sequence, grid: Iterable[str], out: Path, retry: bool) -> None:
    """How many ran, were there, failed, and why the first of those did."""
    ran = [outcome for outcome in outcomes if outcome.ran and not outcome.error]
    there = [outcome for outcome in outcomes if not outcome.ran and not outcome.error]
    failed = [outcome for outcome in outcomes if outcome.error]
    click.echo(f"Points that ran: {len(ran)} · that were there: {len(there)} · that failed: {len(failed)} · in {out}")
    for outcome in failed[:3]:
        which = ", ".join(f"{name}={outcome.point.parameters[name]}" for name in grid)
        click.echo(f"FAILED {which or outcome.point.hash}: {outcome.error}", err=True)
    if len(failed) > 3:
        click.echo(f"… and {len(failed) - 3} more, see the column `error`.", err=True)
    if not retry and any(not outcome.ran for outcome in failed):
        click.echo("Some failed before and were left alone: --retry runs them again.", err=True)


def _keep_table(out: Path, grid: Collection[str]) -> None:
    """Write the table of a sweep, and say how to draw it over its grid."""
    from paramarket import runs

    table = runs.write_table(out)
    click.echo(f"Rows in {out / 'table.parquet'} and table.csv: {len(table)}")
    results = [name for name in table if f"{name}_low" in table and f"{name}_high" in table]
    if results and grid:
        varied = sorted(grid, key=lambda name: name == "seed")  # an axis is seldom a seed
        hue = f", hue={varied[1]!r}" if len(varied) > 1 and varied[1] != "seed" else ""
        click.echo("A figure, say, after `import pandas as pd, seaborn as sns`:")
        click.echo(f"    table = pd.read_parquet({str(out / 'table.parquet')!r})")
        click.echo(f"    sns.pointplot(table, x={varied[0]!r}, y={results[0]!r}{hue})")


@cli.command(context_settings={"ignore_unknown_options": True})
@click.option("--full", is_flag=True, help="As CI does: student copies and sweeps on a cluster run, too.")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
def test(full: bool, extra: Sequence[str]) -> None:
    """Lint, then all tests in parallel; what follows goes to pytest (say: -k stack).

    How much of the library they run: --cov=paramarket. That doubles their time.
    """
    more = ["-m", "not rare"] if full else []
    for call in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pytest", *more, *extra]):
        code = subprocess.run([sys.executable, "-m", *call], cwd=HOME, check=False).returncode
        if code:
            sys.exit(code)


@cli.command()
def browser() -> None:
    """Open JupyterLab and the pages in a real browser, on quick parameters; pictures are left in runs/browser.

    Where there is no Chromium or no Playwright, nothing is checked, and that is said.
    """
    missing = missing_for_browser()
    if missing:
        click.echo(f"Nothing was checked in a browser: {missing}.")
        return
    call = ["pytest", "-o", "python_files=browse_*.py", "-n", "2", "-rs", "tests/browser"]
    sys.exit(subprocess.run([sys.executable, "-m", *call], cwd=HOME, check=False).returncode)


def missing_for_browser() -> str:
    """What this machine lacks to drive a browser, and how to get it; nothing: ""."""
    from paramarket import runs

    if not importlib.util.find_spec("playwright"):
        return "no Playwright here, pip install playwright"
    if not runs.find_browser():
        return "no browser here, install Chromium or Chrome, or set BROWSER_PROGRAM to its path"
    return ""


@cli.command()
def bench() -> None:
    """Measure speed on a quiet machine and print a table of ratios."""
    call = [
        "pytest",
        "-o",
        "addopts=",
        "-o",
        "python_files=bench_*.py",
        "-o",
        "python_functions=bench_*",
        "-q",
        "tests/benchmarks",
    ]
    sys.exit(subprocess.run([sys.executable, "-m", *call], cwd=HOME, check=False).returncode)


@cli.command()
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=HOME / "docs/symmetries.md",
    help="File for the table.  [default: docs/symmetries.md]",
)
def symmetries(names: Sequence[str], out: Path) -> None:
    """Trace torchvision's models (default: the smallest of each family) and write what was found into a table."""
    from paramarket import align, base

    rows = []
    for row in align.families(names or align.FAMILIES):
        click.echo(row)
        rows.append(row)
    with base.atomic(out) as beside:
        beside.write_text(align.families_page(rows), encoding="utf-8")


@cli.command()
@click.argument("model_a", type=click.Path(path_type=Path))
@click.argument("model_b", type=click.Path(path_type=Path))
@click.option(
    "--data",
    "source",
    required=True,
    help="Labelled examples that neither network has seen: a folder with a folder of images a class, an .npz, or a "
    ".csv with a column `label`; or the name of a set (mnist-5k).",
)
@click.option(
    "--architecture",
    default="mlp",
    show_default=True,
    help="mlp, resnet18, or module:factory, which imports and RUNS that code: factory(number of classes) is the net.",
)
@click.option("--architecture-b", help="Of the second network, if it is another one.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("decision"),
    show_default=True,
    help="Folder for term_sheet.html and term_sheet.json.",
)
@click.option("--quick", is_flag=True, help="Only the five ways that take least time.")
@click.option("--value-per-point", type=float, help="What an accuracy point is worth, for 1,000 units.  [default: 20]")
@click.option("--units-per-year", type=float, help="Units that the networks judge.  [default: 2,500,000]")
@click.option("--hour-rate", type=float, help="Of an hour of work.  [default: 80]")
@click.option("--label-cost", type=float, help="Of one labelled example.  [default: 0.5]")
@click.option("--currency", help="Its sign or name.  [default: €]")
@click.option(
    "--max-class-loss",
    type=click.FloatRange(0, 100),
    default=1.0,
    show_default=True,
    help="Accuracy points that the classes which A does best may lose.",
)
@click.option(
    "--prior",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of these classes among the examples to come.  [default: as in the data]",
)
@click.option(
    "--contract-cost",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Of running a contract on predictions, per 100 examples, of which a right one earns 1.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every draw.")
def decide(
    model_a: Path,
    model_b: Path,
    source: str,
    architecture: str,
    architecture_b: str | None,
    out: Path,
    quick: bool,
    max_class_loss: float,
    prior: float | None,
    contract_cost: float,
    seed: int,
    **amounts: float | str | None,
) -> None:
    """Should A, who has MODEL_A, use MODEL_B: how, at what price, and how back out? Writes a term sheet.

    Both files are safetensors, as `stack.save` writes them. About half a minute for small networks.
    A is compared with training on these examples alone: if you still have what A learnt from, try both together first.
    """
    from paramarket import data, stack
    from paramarket import decide as room

    business = room.Business(**{name: value for name, value in amounts.items() if value is not None})
    images = data.load(source) if source in data.NAMES else data.from_files(source)
    if source not in data.NAMES:
        images = room.for_both(images, model_a, model_b)
    pair = room.load_pair(model_a, model_b, images, architecture=architecture, architecture_b=architecture_b)
    found = room.examine(
        pair,
        images,
        business,
        seed=seed,
        max_class_loss=max_class_loss,
        prior=prior,
        contract_cost=contract_cost,
        only=room.QUICK_WAYS if quick else None,
    )
    buyer = room.Party("A", str(model_a), stack.content_hash(pair.a))
    seller = room.Party("B", str(model_b), stack.content_hash(pair.b))
    page = room.write_term_sheet(out, room.draw_up(found, business, buyer=buyer, seller=seller))
    click.echo(room.ways_in_words(found))
    click.echo(f"\n{room.ANSWERS[found.recommendation]}. {found.reason}")
    click.echo(f"Open {page}")


@cli.command()
@click.option("--device", default="cuda", show_default=True, help="What is held against the CPU; cpu: a dry run.")
def gpu(device: str) -> None:
    """Check every path that takes a device against the CPU, and print how fast both are.

    Ends with 0 if all numbers agree, 1 if some differ, 3 if there is no such device, so that nothing was checked.
    """
    sys.exit(subprocess.run([sys.executable, "tests/gpu.py", device], cwd=HOME, check=False).returncode)


@cli.command()
@click.option("--pairs", type=click.IntRange(40), default=1000, show_default=True, help="Pairs to simulate.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every draw.")
@click.option("--fit", is_flag=True, help="Fit the forecast on these pairs, and keep it, instead of judging by them.")
@click.option("--keep", is_flag=True, help="Keep the table: it is what notebook 09 and RESULTS.md tell.")
def coverage(pairs: int, seed: int, fit: bool, keep: bool) -> None:
    """Say how often our intervals hold the truth, over simulated pairs of plants whose true gains are known.

    A thousand pairs take one to two minutes.
    """
    from paramarket import decide

    known = None if fit else decide.read_forecast()
    if known is not None and known.seed == seed:
        raise ParameterError(f"--seed {seed} drew the pairs that the forecast was fitted on: judge it by others.")
    click.echo(f"Training {pairs} pairs of plants, then tuning {pairs} times {len(decide.WAYS)} ways …")
    simulated = decide.simulate_pairs(pairs, seed=seed)
    offers = decide.tune_simulated(simulated, seed=seed)
    if fit:
        decide.write_forecast(decide.fit_on_simulated(simulated, offers, seed=seed))
        click.echo(f"The forecast is fitted on {pairs} pairs: judge it by pairs of another seed.")
        return
    table = decide.coverage(simulated, offers)
    click.echo("\n".join(decide.coverage_lines(table)))
    if keep:
        decide.write_coverage(table, seed)


@cli.command()
@click.option("--classes", type=click.IntRange(2), default=200, show_default=True, help="Classes to simulate.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every draw.")
@click.option("--keep", is_flag=True, help="Keep the table: it is what notebook 07 tells.")
def classes(classes: int, seed: int, keep: bool) -> None:
    """Say whether handing in one's best network wins the class game, over simulated classes.

    Two hundred classes take three to four minutes.
    """
    from paramarket import market

    click.echo(f"Training {classes} classes, in each of which one student plays {len(market.STRATEGIES)} strategies …")
    table = market.play_classes(classes, seed=seed)
    for row in market.class_game_summary(table).itertuples():
        more = f"{row.honest_more:,.0f} euros ({row.honest_more_low:,.0f} to {row.honest_more_high:,.0f})"
        counts = f"{row.honest_better} classes, less in {row.other_better}, the same in {row.equal}"
        versus = f"{row.strategy!r}, the others {row.others!r}"
        click.echo(f"The honest wins {more} more than {versus}: more in {counts}; turned away in {row.turned_away}.")
    if keep:
        market.write_class_game(table, seed)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=HOME / "mine",
    help="Folder for your copies and your work.  [default: mine]",
)
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
def lab(folder: Path, extra: Sequence[str]) -> None:
    """Open JupyterLab on your own copies of the notebooks: this machine only, with its token.

    Copies that you have edited are never replaced. What follows goes to JupyterLab (say: --no-browser).
    """
    _bring_up_to_date(folder)
    click.echo(f"Your work is kept in {folder.resolve()}; the notebooks of the project stay as they are.")
    click.echo("JupyterLab ends with Ctrl-C, twice.")
    call = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={folder.resolve()}",
        "--ServerApp.log_level=WARN",
        *extra,
    ]
    settings = [str(HOME / ".jupyter"), os.environ.get("JUPYTER_CONFIG_PATH", "")]  # neither news nor nbgrader's menus
    environment = {**os.environ, "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, settings))}
    server = subprocess.Popen(call, env=environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's: it asks first, and ends its kernels
    sys.exit(server.wait())


_SAID_OF_COPIES = {
    "renewed": "{copy}: the notebook has changed, you had not edited your copy: this is the new one.",
    "outdated": "{copy}: the notebook has changed, and so have you. Rename yours and start again to get the new one.",
    "unreadable": "{copy} is no readable notebook. Move it away and start again to get a fresh copy.",
}


def _bring_up_to_date(folder: Path) -> None:
    """Copies of all notebooks into a folder, but never over what somebody has edited; a line for what is special."""
    from paramarket import teach

    for path in _chosen_or_all([]):
        copy = folder / path.name
        try:
            state = teach.own_copy(path, copy)
        except OSError as error:
            why = error.strerror or error
            raise ParameterError(f"{copy} cannot be written ({why}): name another folder, --folder.") from error
        if state in _SAID_OF_COPIES:
            click.echo(_SAID_OF_COPIES[state].format(copy=copy))


@cli.command()
@some_notebooks
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("class"),
    show_default=True,
    help="Folder for the copies.",
)
def student(chosen: Sequence[Path], out: Path) -> None:
    """Write student copies: the notebooks (default: all) with their solutions taken out."""
    from paramarket import teach

    for path in _chosen_or_all(chosen):
        teach.student_copy(path, out / path.name)
        click.echo(out / path.name)


@cli.command()
def check() -> None:
    """Say whether this machine is ready for class, and what to do if it is not. About 20 seconds.

    Ends with 0 if all is there, else with 1. If this command itself does not start, run lib/paramarket/teach/laptop.py.
    """
    sys.exit(subprocess.run([sys.executable, HOME / "lib/paramarket/teach/laptop.py"], check=False).returncode)


@cli.command()
@some_notebooks
def strip(chosen: Sequence[Path]) -> None:
    """Take outputs and what else a run leaves out of notebooks (default: all), before they are committed."""
    from paramarket import runs

    for path in _chosen_or_all(chosen):
        runs.strip(path)


@cli.command()
def results() -> None:
    """Write RESULTS.md from the latest full run: every answer, and every claim with its number and verdict."""
    from paramarket import base, runs

    with base.atomic(HOME / "RESULTS.md") as beside:
        beside.write_text(runs.results_table(_latest_full_run()), encoding="utf-8")


@cli.command()
def figures() -> None:
    """Write the README's pictures into docs/, from the latest full run; that of the term sheet where Chromium is."""
    from paramarket import base, runs

    pictures = {path.stem: runs.small_figure(path) for path in _latest_full_run() if path.stem in SHOWN}
    browser = runs.find_browser()
    if browser:
        pictures["term_sheet"] = runs.small_term_sheet(_latest_full_run()[-1], browser)
    else:
        click.echo("docs/term_sheet.png stays as it is: no Chromium here.", err=True)
    for name, picture in pictures.items():
        with base.atomic(HOME / f"docs/{name}.png") as beside:
            beside.write_bytes(picture)


@cli.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=HOME / "runs/site",
    help="Folder for the site.  [default: runs/site]",
)
def site(out: Path) -> None:
    """Put the pages of the latest full run into a folder that can be published as it is."""
    pages = [path.with_suffix(".html") for path in _latest_full_run()]
    pages.append(LATEST / "index.html")
    out = out.resolve()
    if out.exists() and not all(_is_our_page(path) for path in out.iterdir()):
        raise ParameterError(
            f"--out {out} holds something else than our pages; it would be replaced. Name a new folder."
        )
    fresh = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
    fresh.mkdir(parents=True)
    try:
        for path in pages:
            shutil.copyfile(path, fresh / path.name)
        _replace_folder(out, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    click.echo(f"Open {out / 'index.html'}")


def _is_our_page(path: Path) -> bool:
    from paramarket import runs

    return path.is_file() and path.suffix == ".html" and runs.GENERATOR in path.read_text(encoding="utf-8")


def _latest_full_run() -> list[Path]:
    """The executed notebooks in runs/latest; an error unless they are all there, each run to its end."""
    executed = sorted(LATEST.glob("[0-9]*.ipynb"))
    if [path.name for path in executed] != [path.name for path in _chosen_or_all([])]:
        raise ParameterError("runs/latest does not hold a full run: run `python -m paramarket notebooks` first.")
    return executed


if __name__ == "__main__":
    cli(prog_name="python -m paramarket")
