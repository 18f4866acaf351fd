"""`python -m r1lite` is the command `r1lite`."""

from r1lite.cli import app

app()
