"""`python -m vl2v`."""

from vl2v.cli import main

main()
