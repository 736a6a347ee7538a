"""Hospitals train one model together, with no server in the middle and a ledger that proves what happened."""
