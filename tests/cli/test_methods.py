"""``poolexport methods``."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from cli.conftest import Run
from poolexport.catalog import methods as catalogue
from poolexport.cli import main


def test_the_table_has_every_method_and_layer(run: Run):
    result = run("methods")
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.stdout.splitlines() if line[:1].strip()]
    assert [name for name in listed if name in catalogue()] == sorted(catalogue())
    for method in catalogue().values():
        for layer in (method.layers[0], *method.variants):
            assert layer.__name__ in result.stdout


def test_json_has_every_field_of_every_card(run: Run):
    cards = {card["name"]: card for card in json.loads(run("methods", "--json").stdout)["methods"]}
    assert sorted(cards) == sorted(catalogue())
    for name, method in catalogue().items():
        card = cards[name]
        inner = {"reference", "companions", "companion_axes", "illustration"}
        assert set(type(method).__dataclass_fields__) - inner <= set(card)
        assert [layer["dims"] for layer in card["layers"]] == list(method.ranks)
        assert card["paper"]["link"] == method.paper.link
        assert len(card["cases"]) == len(method.cases)
        assert [limit["error"] for limit in card["limits"]] == [limit.error.__name__ for limit in method.limits]


def test_a_name_picks_a_method(run: Run):
    (card,) = json.loads(run("methods", "softpool", "--json").stdout)["methods"]
    assert card["name"] == "softpool"


def test_a_misspelled_name_is_told_the_right_one(run: Run):
    result = run("methods", "sofpool")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: there is no method 'sofpool'; did you mean softpool")


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120, 140, 200])
def test_a_narrow_terminal_gets_fewer_columns_and_no_crumbs(columns: int):
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(main, ["methods"])
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["method", "layers"]
    assert max(map(len, lines)) <= columns
    assert len(lines) <= 2 + 3 * len(catalogue())
    assert "LearnedMixedPool" in result.stdout
    assert ("paper" in lines[0]) == (columns >= 140)
