"""`python -m swarm`: the command line."""

from swarm.cli import main

if __name__ == "__main__":
    main()
