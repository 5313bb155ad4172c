"""FuXi-beta (arXiv 2508.10615): the model, its batches, loss, metrics and retrieval, with torch and pyarrow alone."""
