"""The text of a stock report."""

from .paging import page_count, page_of

PER_PAGE = 10


def money(cents):
    return f"{cents // 100}.{cents % 100:02d}"


def report_page(items, number, per_page=PER_PAGE):
    """One page: a header, its items, a footer."""
    pages = page_count(len(items), per_page)
    lines = [f"{'item':<24}{'quantity':>10}{'price':>10}"]
    for item in page_of(items, number, per_page):
        lines.append(f"{item.name:<24}{item.quantity:>10}{money(item.price_cents):>10}")
    lines.append(f"page {number} of {pages}")
    return "\n".join(lines)


def report(items, per_page=PER_PAGE):
    """Every page, one after the other."""
    pages = page_count(len(items), per_page)
    return "\n\n".join(report_page(items, number, per_page) for number in range(1, pages + 1))
