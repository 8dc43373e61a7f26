"""A small stock keeper: items, pages, reports."""

from .paging import page_count, page_of
from .report import report, report_page
from .stock import Item, Stock, read_stock

__all__ = ["Item", "Stock", "page_count", "page_of", "read_stock", "report", "report_page"]
