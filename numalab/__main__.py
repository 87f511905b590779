"""`python -m numalab` is the command `numalab`."""

from numalab.cli.main import main

main()
