"""Nonsense for everything that a stranger or a dishonest member can reach. `python -m tests.fuzz --help`."""
