"""A local stack that outlives the terminal: `rhizome up`, `down`, `status`, `logs`, `restart`."""
