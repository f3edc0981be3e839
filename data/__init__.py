"""Where datasets come from; nothing of the algorithm lives here."""
