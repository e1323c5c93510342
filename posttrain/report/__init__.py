"""What a run tells its user: the before/after table, plots and a page. See each module.

Only the table is imported here: plots and pages need libraries that take seconds to load.
"""

from posttrain.report import measures
from posttrain.report.measures import LABELS
from posttrain.report.next_steps import already_finished, finish
from posttrain.report.record import read_run, read_runs
from posttrain.report.tables import comparison_table, summary_table, table, table_rows

__all__ = [
    "LABELS",
    "already_finished",
    "comparison_table",
    "finish",
    "measures",
    "read_run",
    "read_runs",
    "summary_table",
    "table",
    "table_rows",
]
