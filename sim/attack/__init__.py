"""What dishonest sites do to a model: every merge rule against every attack, on real patients' data."""

import sys
from pathlib import Path

# The heart example's files import each other by their own names, as they do in the folder that a site gets.
sys.path.insert(0, str(Path(__file__).parents[2] / "nodes" / "heart"))
