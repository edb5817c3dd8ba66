"""`python -m calogen.cli`."""

from . import main

main()
