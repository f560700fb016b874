"""What two systems share."""
