"""`stairdata build`: finds the kind among the arguments, wherever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from stairdata.cli.build import batching, evaluations, pairs, prompts, responses, structured_cot, trees

if TYPE_CHECKING:
    from collections.abc import Iterator


class BuildGroup(TyperGroup):
    """Takes underscores for dashes in a kind's name, and options before the kind as if they came after it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # of a click that typer carries inside
        """Put the kind first."""
        return list(super().parse_args(ctx, self.kind_first(args)))

    def kind_first(self, args: list[str]) -> list[str]:
        """Return the arguments with the kind, spelt with dashes, in front of all others.

        Raises:
            UsageError: there is no such kind.
        """
        args = list(batching.with_batch_action(args))
        position = next(self._positions(args), None)
        if position is None:
            return args
        kind = args[position].replace("_", "-")
        self._check_kind(kind, args[position])
        return [kind, *args[:position], *args[position + 1 :]]

    def _positions(self, args: list[str]) -> Iterator[int]:
        """Yield where arguments are that are neither options nor their values."""
        takes_value = self._options_with_value()
        is_value = False
        for index, argument in enumerate(args):
            if is_value:
                is_value = False
            elif argument.startswith("-") and argument != "-":
                is_value = argument in takes_value
            else:
                yield index

    def _options_with_value(self) -> set[str]:
        parameters = [each for command in self.commands.values() for each in command.params]
        return {
            name
            for parameter in parameters
            if parameter.param_type_name == "option" and not getattr(parameter, "is_flag", False)
            for name in parameter.opts
        }

    def _check_kind(self, kind: str, given: str) -> None:
        from stairdata_schemas.errors import UsageError, quote, suggest

        if kind not in self.commands:
            raise UsageError(f"can't build {quote(given)}; {suggest(given, tuple(self.commands))}")


app = typer.Typer(cls=BuildGroup, help="Build an artifact; a finished one of the same recipe and inputs is returned.")
app.command("prompts")(prompts.build)
app.command("structured-cot")(structured_cot.build)
app.command("trees")(trees.build)
app.command("preference-pairs")(pairs.build_preference_pairs)
app.command("prm-pairs")(pairs.build_prm_pairs)
app.command("responses")(responses.build)
app.command("evaluations")(evaluations.build)
