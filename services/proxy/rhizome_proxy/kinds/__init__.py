"""How to talk to a server of each kind; a kind is one file."""
