"""Which plays count: logs found, read in any format, validated, and judged as a day's input."""
