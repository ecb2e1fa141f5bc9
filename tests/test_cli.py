"""The command line."""

from typer.testing import CliRunner

import rmsnorm
from rmsnorm.cli import app


def test_ops_shows_every_operator_with_its_formula_and_source():
    result = CliRunner().invoke(app, ["ops"])
    assert result.exit_code == 0
    shown = " ".join(result.output.split())
    for op in rmsnorm.operators():
        assert op["name"] in shown
        assert all(f"{tensor['name']}" in shown for tensor in op["inputs"] + op["outputs"])


def test_the_operator_table_and_pytorchs_schemas_agree():
    import torch

    for op in rmsnorm.operators():
        schema = getattr(torch.ops.rmsnorm, op["name"]).default._schema
        arguments = [argument.name for argument in schema.arguments]
        assert arguments == [part["name"] for part in op["inputs"] + op["attributes"]]
        assert [value.name for value in schema.returns] == [t["name"] for t in op["outputs"]]


def test_without_arguments_the_commands_are_listed():
    result = CliRunner().invoke(app, [])
    assert all(command in result.output for command in ("demo", "bench", "ops"))
