"""Make the checkpoints: ``python -m poolexport_models.train [--only NAME]``.

Every run on one machine gives the same bytes: one thread, one seed, and no random state that outlives the run.
Other processors round differently, so elsewhere the last digits, and with them the checksums, may change.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import torch
from safetensors.torch import save
from torch import Tensor, nn

from poolexport.catalog import method_of
from poolexport.errors import PoolExportError
from poolexport_models.recipes import CHECKPOINTS, METADATA_KEY, SUMS, Recipe, metadata, recipe, recipes
from poolexport_models.tasks import answers_of

README = Path(__file__).parents[1] / "README.md"
MARKERS = ("<!-- checkpoints: written by python -m poolexport_models.train -->", "<!-- end of checkpoints -->")


def train(plan: Recipe) -> nn.Module:
    """A network trained by a recipe, in eval mode; the same recipe gives the same weights.

    Example:
        >>> from dataclasses import replace
        >>> model = train(replace(recipe("softpool"), epochs=0))
        >>> model.training
        False
    """
    task = plan.task
    model = plan.build().train()
    with _one_thread(), torch.random.fork_rng(devices=()):
        torch.manual_seed(plan.seed)
        steps = plan.epochs * -(-task.examples // plan.batch)
        optimiser = torch.optim.AdamW(model.parameters(), lr=plan.rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, plan.rate, total_steps=max(steps, 1), pct_start=0.2)
        for epoch in range(plan.epochs):
            if epoch == max(0, plan.epochs - plan.settled):
                _settle(model)
            for inputs, expected in task.batches(plan.batch):
                loss = task.loss(answers_of(model, inputs), expected)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return model.eval()


def _settle(model: nn.Module) -> None:
    """Put the layers that are random in training under their inference rule; the others go on training."""
    for module in model.modules():
        method = method_of(module)
        if method is not None and method.random:
            module.eval()


def predictions(model: nn.Module, *inputs: Tensor) -> Tensor:
    """The class that a model finds likeliest for every image, or for every region."""
    with torch.no_grad():
        return answers_of(model, inputs)[0].argmax(1)


def write(plan: Recipe, model: nn.Module, folder: Path = CHECKPOINTS) -> float:
    """Write a checkpoint with its test accuracy, and return that.

    ``write_index`` must follow once all checkpoints are written.
    """
    inputs, labels = plan.task.test()
    with _one_thread():
        correct = int((predictions(model, *inputs) == labels).sum())
    images = len(labels)
    about = {
        "method": plan.method,
        "network": plan.network.__name__,
        "hole": plan.hole,
        "options": dict(plan.options),
        "seed": plan.seed,
        "epochs": plan.epochs,
        "settled": plan.settled,
        "batch": plan.batch,
        "rate": plan.rate,
        **({"sizes": plan.sizes} if plan.sizes else {}),
        "correct": correct,
        "images": images,
        "test_accuracy": round(correct / images, 6),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__.partition("+")[0],
    }
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    content = save(state, {METADATA_KEY: json.dumps(about, sort_keys=True)})
    (folder / plan.file).write_bytes(content)
    return correct / images


def write_index(folder: Path = CHECKPOINTS, readme: Path | None = README) -> None:
    """Write the checksums of all checkpoints in a folder, and their table into the README where there is one."""
    files = sorted(folder.glob("*.safetensors"))
    lines = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    (folder / SUMS).write_text("".join(lines))
    if readme is not None and readme.is_file():
        readme.write_text(with_table(readme.read_text(), table(folder)))


def table(folder: Path = CHECKPOINTS) -> str:
    """The checkpoints of a folder as a Markdown table."""
    rows = [
        "| method | network | hole | layer options | parameters | kB | test accuracy |",
        "|---|---|---|---|--:|--:|--:|",
    ]
    for file in sorted(folder.glob("*.safetensors")):
        about = metadata(file.stem, folder)
        rows.append(
            f"| {about['method']} | {about['network']} | {about['hole']} | {_spelled(about['options'])} "
            f"| {about['parameters']:,} | {file.stat().st_size / 1000:.0f} "
            f"| {about['test_accuracy']:.1%} ({about['correct']} of {about['images']}) |"
        )
    return "\n".join(rows)


def with_table(text: str, table: str) -> str:
    """A README with its table of checkpoints replaced."""
    before, _, rest = text.partition(MARKERS[0])
    _, found, after = rest.partition(MARKERS[1])
    if not found:
        raise ValueError(f"the README must hold the lines {MARKERS[0]} and {MARKERS[1]}")
    return f"{before}{MARKERS[0]}\n{table}\n{MARKERS[1]}{after}"


def _spelled(options: Mapping[str, object]) -> str:
    return ", ".join(f"`{name}={value!r}`" for name, value in options.items()) or "its defaults"


@contextmanager
def _one_thread() -> Iterator[None]:
    """More threads would add the same numbers in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="NAME", help="Train this method; may be given several times.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=CHECKPOINTS, show_default=False)
def main(only: Sequence[str], output: Path) -> None:
    try:
        _train_all([recipe(name) for name in dict.fromkeys(only or recipes())], output)
    except PoolExportError as error:
        click.echo(f"error: {error}", err=True)
        click.get_current_context().exit(error.exit_code)


def _train_all(plans: Sequence[Recipe], output: Path) -> None:
    for plan in plans:
        started = time.perf_counter()
        accuracy = write(plan, train(plan), output)
        click.echo(f"{plan.method:24} {plan.network.__name__:12} {accuracy:.2%}  {time.perf_counter() - started:.1f} s")
    write_index(output, README if output.resolve() == CHECKPOINTS.resolve() else None)


if __name__ == "__main__":
    main()
