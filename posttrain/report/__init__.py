"""The reports of run folders: tables, a page with plots, a model card. See each module.

Only what is light is imported here: plots and pages need libraries that take seconds to load.
"""

from posttrain.report.tables import summary_table, table
from posttrain.run.reading import read_run, read_runs

__all__ = [
    "read_run",
    "read_runs",
    "summary_table",
    "table",
]
