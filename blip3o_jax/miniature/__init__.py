"""The shipped miniature: its stages, scores, report and files."""
