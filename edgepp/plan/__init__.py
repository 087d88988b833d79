"""Know before you run: rooflines, predictions and simulations of clusters that need not exist."""
