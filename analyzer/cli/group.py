"""The group `i2am` and where its subcommands come from: the analyzer's own, and those that other parts announce."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import click

from .commands.diagnosis import diagnose_command, diff_command, judge_command
from .commands.evaluation import evaluate_command, imacs_command
from .commands.figure import figure_command
from .commands.heads import concepts_command, heads_command, select_command, selective_command
from .commands.maps import map_command, words_command
from .commands.methods import compare_command, recipes_command
from .commands.trace import copy_command, info_command, pack_command, pictures_command, report_command, unpack_command, verify_command
from .commands.view import view_command
from .failures import NobodyReads, missing

COMMANDS: Final = (
    info_command, verify_command, view_command, map_command, imacs_command, evaluate_command, report_command, words_command,
    recipes_command, compare_command, figure_command, diagnose_command, judge_command, diff_command, concepts_command, heads_command,
    select_command, selective_command, pictures_command,
    pack_command, unpack_command, copy_command,
)  # fmt: skip
"""The analyzer's own, in the order of --help."""
# What lives outside the analyzer says its one line here, so that --help need not load torch to ask.
SUMMARIES: Final = {
    "record": "Run a diffusers pipeline described by a TOML file and record its attention.",
    "demo": "Record and analyse the small model that comes with i2am.",
    "faithfulness": "Repeat a recorded run with each cell of the reference left out, and keep what that changes.",
    "objects": "Make a manifest of annotated pictures: an object's box as mask, the object as reference.",
    "status": "Which recordings of a manifest are complete, partial, missing or broken.",
    "seal": "Make a complete, smaller trace of what an unfinished recording committed.",
}
EPILOG: Final = """\b
Examples:
  i2am demo -o out
  i2am info run.zarr
  i2am view run.zarr
  i2am map run.zarr --r2g -o r2g.png
  i2am map run.zarr --at 12,20 -o patch.png
  i2am imacs run.zarr --json"""


class Commands(click.Group):
    """Own subcommands, and those that other parts of i2am announce under the entry-point group `i2am.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all subcommands, nothing loaded."""
        return [*self.commands, *(name for name in announced() if name not in self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand, loaded when it is asked for.

        Raises   MissingExtra if what it needs is not installed
        """
        if cmd_name in self.commands or (entry := announced().get(cmd_name)) is None:
            return self.commands.get(cmd_name)
        try:
            command = entry.load()
        except ImportError as error:
            raise missing(error, f"`i2am {cmd_name}`") or error from error
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in --help, from summaries alone."""
        own = {name: command.get_short_help_str(100) for name, command in self.commands.items()}
        rows = [(name, own.get(name) or SUMMARIES.get(name, "")) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; click would turn a broken pipe into an exit that looks like any other."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise NobodyReads from error


def announced() -> dict[str, EntryPoint]:
    """Subcommands outside the analyzer, by name."""
    return {entry.name: entry for entry in sorted(entry_points(group="i2am.commands"))}


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EPILOG,
    no_args_is_help=True,
)
@click.version_option(package_name="i2am", message="i2am %(version)s")
def i2am() -> None:
    """Ask a recorded diffusion run where its picture came from: R2G, G2R, SRAM maps and IMACS, without the model."""


for command in COMMANDS:
    i2am.add_command(command)
