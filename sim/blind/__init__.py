"""Blind rounds by the ten thousand: the real node's part in them on a ledger that is a model of the contracts."""
