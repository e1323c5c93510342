"""What a run tells its user: the before/after table, plots and a page. See each module.

Only the table is imported here: plots and pages need libraries that take seconds to load.
"""

from scripts.common.report import measures
from scripts.common.report.ending import already_finished, finish
from scripts.common.report.measures import LABELS
from scripts.common.report.tables import (
    comparison_table,
    read_run,
    summary_table,
    table,
    table_rows,
)

__all__ = [
    "LABELS",
    "already_finished",
    "comparison_table",
    "finish",
    "measures",
    "read_run",
    "summary_table",
    "table",
    "table_rows",
]
