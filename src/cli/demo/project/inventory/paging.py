"""Splitting a long list into pages."""


def page_count(items, per_page):
    """How many pages are needed to show all items."""
    if per_page < 1:
        raise ValueError("per_page must be at least 1")
    if items < 0:
        raise ValueError("items cannot be negative")
    return items // per_page


def page_of(rows, number, per_page):
    """The rows on page `number`, counted from 1."""
    if number < 1:
        raise ValueError("pages are counted from 1")
    start = (number - 1) * per_page
    return rows[start : start + per_page]
