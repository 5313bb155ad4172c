"""The paper's tables again: runs, their files, and the report that sets ours beside the published numbers."""
