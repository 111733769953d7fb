"""The directive ``command-reference``: usage, arguments and options of every command."""

from collections.abc import Iterator
from typing import Any

import click
import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from scdl.cli.app import COMMANDS, app_for
from scdl.cli.documented import command as documented


def all_commands() -> Iterator[tuple[str, click.Context]]:
    """Every command and subcommand, by what is typed to call it."""
    for name in ("", *COMMANDS):
        app = typer.main.get_command(app_for([name] if name else ()))
        context = click.Context(app, info_name="scdl")
        if name:
            command = app.commands[name]
            yield f"scdl {name}", click.Context(command, info_name=name, parent=context)
        else:
            yield "scdl", context
    name = "convert_h5ad_to_scdl"
    yield name, click.Context(typer.main.get_command(documented), info_name=name)


def text(plain: str) -> list[nodes.Node]:
    """Text in which backticks mark code."""
    parts = enumerate(plain.split("`"))
    return [nodes.literal(text=part) if i % 2 else nodes.Text(part) for i, part in parts]


def paragraphs(plain: str) -> Iterator[nodes.Node]:
    r"""Paragraphs of a help text; those after ``\b`` keep their lines."""
    for part in plain.strip().split("\n\n"):
        if part.startswith("\b"):
            yield nodes.literal_block(text=part.lstrip("\b\n"), language="text")
        else:
            yield nodes.paragraph("", "", *text(part))


class CommandReference(SphinxDirective):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        """Make the sections, from what ``--help`` shows."""
        return [self.command(name, context) for name, context in all_commands()]

    def command(self, name: str, context: click.Context) -> nodes.Node:
        """One command."""
        command = context.command
        section = nodes.section(ids=[nodes.make_id(name)], names=[name])
        section += nodes.title("", "", nodes.literal(text=name))
        section += list(paragraphs(command.help or ""))
        usage = context.get_usage().removeprefix("Usage: ")
        section += nodes.literal_block(text=usage, language="text")
        for kind in ("argument", "option"):
            found = [p for p in command.get_params(context) if p.param_type_name == kind]
            records = [record for p in found if (record := p.get_help_record(context))]
            if records:
                section += nodes.rubric(text=f"{kind.capitalize()}s")
                section += self.definitions(records)
        section += list(paragraphs(command.epilog or ""))
        return section

    def definitions(self, records: list[tuple[str, str]]) -> nodes.Node:
        """Each option, and what it does."""
        listed = nodes.definition_list()
        for names, what in records:
            term = nodes.term("", "", nodes.literal(text=names))
            meaning = nodes.definition("", nodes.paragraph("", "", *text(what)))
            listed += nodes.definition_list_item("", term, meaning)
        return listed


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("command-reference", CommandReference)
    return {"parallel_read_safe": True}
