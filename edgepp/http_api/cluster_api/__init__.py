"""The cluster over HTTP: its state, live; forecasts with other machines; and changes."""
