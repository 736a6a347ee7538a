"""The example's files import each other by their own names, as they do in the folder that a site gets."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "nodes" / "heart"))
