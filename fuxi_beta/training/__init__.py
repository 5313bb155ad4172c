"""Loss, optimizers, the item table, and the training step on one rank or many."""
