"""The card and the page of a run folder, written again from what the folder holds."""

from pathlib import Path

from posttrain.base.files import write_text
from posttrain.base.paths import shown
from posttrain.run.folder import RunFolder


def redraw(run: Path) -> Path | None:
    """Write README.md once the run is trained, plots/*.png and report.html; returns the page.

    A run is worth more than its pictures: a fault of a drawing library, or of what it is given, is
    one printed line, and the result None.
    """
    try:
        from posttrain.report.model_card import render_model_card
        from posttrain.report.page import write_report

        if RunFolder(run).trained and (run / "adapter").is_dir():
            write_text(run / "README.md", render_model_card(run))
        return write_report(run)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        print(f"note: {shown(run / 'report.html')} not drawn: {type(error).__name__}: {text}")
        return None
