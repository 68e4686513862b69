"""A recipe gives the same network every time, and leaves the rest of the process alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from poolexport_models import load, recipe
from poolexport_models.data import digits
from poolexport_models.recipes import CHECKPOINTS, checksums, metadata
from poolexport_models.train import main, train, write, write_index


@pytest.mark.parametrize("name", ["max", "mixed"])
def test_a_recipe_gives_the_same_bytes_twice(name: str, tmp_path: Path) -> None:
    plan = dataclasses.replace(recipe(name), epochs=2, settled=1)
    contents = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        write(plan, train(plan), tmp_path)
        contents.append((tmp_path / plan.file).read_bytes())
    assert contents[0] == contents[1]


def test_another_seed_gives_other_weights() -> None:
    plans = [dataclasses.replace(recipe("max"), epochs=0, seed=seed) for seed in (0, 1)]
    first, second = (train(plan).classifier.weight for plan in plans)
    assert not torch.equal(first, second)


def test_training_leaves_random_state_and_threads_alone() -> None:
    before = torch.get_rng_state(), torch.get_num_threads()
    model = train(dataclasses.replace(recipe("mixed"), epochs=1, settled=0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert not any(module.training for module in model.modules())


def test_a_random_layer_spends_the_last_epochs_under_its_inference_rule() -> None:
    plan = dataclasses.replace(recipe("mixed"), epochs=3, settled=2)
    model = train(plan)
    steps = -(-len(digits().train_labels) // plan.batch)
    assert (model.pool1.max_count + model.pool1.average_count == steps).all()


def test_training_teaches() -> None:
    data = digits()
    accuracies = []
    for epochs in (0, 4):
        model = train(dataclasses.replace(recipe("max"), epochs=epochs))
        with torch.no_grad():
            accuracies.append((model(data.test_images).argmax(1) == data.test_labels).float().mean())
    assert accuracies[0] < 0.4
    assert accuracies[1] > 0.8


def test_what_is_written_can_be_loaded_and_says_how_it_was_made(tmp_path: Path) -> None:
    plan = dataclasses.replace(recipe("max"), epochs=1)
    accuracy = write(plan, train(plan), tmp_path)
    write_index(tmp_path, readme=None)
    load("max", tmp_path)
    assert metadata("max", tmp_path)["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert metadata("max", tmp_path)["epochs"] == 1


def test_the_program_trains_one_method_and_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = dataclasses.replace(recipe("max"), epochs=1)
    monkeypatch.setattr("poolexport_models.train.recipe", lambda name: short)
    before = {file.name: file.read_bytes() for file in CHECKPOINTS.iterdir()}
    result = CliRunner().invoke(main, ["--only", "max", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "max" in result.output
    assert set(checksums(tmp_path)) == {"max.safetensors"}
    assert before == {file.name: file.read_bytes() for file in CHECKPOINTS.iterdir()}


def test_the_program_answers_an_unknown_method_in_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--only", "max", "--only", "nopool", "--output", str(tmp_path)])
    assert result.exit_code == 2
    assert result.output.startswith("error: no network demonstrates 'nopool'; there is one for ")
    assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())
