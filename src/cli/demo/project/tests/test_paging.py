import unittest

from inventory.paging import page_count, page_of


class PageCount(unittest.TestCase):
    def test_full_pages_are_counted(self):
        self.assertEqual(page_count(20, 10), 2)
        self.assertEqual(page_count(10, 10), 1)

    def test_nothing_needs_no_page(self):
        self.assertEqual(page_count(0, 10), 0)

    def test_last_partial_page_counts(self):
        self.assertEqual(page_count(25, 10), 3)
        self.assertEqual(page_count(1, 10), 1)

    def test_bad_sizes_are_refused(self):
        for items, per_page in ((10, 0), (10, -1), (-1, 10)):
            with self.assertRaises(ValueError):
                page_count(items, per_page)


class PageOf(unittest.TestCase):
    def test_a_page_holds_its_rows(self):
        rows = list(range(25))
        self.assertEqual(page_of(rows, 1, 10), list(range(10)))
        self.assertEqual(page_of(rows, 3, 10), [20, 21, 22, 23, 24])

    def test_pages_are_counted_from_one(self):
        with self.assertRaises(ValueError):
            page_of([1, 2, 3], 0, 10)


if __name__ == "__main__":
    unittest.main()
