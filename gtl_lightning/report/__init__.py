"""The report: what the flat rows of results say, as figures, tables, Markdown and one self-contained HTML page."""

from gtl_lightning.report.answer import DEMO
from gtl_lightning.report.differences import paired
from gtl_lightning.report.page import Report, write_report
from gtl_lightning.report.tables import summarise

__all__ = ["DEMO", "Report", "paired", "summarise", "write_report"]
