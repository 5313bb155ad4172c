"""The day's HTML page: its content, figures and charts."""
