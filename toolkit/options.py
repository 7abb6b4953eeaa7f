"""Options that more than one command has."""

from __future__ import annotations

import click

token_host_option = click.option(
    "--token-host",
    metavar="HOST",
    envvar="EDGEKIT_TOKEN_HOST",
    help="Send the token to this host too, when HF_ENDPOINT names it.  [env: EDGEKIT_TOKEN_HOST]",
)
