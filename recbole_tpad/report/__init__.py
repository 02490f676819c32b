"""The HTML report; reads a results file and nothing else."""

from recbole_tpad.report.writer import write_report

__all__ = ["write_report"]
