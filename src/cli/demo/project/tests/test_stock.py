import unittest

from inventory.stock import Item, Stock, read_stock


class StockKeeping(unittest.TestCase):
    def test_adding_a_known_item_raises_its_quantity(self):
        stock = Stock([Item("nail", 10, 2)])
        stock.add(Item("nail", 5, 2))
        self.assertEqual(stock.items(), [Item("nail", 15, 2)])

    def test_taking_more_than_there_is_is_refused(self):
        stock = Stock([Item("nail", 10, 2)])
        with self.assertRaises(ValueError):
            stock.take("nail", 11)
        stock.take("nail", 10)
        self.assertEqual(stock.low(1), [Item("nail", 0, 2)])

    def test_an_unknown_item_is_named(self):
        with self.assertRaisesRegex(KeyError, "there is no screw"):
            Stock().take("screw", 1)

    def test_csv_is_read(self):
        stock = read_stock(["name,quantity,price", "nail,100,0.02", "hammer,3,12.5"])
        self.assertEqual(stock.items(), [Item("hammer", 3, 1250), Item("nail", 100, 2)])
        self.assertEqual(stock.value_cents(), 3 * 1250 + 100 * 2)


if __name__ == "__main__":
    unittest.main()
