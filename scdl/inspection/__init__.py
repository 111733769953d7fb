"""Looking at archives: what they hold, and reports of it."""
