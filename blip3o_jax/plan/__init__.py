"""What a run needs on chips that are not there: memory, time and cost of its compiled step."""
