"""What people do with data before training: look at it, pack it, make some up."""
