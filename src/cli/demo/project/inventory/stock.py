"""Items and the stock that holds them."""

import csv
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One kind of thing on the shelf."""

    name: str
    quantity: int
    price_cents: int

    def value_cents(self):
        return self.quantity * self.price_cents


class Stock:
    """All items, by name."""

    def __init__(self, items=()):
        self._items = {}
        for item in items:
            self.add(item)

    def __len__(self):
        return len(self._items)

    def add(self, item):
        """Adds an item; more of a known one raises its quantity."""
        if item.quantity < 0:
            raise ValueError(f"{item.name}: a quantity cannot be negative")
        known = self._items.get(item.name)
        if known is not None:
            item = Item(item.name, known.quantity + item.quantity, item.price_cents)
        self._items[item.name] = item

    def take(self, name, quantity):
        """Takes some of an item off the shelf."""
        item = self._items.get(name)
        if item is None:
            raise KeyError(f"there is no {name}")
        if quantity > item.quantity:
            raise ValueError(f"{name}: only {item.quantity} left, {quantity} wanted")
        self._items[name] = Item(name, item.quantity - quantity, item.price_cents)

    def items(self):
        return sorted(self._items.values(), key=lambda item: item.name)

    def low(self, below):
        """Items of which fewer than `below` are left."""
        return [item for item in self.items() if item.quantity < below]

    def value_cents(self):
        return sum(item.value_cents() for item in self._items.values())


def read_stock(lines):
    """Reads `name,quantity,price` lines with a header; prices are like 12.50."""
    stock = Stock()
    for row in csv.DictReader(lines):
        euros, _, cents = row["price"].partition(".")
        price = int(euros) * 100 + int((cents + "00")[:2])
        stock.add(Item(row["name"], int(row["quantity"]), price))
    return stock
