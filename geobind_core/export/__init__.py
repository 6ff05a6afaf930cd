"""Taking a space elsewhere: folders that other libraries open, and a folder for the Hub."""
