"""The cluster over HTTP: what it does now, live; what it would do with other machines; and how it is changed."""
