"""Re-derives everything from the ledger and the bytes: for an auditor who was not there."""

from swarm.audit.audit import Report, audit

__all__ = ["Report", "audit"]
