"""How updates become one checkpoint: whole-number arithmetic on canonical files, the same bytes everywhere."""

from swarm.merge.compare import Difference, first_difference
from swarm.merge.files import BadUpdate, Merged, check_update, merge, merge_chunks, merge_files, update_size
from swarm.merge.report import UpdateReport, standing_out
from swarm.merge.schema import Schema, Tensor, check_same, write_file
from swarm.merge.server import check_genesis

__all__ = [
    "BadUpdate",
    "Difference",
    "Merged",
    "Schema",
    "Tensor",
    "UpdateReport",
    "check_genesis",
    "check_same",
    "check_update",
    "first_difference",
    "merge",
    "merge_chunks",
    "merge_files",
    "standing_out",
    "update_size",
    "write_file",
]
