"""What was agreed: blocks, their execution, the pool, JSON-RPC, and the contracts as typed Python."""
