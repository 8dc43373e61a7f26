import unittest

from inventory.report import money, report, report_page
from inventory.stock import Item


def items(count):
    return [Item(f"item {number:02d}", number, 150) for number in range(1, count + 1)]


class Report(unittest.TestCase):
    def test_a_page_has_a_header_its_items_and_a_footer(self):
        lines = report_page(items(4), 1, per_page=2).splitlines()
        self.assertEqual(len(lines), 4)
        self.assertIn("quantity", lines[0])
        self.assertIn("item 01", lines[1])
        self.assertEqual(lines[-1], "page 1 of 2")

    def test_a_report_has_every_full_page(self):
        text = report(items(20))
        self.assertIn("page 1 of 2", text)
        self.assertIn("page 2 of 2", text)
        self.assertIn("item 20", text)

    def test_money_has_two_decimals(self):
        self.assertEqual(money(5), "0.05")
        self.assertEqual(money(1250), "12.50")


if __name__ == "__main__":
    unittest.main()
