"""Re-derives everything from the ledger and the bytes: for an auditor who was not there."""

from swarm.audit.audit import Report, audit
from swarm.audit.light import LightReport, follow

__all__ = ["LightReport", "Report", "audit", "follow"]
