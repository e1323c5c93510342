"""What a run tells its user: the before/after table, plots and a page. See each module.

Only the table is imported here: plots and pages need libraries that take seconds to load.
"""

from posttrain.report.tables import comparison_table, summary_table, table, table_rows
from posttrain.run import measures
from posttrain.run.measures import LABELS
from posttrain.run.record import read_run, read_runs

__all__ = [
    "LABELS",
    "comparison_table",
    "measures",
    "read_run",
    "read_runs",
    "summary_table",
    "table",
    "table_rows",
]
