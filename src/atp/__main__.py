"""`python -m atp` is `atp`."""

from atp.cli import main

main()
