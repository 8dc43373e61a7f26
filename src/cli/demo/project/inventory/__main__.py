"""The command line: python3 -m inventory data/stock.csv"""

import argparse
import sys

from .report import money, report, report_page
from .stock import read_stock


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="inventory", description="Prints a report of the stock.")
    parser.add_argument("file", help="CSV with the columns name, quantity and price")
    parser.add_argument("--page", type=int, help="print this page only")
    parser.add_argument("--low", type=int, metavar="N", help="only items with fewer than N left")
    options = parser.parse_args(arguments)
    with open(options.file, newline="", encoding="utf-8") as lines:
        stock = read_stock(lines)
    items = stock.items() if options.low is None else stock.low(options.low)
    if options.page is None:
        print(report(items))
        print(f"\n{len(items)} items, worth {money(sum(item.value_cents() for item in items))}")
    else:
        print(report_page(items, options.page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
