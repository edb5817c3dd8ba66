"""`calogen completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_CALOGEN_COMPLETE"
_FILES = {"bash": "~/.bashrc", "zsh": "~/.zshrc", "fish": "~/.config/fish/completions/calogen.fish"}


@click.command()
@click.argument("shell", type=click.Choice(list(_FILES)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options and names with the Tab key.

    \b
    eval "$(calogen completion bash)"                # in ~/.bashrc; with zsh in ~/.zshrc
    calogen completion fish > ~/.config/fish/completions/calogen.fish
    """
    found = get_completion_class(shell)
    if found is None:  # of a click that does not know it
        raise click.UsageError(f"this version of click knows no completion for {shell}")
    click.echo(found(context.find_root().command, {}, "calogen", VARIABLE).source())
