import sys
from pathlib import Path

# The training scripts are run from their folder, as `python models/train_tiny_chat.py` does: they are no package.
sys.path.append(str(Path(__file__).resolve().parents[2] / "models"))
