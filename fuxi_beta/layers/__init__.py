"""The modules of the paper: FRAB, RAB, AFTM, MFFN."""
