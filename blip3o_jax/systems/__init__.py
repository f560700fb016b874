"""Systems: one file owns one product, its networks, its loss and its way from prompt to pixels."""
