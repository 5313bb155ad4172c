"""The paper's parts by name: FRAB, RAB, AFTM, MFFN."""
