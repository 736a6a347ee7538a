"""Updates that nobody reads: masked vectors whose sum is the merge, and the secrets that take the masks off."""
