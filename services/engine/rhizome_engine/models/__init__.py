"""Model code, one file per family; `registry` finds the one a checkpoint needs."""
