"""Runs the model over the scheduler's batches."""

from rhizome_engine.runner.memory import KVBudgetError
from rhizome_engine.runner.model_runner import ModelRunner

__all__ = ["KVBudgetError", "ModelRunner"]
