"""Objects by digest on this machine's disk: bounded, checked when first read, whole or not there at all.

    objects/ab/cdef…          the bytes            objects/ab/cdef….leaves   their size and Merkle leaves
    tmp/abcdef….part .have    what is on its way   damaged/                  what no longer matches its name
    tmp/7.spare               room to write over   pins.json                 what must not be evicted, and why

What an object means is the caller's business. A store belongs to one process; its threads may share it.
"""

from swarm.store.objects import Store
from swarm.store.partial import Partial
from swarm.store.places import object_place
from swarm.store.soundness import DAMAGED_KEPT

__all__ = ["DAMAGED_KEPT", "Partial", "Store", "object_place"]
