"""Write a file of realistic counts, of any size and format."""
