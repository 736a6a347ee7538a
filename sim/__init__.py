"""A whole swarm on one machine: the real node under a virtual clock, network and disk. Stands on `swarm.node`."""

import logging

# Who simulates reads the story; `python -m sim --log` shows what the nodes log.
logging.getLogger("swarm").addHandler(logging.NullHandler())
