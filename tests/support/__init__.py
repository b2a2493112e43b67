"""What several tests share. Importing a module of it imports neither Ray nor vLLM."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""
