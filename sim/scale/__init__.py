"""A thousand virtual sites on one machine: `python -m sim EXPERIMENT.toml --peers 1000`."""
