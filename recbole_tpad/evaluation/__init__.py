"""Suites of runs over models, item embeddings and seeds, and their results file."""

from recbole_tpad.evaluation.grid import evaluate, plan
from recbole_tpad.evaluation.suite import Suite, read_suite
from recbole_tpad.evaluation.table import markdown_table, plain_table

__all__ = ["Suite", "evaluate", "markdown_table", "plain_table", "plan", "read_suite"]
