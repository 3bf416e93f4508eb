"""`python -m rhizome_launcher` is the `rhizome` command."""

from rhizome_launcher.cli import app

app()
