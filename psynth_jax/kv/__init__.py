"""Where keys and values live: one pool of slots, who owns which of them."""
