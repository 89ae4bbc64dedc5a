"""How a strategy is put into a model, and how it runs there."""
