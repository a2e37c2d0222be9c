"""What a run leaves for a person to read: figures, a summary, an HTML page."""
