"""How a request will run: divided or whole, by which plan, in how much memory. No torch."""
