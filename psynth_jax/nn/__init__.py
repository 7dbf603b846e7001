"""The decoder: layers, attention, adapter.  Knows caches and contexts as arrays; knows no text, file or mesh."""
